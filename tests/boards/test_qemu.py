"""QEMU machines as boards: they boot what lies in their flash, and go when their owner goes."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from pytest_esp.boards.registry import make_board
from pytest_esp.errors import BackendError, PortError
from pytest_esp.link.link import Link
from pytest_esp.operations.esp import Esp
from pytest_esp.qemu.find import find
from pytest_esp.rack.config import load_rack
from pytest_esp.wire.loop import loop

MEGABYTE = 1024 * 1024
READY = "see the list of tests."
BLANK = "invalid header: 0xffffffff"


@pytest.fixture
def board(need_qemu, build_of, flash_of, tmp_path, monkeypatch):
    """A function that makes a board, not yet open; *flash* is what its flash holds, by default the test firmware."""
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    made = []

    def make(chip="esp32c3", *, name="machine", flash="firmware", **keys):
        need_qemu(chip)
        keys = {"flash_size": "2MB", **keys}
        lines = "".join(f"{key} = {value!r}\n" for key, value in keys.items())
        path = tmp_path / "boards.toml"
        path.write_text(f'[boards.{name}]\nbackend = "qemu"\nchip = "{chip}"\n{lines}')
        rack = load_rack(path)
        board = make_board(rack.board(name), rack)
        made.append(board)
        if flash == "firmware":
            flash = flash_of(build_of(chip), board.flash_size)
        if flash is not None:
            board.flash_file.parent.mkdir(parents=True, exist_ok=True)
            board.flash_file.write_bytes(flash)
        return board

    yield make
    for one in made:
        one.close()


@pytest.fixture
def link(board):
    """A link to a board with the test firmware."""
    with Link(board()) as link:
        yield link


# -- booting


@pytest.mark.parametrize("chip", ["esp32c3", "esp32"])
def test_it_boots_the_firmware_in_its_flash(board, chip):
    with Link(board(chip)) as link:
        link.console.expect(f"test firmware 1.0.0 on {chip}, slot factory", timeout=30)
        link.console.expect(READY)
        link.console.write("echo hello\n")
        link.console.expect("hello")


@pytest.mark.parametrize("chip", ["esp32c3", "esp32"])
def test_it_boots_what_esp_idf_has_built(board, firmware_folder, flash_of, chip):
    build = firmware_folder / f"hello_world_{chip}"
    with Link(board(chip, flash=flash_of(build))) as link:
        link.console.expect("Hello world!", timeout=60)


@pytest.mark.parametrize("chip", ["esp32c3", "esp32s3"])
def test_a_new_board_is_blank(board, chip):
    one = board(chip, flash=None, flash_size="4MB")
    with Link(one) as link:
        link.console.expect(BLANK, timeout=30)
    assert one.flash_file.read_bytes() == b"\xff" * 4 * MEGABYTE


@pytest.mark.parametrize(("chip", "feature"), [("esp32", "psram"), ("esp32s3", "psram"), ("esp32c3", "led")])
def test_a_module_with_other_features(board, chip, feature):
    with Link(board(chip, flash=None, features=[feature])) as link:
        link.console.expect("boot:0x", timeout=30)


def test_a_reset_starts_the_app_or_the_loader(link):
    console = link.console
    console.expect(READY, timeout=30)
    link.board.reset(bootloader=True)
    console.expect("wait uart0 download", timeout=30)
    link.board.reset(bootloader=False)
    console.expect(READY, timeout=30)
    link.board.power_cycle()
    console.expect(READY, timeout=30)


def test_the_link_goes_to_the_loader_and_back(link):
    esp = Esp(link)
    link.console.expect(READY, timeout=30)
    assert esp.chip.identify().mac_address == link.board.mac
    esp.chip.reset("app")
    link.console.expect(READY, timeout=30)


def test_flash_and_name_outlast_the_lease(board):
    first, again = board(), board(flash=None)
    assert first.mac == again.mac
    with Link(first) as link:
        link.console.expect(READY, timeout=30)
    with Link(again) as link:
        link.console.expect(READY, timeout=30)


# -- its files


@pytest.mark.parametrize("size", ["1MB", "32MB"])
def test_a_size_that_qemu_does_not_have_is_refused(board, size):
    with pytest.raises(BackendError, match="QEMU does not support a flash size of") as caught:
        board(flash=None, flash_size=size).open()
    assert "2MB, 4MB, 8MB, 16MB" in str(caught.value)
    assert caught.value.board == "machine"


def test_a_flash_file_of_another_size_is_refused(board, tmp_path):
    file = tmp_path / "flash.bin"
    file.write_bytes(b"\xff" * 4 * MEGABYTE)
    with pytest.raises(BackendError, match=r"flash.bin has 4194304 bytes, not 2097152 \(2MB\)"):
        board(flash=None, flash_file=str(file)).open()
    assert file.stat().st_size == 4 * MEGABYTE


@pytest.mark.parametrize("key", ["flash_file", "efuse_file"])
def test_a_file_in_a_folder_that_is_none_is_refused(board, tmp_path, key):
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendError, match=r"file/x\.bin( cannot be used)?: File exists"):
        board(flash=None, **{key: str(tmp_path / "file" / "x.bin")}).open()


def test_paths_may_have_commas_and_spaces(board, tmp_path, build_of, flash_of):
    folder = tmp_path / "a, b=c,,d" / "two  spaces"
    folder.mkdir(parents=True)
    files = {"flash_file": str(folder / "my, flash.bin"), "efuse_file": str(folder / "my, eFuses.bin")}
    with Link(board(**files)) as link:
        link.console.expect(READY, timeout=30)
    assert sorted(os.listdir(folder)) == ["my, eFuses.bin", "my, flash.bin"]


def test_two_boards_have_nothing_in_common(board):
    one, other = board(name="one"), board(name="other")
    with Link(one) as first, Link(other) as second:
        for link in (first, second):
            link.console.expect(READY, timeout=30)
        assert one.pid != other.pid
        assert one.mac != other.mac
        first.console.write("mac\n")
        second.console.write("mac\n")
        first.console.expect(one.mac)
        second.console.expect(other.mac)
        os.kill(one.pid, signal.SIGKILL)
        second.console.write("echo alive\n")
        second.console.expect("alive")
    assert one.flash_file.parent != other.flash_file.parent


@pytest.mark.parametrize("key", ["flash_file", "efuse_file"])
def test_two_boards_cannot_have_one_image(board, tmp_path, key):
    (tmp_path / "link").symlink_to(tmp_path)
    one, other = tmp_path / "image.bin", tmp_path / "link" / "image.bin"
    with Link(board(name="one", **{key: str(one)})) as link:
        link.console.expect(READY, timeout=30)
        for _ in range(2):
            with pytest.raises(BackendError, match="is in use by another board"):
                board(name="other", flash=None, **{key: str(other)}).open()
        link.console.write("echo alive\n")
        link.console.expect("alive")
    with Link(board(name="other", **{key: str(other)})) as link:
        link.console.expect(READY, timeout=30)


# -- its eFuses


@pytest.mark.parametrize(
    ("chip", "revision"), [("esp32c3", 3), ("esp32c3", 101), ("esp32", 300), ("esp32", 301), ("esp32s3", 2)]
)
def test_mac_and_revision_are_what_boards_toml_says(board, chip, revision):
    with Link(board(chip, flash=None, mac="7C:DF:A1:00:BE:EF", revision=revision)) as link:
        esp = Esp(link)
        found = esp.chip.identify()
        assert (found.mac_address, found.revision) == ("7c:df:a1:00:be:ef", revision)
        assert esp.efuse.read("MAC").value.startswith("7c:df:a1:00:be:ef")
        assert "OK" in esp.efuse.read("MAC").value


@pytest.mark.parametrize("chip", ["esp32c3", "esp32"])
def test_burnt_efuses_are_gone_at_the_next_lease(board, chip):
    assert burn_and_read_again(board, chip) == ("aa:bb:cc:dd:ee:00", "00:00:00:00:00:00")


@pytest.mark.parametrize("chip", ["esp32c3", "esp32"])
def test_burnt_efuses_stay_in_a_file_that_keeps_them(board, chip, tmp_path):
    kept = str(tmp_path / "efuse.bin")
    assert burn_and_read_again(board, chip, efuse_file=kept) == ("aa:bb:cc:dd:ee:00", "aa:bb:cc:dd:ee:00")


def burn_and_read_again(board, chip, **keys):
    """Burn a MAC address of one's own in one lease; return it as read then, and in the next lease."""
    found = []
    for burns in (True, False):
        with Link(board(chip, flash=None, **keys)) as link:
            esp = Esp(link)
            if burns:
                esp.efuse.burn("CUSTOM_MAC", "aa:bb:cc:dd:ee:00")
            found.append(esp.efuse.read("CUSTOM_MAC").value[:17])
    return tuple(found)


def test_the_address_is_that_of_the_efuse_file(board, tmp_path):
    kept = str(tmp_path / "efuse.bin")
    board(flash=None, mac="7c:df:a1:00:be:ef", efuse_file=kept).open()
    assert board(flash=None, name="other", efuse_file=kept).mac == "7c:df:a1:00:be:ef"


def test_an_efuse_file_of_another_chip_is_refused(board, tmp_path):
    file = tmp_path / "efuse.bin"
    file.write_bytes(bytes(124))
    with pytest.raises(BackendError, match="has 124 bytes, not the 984 of QEMU's esp32c3"):
        board(flash=None, efuse_file=str(file)).open()
    assert file.read_bytes() == bytes(124)


# -- its end


@pytest.fixture
def wrapped(need_qemu, tmp_path, monkeypatch):
    """A function that puts a shell script in QEMU's place; ``$QEMU`` in it is the real one."""
    need_qemu("esp32c3")
    real = find("riscv32", "esp32c3").path

    def wrap(script):
        path = tmp_path / "qemu-system-riscv32"
        path.write_text(f'#!/bin/sh\nQEMU="{real}"\ncase "$*" in *-drive*) ;; *) exec $QEMU "$@";; esac\n{script}\n')
        path.chmod(0o755)
        monkeypatch.setenv("QEMU_RISCV_PATH", str(path))

    return wrap


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            'exec $QEMU "$@" -global driver=esp32c3.gpio,property=strap_mode,value=x',
            r"ended \(1\): .*Parameter 'strap_mode' expects uint64",
        ),
        ("echo no room >&2; kill -ABRT $$", "was killed by SIGABRT: no room"),
        ("exit 3", r"ended \(3\) without a message"),
        ("kill -KILL $$", "was killed by SIGKILL without a message"),
    ],
)
def test_one_that_does_not_start_is_quoted_at_once(board, wrapped, script, words):
    wrapped(script)
    one = board()
    begun = time.monotonic()
    with pytest.raises(BackendError, match=words) as caught:
        one.open()
    assert time.monotonic() - begun < 2 * 0.2  # it is tried twice
    assert caught.value.board == "machine"
    assert one.pid is None


def test_one_that_fails_once_is_started_again(board, wrapped, tmp_path):
    tried = tmp_path / "tried"
    wrapped(f'[ -e "{tried}" ] && exec $QEMU "$@"\ntouch "{tried}"\nkill -ABRT $$')
    with Link(board()) as link:
        link.console.expect(READY, timeout=30)
    assert tried.exists()


def test_a_script_that_keeps_qemu_as_its_child_leaves_none(board, wrapped):
    wrapped('$QEMU "$@"')
    with Link(board()) as link:
        link.console.expect(READY, timeout=30)
        group = link.board.pid
        assert len(group_of(group)) == 2
    assert group_of(group) == []


def test_a_wait_ends_when_qemu_is_killed(link):
    link.console.expect(READY, timeout=30)
    pid = link.board.pid
    killer = threading.Timer(0.1, os.kill, (pid, signal.SIGKILL))
    killer.start()
    begun = time.monotonic()
    with pytest.raises(PortError, match="QEMU was killed by SIGKILL without a message"):
        link.console.expect("never", timeout=30)
    assert time.monotonic() - begun < 0.1 + 0.2


def test_one_that_was_killed_runs_again_when_it_is_opened_again(link):
    link.console.expect(READY, timeout=30)
    os.kill(link.board.pid, signal.SIGKILL)
    with pytest.raises(PortError, match="SIGKILL"):
        link.console.expect("never", timeout=30)
    link.close()
    link.console.expect(READY, timeout=30)


def test_operations_say_that_qemu_was_killed(link):
    esp = Esp(link)
    esp.chip.identify()
    os.kill(link.board.pid, signal.SIGKILL)
    with pytest.raises(PortError, match="QEMU was killed by SIGKILL"):
        esp.flash.read(0, 0x10000, over="wire")


# -- what is left


def test_nothing_is_left_after_close(board, tmp_path):
    loop()  # is made once
    board().open()  # brings what is imported and kept once
    board(flash=None).close()
    one = board(name="other")
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(2):
        with Link(one) as link:
            link.console.expect(READY, timeout=30)
            Esp(link).chip.identify()
            pid = one.pid
        one.close()
        assert group_of(pid) == []
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert threading.active_count() == threads
    assert sorted(path.name for path in one.flash_file.parent.iterdir()) == ["efuse.bin", "flash-2MB.bin", "qemu.log"]


OWNER = """
    import sys, time
    from pytest_esp.boards.registry import make_board
    from pytest_esp.rack.config import load_rack

    rack = load_rack()
    board = make_board(rack.board("machine"), rack)
    board.open()
    print(board.pid, flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_qemu_does_not_outlive_its_owner(board, tmp_path, number):
    board()
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(OWNER)], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        pid = int(owner.stdout.readline())
        assert group_of(pid)
        owner.send_signal(number)
        owner.wait(10)
        until_gone(pid)
    finally:
        owner.kill()
        owner.communicate()


def group_of(pid):
    """Return the names of the processes of a group that have not ended."""
    listing = subprocess.run(["ps", "-A", "-o", "pgid=,stat=,comm="], capture_output=True, text=True, check=True)
    rows = (line.split(maxsplit=2) for line in listing.stdout.splitlines())
    return [name for group, state, name in rows if int(group) == pid and not state.startswith("Z")]


def until_gone(group, timeout=10.0):
    deadline = time.monotonic() + timeout
    while left := group_of(group):
        assert time.monotonic() < deadline, f"{left} still run"
        time.sleep(0.01)


# -- floods


def test_a_flood_that_nobody_reads_is_kept(board):
    one = board()
    port = one.open()
    port.timeout = 30
    assert read_until(port, READY.encode())
    port.write(b"flood 100000\necho end\n")
    deadline = time.monotonic() + 60
    while port.in_waiting < 100_000:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert read_until(port, b"end\r\n").endswith(b"end\r\n")
    port.write(b"echo alive\n")
    assert read_until(port, b"alive\r\n")


def read_until(port, end):
    data = b""
    while not data.endswith(end):
        more = port.read(port.in_waiting or 1)
        assert more, data[-200:]
        data += more
        if end in data:
            return data
    return data
