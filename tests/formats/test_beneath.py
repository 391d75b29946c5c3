"""Links that appear after a path was checked, and before it is used."""

import os
import threading
from pathlib import Path

import pytest

from pytest_esp.errors import EspError, RefusedError
from pytest_esp.formats import beneath
from pytest_esp.formats.files import Confinement, confined, open_descriptor, read_file, resolve, save

pytestmark = pytest.mark.skipif(not beneath.SUPPORTED, reason="this system cannot open files relative to a folder")
SECRET, OWN = b"secret", b"own"


@pytest.fixture
def root(tmp_path):
    """A root with a folder in it, and a folder outside with the same names."""
    for folder, data in (("root/folder", OWN), ("outside", SECRET)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "file").write_bytes(data)
    with confined(Confinement(roots=(tmp_path / "root",))):
        yield tmp_path / "root"


def swap_file(root):
    (root / "folder" / "file").unlink()
    (root / "folder" / "file").symlink_to(root.parent / "outside" / "file")


def swap_folder(root):
    (root / "folder").rename(root / "gone")
    (root / "folder").symlink_to(root.parent / "outside")


def outside(root):
    return {path.name: path.read_bytes() for path in (root.parent / "outside").iterdir()}


@pytest.mark.parametrize("swap", [swap_file, swap_folder])
@pytest.mark.parametrize(
    "use",
    [
        lambda path: path.read_bytes(),
        lambda path: path.read_text(),
        lambda path: path.open("rb"),
        lambda path: path.write_bytes(b"x"),
        lambda path: path.write_text("x"),
        lambda path: path.open("r+b"),
        lambda path: open_descriptor(path, os.O_RDWR | os.O_CREAT | os.O_APPEND),
        lambda path: open_descriptor(path, os.O_RDONLY),
    ],
)
def test_a_link_that_appears_after_the_check_is_not_followed(root, swap, use):
    path = resolve("folder/file", "write")
    swap(root)
    with pytest.raises((RefusedError, OSError)):
        use(path)
    assert outside(root) == {"file": SECRET}


@pytest.mark.parametrize(
    "use",
    [
        lambda path: path.unlink(),
        lambda path: (path.parent / "new").mkdir(),
        lambda path: (path.parent / "new" / "newer").mkdir(parents=True),
        lambda path: path.replace(path.with_name("renamed")),
        lambda path: save(path, b"x"),
    ],
)
def test_a_folder_outside_is_not_changed(root, use):
    path = resolve("folder/file", "write")
    swap_folder(root)
    with pytest.raises((EspError, OSError)):
        use(path)
    assert outside(root) == {"file": SECRET}


def test_the_folder_is_replaced_between_the_check_and_the_opening(root, monkeypatch):
    path, real = resolve("folder/file"), beneath.folder_of

    def late(*arguments):
        swap_folder(root)
        return real(*arguments)

    monkeypatch.setattr(beneath, "folder_of", late)
    with pytest.raises(OSError, match="folder"):
        path.read_bytes()


def test_the_file_is_replaced_between_the_check_and_the_opening(root, monkeypatch):
    path, real = resolve("folder/file"), beneath.folder_of

    def late(*arguments):
        swap_file(root)
        return real(*arguments)

    monkeypatch.setattr(beneath, "folder_of", late)
    with pytest.raises(OSError, match="symbolic links"):
        path.read_bytes()


def test_links_inside_the_roots_are_followed(root):
    (root / "way").symlink_to("folder")
    (root / "folder" / "link").symlink_to("file")
    assert (resolve(".") / "way" / "link").read_bytes() == OWN
    resolve("way/link", "write").write_bytes(b"new")
    assert (root / "folder" / "file").read_bytes() == b"new"
    (resolve(".") / "way" / "link").unlink()
    assert (root / "folder" / "file").exists()
    assert not (root / "folder" / "link").is_symlink()


def test_paths_do_what_they_do_elsewhere(root):
    new = resolve("a", "write") / "b"
    new.mkdir(parents=True)
    new.mkdir(parents=True, exist_ok=True)
    with pytest.raises(FileExistsError):
        new.mkdir()
    with pytest.raises(FileNotFoundError):
        (new / "c" / "d").mkdir()
    (new / "file").write_text("text")
    moved = (new / "file").replace(new / "moved")
    assert moved.read_text() == "text"
    assert sorted(new.iterdir()) == [moved]
    moved.unlink()
    moved.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        moved.unlink()
    with pytest.raises(FileNotFoundError):
        moved.read_bytes()
    with pytest.raises(IsADirectoryError):
        resolve(".").read_bytes()
    with pytest.raises(NotADirectoryError):
        (resolve("folder/file") / "x").read_bytes()
    assert str(new) == str(root / "a" / "b")
    resolve(".").mkdir(exist_ok=True)


def test_elsewhere_they_are_plain(root):
    path = resolve("folder/file")
    with confined(None):
        swap_file(root)
        assert path.read_bytes() == SECRET


def test_a_race(root):
    """Another program swaps folder and link all the time: what is read is its own, or an error."""
    (root / "real").mkdir()
    (root / "real" / "file").write_bytes(OWN)
    stop = threading.Event()

    def swapping():
        number = 0
        while not stop.is_set():
            number += 1
            link = root / f"link{number}"
            link.symlink_to(root.parent / "outside" if number % 2 else root / "real")
            os.replace(link, root / "swapped")

    os.symlink(root / "real", root / "swapped")
    thread = threading.Thread(target=swapping)
    thread.start()
    seen = set()
    try:
        for _ in range(3000):
            try:
                seen.add(resolve(Path("swapped", "file")).read_bytes())
                seen.add(read_file("swapped/file", "file"))
            except (EspError, OSError):
                seen.add("refused")
    finally:
        stop.set()
        thread.join()
    assert seen == {OWN, "refused"}
