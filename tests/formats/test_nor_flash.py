"""The flash chip: NOR rules, the file behind it, its SPI commands."""

import errno
import hashlib
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pytest_esp.errors import BackendError
from pytest_esp.formats.nor_flash import NorFlash

MB = 1024 * 1024


@pytest.fixture(params=["memory", "file"])
def flash(request, tmp_path):
    flash = NorFlash(MB, tmp_path / "flash.bin" if request.param == "file" else None)
    yield flash
    flash.close()


def test_a_new_flash_is_blank(flash):
    assert flash.read(0, MB) == b"\xff" * MB


def test_programming_clears_bits_and_erasing_sets_them(flash):
    flash.program(0x1000, b"\x0f\xf0")
    flash.program(0x1000, b"\xf5\xff")
    assert flash.read(0xFFF, 4) == b"\xff\x05\xf0\xff"
    flash.erase(0x1000, 1)
    assert flash.read(0x1000, 2) == b"\xff\xff"


def test_erasing_takes_whole_sectors(flash):
    flash.program(0, b"\0" * 0x4000)
    flash.erase(0x1800, 0x1000)
    assert flash.read(0, 0x4000) == b"\0" * 0x1000 + b"\xff" * 0x2000 + b"\0" * 0x1000


def test_addresses_wrap_at_the_end(flash):
    flash.program(MB - 2, b"abcd")
    assert flash.read(MB - 2, 4) == b"abcd"
    assert flash.read(0, 2) == b"cd"
    assert flash.md5(MB - 2, 4) == hashlib.md5(b"abcd").digest()


def test_md5(flash):
    data = random.Random(7).randbytes(5000)
    flash.program(0x123, data)
    assert flash.md5(0x123, 5000) == hashlib.md5(data).digest()


def test_stuck_bits_survive_an_erase(flash):
    flash.stuck[0x1003] = 0x81
    flash.erase(0, MB)
    assert flash.read(0x1002, 3) == b"\xff\x7e\xff"
    flash.program(0x1003, b"\xff")
    assert flash.read(0x1003, 1) == b"\x7e"


def test_a_flipped_bit(flash):
    flash.flip(0x10, 0x80)
    assert flash.read(0x10, 1) == b"\x7f"
    flash.flip(0x10, 0x80)
    assert flash.read(0x10, 1) == b"\xff"


def test_writes_are_counted(flash):
    flash.program(0, b"abc")
    flash.erase(0, 0x2000)
    assert (flash.bytes_programmed, flash.sectors_erased) == (3, 2)


def test_blank_flashes_do_not_share_what_is_written():
    first, second = NorFlash(MB), NorFlash(MB)
    first.program(0, b"mine")
    assert second.read(0, 4) == NorFlash(MB).read(0, 4) == b"\xff" * 4
    first.erase(0, MB)
    assert first.read(0, 4) == b"\xff" * 4


def test_a_file_keeps_every_byte(tmp_path):
    path = tmp_path / "new" / "flash.bin"
    flash = NorFlash(MB, path)
    flash.program(0x1234, b"kept")
    flash.close()
    flash.close()
    assert path.read_bytes() == b"\xff" * 0x1234 + b"kept" + b"\xff" * (MB - 0x1238)
    assert NorFlash.open(path).read(0x1234, 4) == b"kept"
    assert [file.name for file in path.parent.iterdir()] == ["flash.bin"]


def test_a_file_of_another_size_is_refused(tmp_path):
    path = tmp_path / "flash.bin"
    path.write_bytes(b"\xff" * MB)
    with pytest.raises(BackendError, match="has 1048576 bytes, not 2097152"):
        NorFlash(2 * MB, path)


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(BackendError, match="cannot be used") as error:
        NorFlash(MB, tmp_path)
    assert error.value.hint


@pytest.mark.parametrize("size", [0, 1000, 3 * MB, 256 * MB])
def test_sizes_that_do_not_exist_are_refused(size):
    with pytest.raises(BackendError, match="invalid flash size"):
        NorFlash(size)


@pytest.mark.parametrize(
    ("size", "code"), [(MB // 4, 0x12), (MB, 0x14), (16 * MB, 0x18), (32 * MB, 0x19), (128 * MB, 0x21)]
)
def test_the_id_tells_the_size_as_esptool_reads_it(size, code):
    from esptool.cmds import DETECTED_FLASH_SIZES

    flash = NorFlash(size)
    assert flash.command(0x9F, 0, b"", 3) == bytes([0xC8, 0x40, code])
    assert DETECTED_FLASH_SIZES[code] == (f"{size // MB}MB" if size >= MB else "256KB")


def test_the_status_register_wants_a_write_enable_first(flash):
    flash.command(0x01, 0, b"\x40\x02", 0)
    assert flash.command(0x05, 0, b"", 1) == b"\x00"
    flash.command(0x06, 0, b"", 0)
    assert flash.command(0x05, 0, b"", 1) == b"\x02"
    flash.command(0x01, 0, b"\x40\x02", 0)
    assert flash.command(0x05, 0, b"", 1) + flash.command(0x35, 0, b"", 1) == b"\x40\x02"


def test_page_program_and_erases_over_spi(flash):
    for opcode, address, data in ((0x02, 0x8000, b"page"), (0x20, 0x8000, b"")):
        flash.command(opcode, address, data, 0)
        assert flash.read(0x8000, 4) == b"\xff" * 4  # without a write enable
    flash.command(0x06, 0, b"", 0)
    flash.command(0x02, 0x8000, b"page", 0)
    assert flash.command(0x03, 0x8000, b"", 4) == b"page"
    flash.command(0x06, 0, b"", 0)
    flash.command(0xD8, 0x8123, b"", 0)
    assert flash.command(0x0B, 0x8000, b"", 4) == b"\xff" * 4


@pytest.fixture
def private(tmp_path):
    path = tmp_path / "flash.bin"
    path.write_bytes(b"\xaa" * MB)
    flash = NorFlash(MB, path, private=True)
    yield flash
    flash.close()


def test_a_private_flash_leaves_its_file_alone_until_it_is_saved(private):
    private.erase(0, 1)
    private.program(0, b"new")
    private.close()
    assert private.path.read_bytes() == b"\xaa" * MB
    changed = NorFlash(MB, private.path, private=True)
    changed.erase(0x1000, 1)
    changed.program(0x1000, b"new")
    changed.save()
    assert private.path.read_bytes() == b"\xaa" * 0x1000 + b"new".ljust(0x1000, b"\xff") + b"\xaa" * (MB - 0x2000)
    assert list(private.path.parent.iterdir()) == [private.path]


def test_a_saved_file_keeps_its_mode_and_the_link_to_it(private, tmp_path):
    link = tmp_path / "link.bin"
    link.symlink_to(private.path)
    private.path.chmod(0o640)
    flash = NorFlash(MB, link, private=True)
    flash.erase(0, MB)
    flash.save()
    assert link.is_symlink()
    assert private.path.read_bytes() == b"\xff" * MB
    assert private.path.stat().st_mode & 0o777 == 0o640


def test_a_file_that_cannot_be_replaced_stays_what_it_was(private, tmp_path):
    private.erase(0, MB)
    obstacle = tmp_path / f"flash.bin.{os.getpid()}.part"
    obstacle.mkdir()
    with pytest.raises(BackendError, match="cannot be written"):
        private.save()
    assert private.path.read_bytes() == b"\xaa" * MB


# -- a full disk


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


needs_holes = pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="cannot reserve blocks")


@needs_holes
def test_a_file_with_holes_on_a_full_disk_is_refused(tmp_path, monkeypatch):
    """A write to a hole of a mapped file would kill the process."""
    with (tmp_path / "flash.bin").open("wb") as file:
        file.truncate(1 << 20)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(BackendError, match="No space left on device") as error:
            NorFlash(1 << 20, tmp_path / "flash.bin")
        assert "disk space" in error.value.hint
        NorFlash(1 << 20, tmp_path / "flash.bin", private=True).close()
    NorFlash(1 << 20, tmp_path / "flash.bin").close()
    assert (tmp_path / "flash.bin").stat().st_blocks * 512 >= 1 << 20
    monkeypatch.setattr(os, "posix_fallocate", full)
    NorFlash(1 << 20, tmp_path / "flash.bin").close()  # it needs no more blocks


@needs_holes
def test_a_file_system_that_cannot_reserve_blocks_is_used_as_it_is(tmp_path, monkeypatch):
    with (tmp_path / "flash.bin").open("wb") as file:
        file.truncate(1 << 20)

    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    NorFlash(1 << 20, tmp_path / "flash.bin").close()


def test_a_new_file_that_finds_no_room_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(BackendError, match="No space left on device"):
        NorFlash(1 << 20, tmp_path / "flash.bin")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small tmpfs")
def test_a_real_full_disk(tmp_path):
    """The process lives, and says what is wrong, with a new file and with one that has holes."""
    code = f"""
        import os, sys
        from pathlib import Path
        from pytest_esp.errors import BackendError
        from pytest_esp.formats.nor_flash import NorFlash
        sparse, new = Path({str(tmp_path)!r}, "sparse.bin"), Path({str(tmp_path)!r}, "new.bin")
        with sparse.open("wb") as file:
            file.truncate(4 << 20)
        for path in (sparse, new):
            try:
                NorFlash(4 << 20, path).erase(0, 4 << 20)
            except BackendError as error:
                print(error)
        print(sorted(os.listdir({str(tmp_path)!r})))
    """
    mounted = f'mount -t tmpfs -o size=1m none "{tmp_path}" && exec "$0" -c "$1"'
    result = subprocess.run(
        ["unshare", "-m", "sh", "-c", mounted, sys.executable, textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in result.stderr or "mount" in result.stderr:
        pytest.skip("cannot mount")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("No space left on device") == 2
    assert "['sparse.bin']" in result.stdout
