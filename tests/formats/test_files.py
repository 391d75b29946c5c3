"""The one function that says which files may be opened, and that operations open none without it."""

import ast
import threading
from pathlib import Path

import pytest

import pytest_esp.operations
from pytest_esp.errors import OperationError, RefusedError
from pytest_esp.formats.files import Confinement, allows, confined, confinement, new_file, resolve

OPERATIONS = Path(pytest_esp.operations.__file__).parent
FORMATS = OPERATIONS.with_name("formats")


@pytest.fixture
def roots(tmp_path):
    """Two roots and a folder beside them, which links in the first one lead to."""
    for name in ("first", "second", "outside"):
        (tmp_path / name).mkdir()
    (tmp_path / "first" / "way").symlink_to("../outside")
    (tmp_path / "first" / "dangling").symlink_to("../outside/new")
    (tmp_path / "first" / "round").symlink_to("round")
    return Confinement(roots=(tmp_path / "first", tmp_path / "second"))


def test_where_nothing_is_confined_a_path_stays_as_it_is(tmp_path):
    assert resolve("../x") == Path("../x")
    assert resolve("x", named_by=tmp_path / "listing") == tmp_path / "x"
    assert allows("/anything")


def test_a_client_has_its_roots(roots, tmp_path):
    with confined(roots):
        assert resolve("a/../b.bin") == tmp_path / "first" / "b.bin"
        assert resolve(tmp_path / "second" / "b.bin") == tmp_path / "second" / "b.bin"
        assert resolve("../second/x", named_by=tmp_path / "first" / "listing") == tmp_path / "second" / "x"
        assert resolve(tmp_path / "first") == tmp_path / "first"
    assert confinement() is None


@pytest.mark.parametrize("access", ["read", "write"])
@pytest.mark.parametrize(
    "name", ["..", "../outside/x", "way", "way/x", "dangling", "way/../x", "/etc/passwd", "~root/x", "../first-not/x"]
)
def test_what_lies_outside_is_refused(roots, name, access):
    with confined(roots):
        assert not allows(name)
        with pytest.raises(RefusedError) as refused:
            resolve(name, access)
    assert name in refused.value.message
    assert all(str(root) in str(refused.value.hint) for root in roots.roots)


@pytest.mark.parametrize("name", ["a\0b", "round/x", "x" * 5000, "~nobody-of-that-name/x"])
def test_what_cannot_be_a_path(roots, name):
    with confined(roots), pytest.raises((RefusedError, OSError)):
        resolve(name).stat()


def test_whoever_names_a_file_is_named(roots, tmp_path):
    listing = tmp_path / "first" / "flasher_args.json"
    with confined(roots), pytest.raises(RefusedError) as refused:
        resolve("../outside/app.bin", named_by=listing)
    assert refused.value.message.startswith(f"../outside/app.bin, from {listing}, is outside")


def test_without_roots_there_are_no_files(tmp_path):
    with confined(Confinement(roots=())), pytest.raises(RefusedError, match="may not be opened"):
        resolve(tmp_path)


def test_what_may_only_be_read_and_what_may_not_be_written(roots, tmp_path):
    key, rack = tmp_path / "outside" / "key.pem", tmp_path / "first" / "boards.toml"
    with confined(Confinement(roots.roots, readable=(key,), protected=(rack,))):
        assert resolve(key) == key
        assert resolve("boards.toml") == rack
        with pytest.raises(RefusedError, match="outside the folders"):
            resolve(key, "write")
        with pytest.raises(RefusedError, match="may not be written"):
            new_file("boards.toml", overwrite=True)


def test_a_new_file(roots, tmp_path):
    with confined(roots):
        assert new_file("new.bin", overwrite=False) == tmp_path / "first" / "new.bin"
        (tmp_path / "first" / "new.bin").touch()
        assert new_file("new.bin", overwrite=True).exists()
        with pytest.raises(OperationError, match="exists already"):
            new_file("new.bin", overwrite=False)


def test_a_thread_is_confined_only_if_it_says_so(roots):
    """Why workers enter the confinement of their call again."""
    found = []

    def work(limits):
        with confined(limits):
            found.append(allows("/etc/passwd"))

    with confined(roots):
        for limits in (None, confinement()):
            thread = threading.Thread(target=work, args=(limits,))
            thread.start()
            thread.join()
    assert found == [True, False]


# -- every operation goes through it

OPENING = {"open", "read_bytes", "read_text", "write_bytes", "write_text", "mkdir", "rmtree"}
# What is opened for nobody: files of this package, of ESP-IDF, of the state folder, temporary ones, pipes; and what
# `resolve` or `new_file` have looked at some lines before.
OWN = {
    "formats.builds": {"_head"},
    "formats.nor_flash": {"*"},
    "formats.stubs": {"*"},
    "operations.backup.archive": {"Folder.__init__", "Folder._write", "Archive._manifest", "Archive._stored"},
    "operations.firmware.bootloader_image": {"_built", "_without_effect"},
    "formats.beneath": {"folder_of"},
    "formats.files": {"read_file", "save", "ConfinedPath.open", "ConfinedPath.mkdir", "open_descriptor"},
    "operations.firmware.merging": {"_merged"},
    "operations.firmware.splitting": {"_write"},
    "operations.catalogue.products": {"*"},
    "operations.catalogue.refresh": {"*"},
    "operations.diagnostics.core_image": {"_loaded", "_extracted", "_core_file"},
    "operations.diagnostics.soc": {"*"},
    "operations.idf.installation": {"*"},
    "operations.idf.process": {"*"},
    "operations.idf.tools": {"*"},
    "formats.nvs_values": {"_contents"},
    "operations.ota.package": {"_read"},
    "operations.production.config": {"_contents", "opened"},
    "operations.production.process": {"WorkProcess.__init__", "WorkProcess._listen", "main"},
    "operations.production.record": {"RecordBook.__init__"},
    "operations.production.testing": {"_rack_file"},
    "operations.production.work": {"_Worker.run"},
    "operations.firmware.ram": {"self_test_image"},
    "formats.regions": {"contents_of"},
    "operations.security.secure_boot": {"_v1_digest", "digest_of"},
}


class Openings(ast.NodeVisitor):
    """Notes where a module opens files by other paths than ``resolve(...)`` itself."""

    def __init__(self):
        self.where, self.found = [], {}

    def visit_ClassDef(self, node):
        self.where.append(node.name)
        self.generic_visit(node)
        self.where.pop()

    def visit_FunctionDef(self, node):
        self.visit_ClassDef(node)

    def visit_Call(self, node):
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", None)
        owner = called.value if isinstance(called, ast.Attribute) else None
        through = isinstance(owner, ast.Call) and getattr(owner.func, "id", None) in ("resolve", "new_file")
        builds = isinstance(owner, ast.Name) and owner.id == "Firmware"
        if name in OPENING and not through and not builds:
            self.found.setdefault(".".join(self.where), node.lineno)
        self.generic_visit(node)


def test_operations_open_files_through_it():
    missed, unused = [], {(module, name) for module, names in OWN.items() for name in names}
    for path in [*OPERATIONS.rglob("*.py"), *FORMATS.rglob("*.py")]:
        module = ".".join(path.relative_to(OPERATIONS.parent).with_suffix("").parts)
        openings = Openings()
        openings.visit(ast.parse(path.read_text("utf-8")))
        for where, line in openings.found.items():
            names = OWN.get(module, set()) & {where, "*"}
            unused -= {(module, name) for name in names}
            if not names:
                missed.append(f"{module}:{line} ({where})")
    assert not missed, "these open files by paths that `resolve` has not seen"
    assert not unused, "these open no files any more"
