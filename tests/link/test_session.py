"""The warm esptool session on simulated chips and on ports that are no chips."""

import gc
import os
import threading
import time

import pytest
import serial
from esptool import cmds

from pytest_esp.boards.registry import make_board
from pytest_esp.errors import BackendError, LinkError, OperationError, PortError, StoppedError, WrongChipError
from pytest_esp.link.fast import FastLoader
from pytest_esp.link.link import Link
from pytest_esp.operations.esp import Esp
from pytest_esp.rack.config import load_rack
from pytest_esp.wire.faults import Fault, Faults
from pytest_esp.wire.loop import settle


@pytest.fixture
def rack(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    path = tmp_path / "boards.toml"
    path.write_text(
        '[boards.c3]\nbackend="sim"\nchip="esp32c3"\nflash_size="4MB"\n'
        '[boards.esp32]\nbackend="sim"\nchip="esp32"\nflash_size="4MB"\n'
        '[boards.locked]\nbackend="sim"\nchip="esp32s3"\nsecure_download=true\n'
        '[boards.old]\nbackend="sim"\nchip="esp8266"\n'
    )
    return load_rack(path)


@pytest.fixture
def link(rack):
    with Link(make_board(rack.board("c3"), rack)) as link:
        yield link


def serial_link(tmp_path, port, chip="esp32c3"):
    path = tmp_path / "serial.toml"
    path.write_text(f'[boards.real]\nbackend="serial"\nchip="{chip}"\nport="{port}"\nbaud=115200\n')
    rack = load_rack(path)
    return Link(make_board(rack.board("real"), rack))


def descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def short_waits(monkeypatch):
    monkeypatch.setattr(FastLoader, "longest_wait", 0.05)


def test_a_session_stays_connected(link):
    session = link.session
    with session.use("first", flash=True) as esp:
        assert esp.IS_STUB
    assert session.is_connected
    with session.use("second") as again:
        assert again is esp


def test_it_is_the_same_flash_as_stock_esptool_sees(link):
    data = os.urandom(70_000)
    with link.session.use("write", flash=True) as esp:
        cmds.write_flash(esp, [(0x10000, data)])
        assert esp.read_flash(0x10000, len(data)) == data
    assert link.board.simulated.flash.read(0x10000, len(data)) == data


def test_two_boards_in_two_threads_keep_their_logs_apart(rack):
    texts = {}

    def work(name):
        with Link(make_board(rack.board(name), rack)) as link:
            for _ in range(5):
                with link.session.use("say", flash=True) as esp:
                    cmds.write_flash(esp, [(0x1000, name.encode() * 2000)])
                    cmds.flash_id(esp)
                link.session.drop()
            texts[name] = link.transcript.text

    threads = [threading.Thread(target=work, args=(name,)) for name in ("c3", "esp32")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts["c3"].count("Wrote") == texts["esp32"].count("Wrote") == 5
    assert "Stub flasher running" in texts["c3"]


def test_nothing_is_printed(link, capfd):
    Esp(link).chip.identify()
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_another_chip_than_promised(rack, link):
    other = make_board(rack.board("esp32"), rack)
    port = link.port  # a C3 behind the entry of an ESP32
    other.open = lambda: port
    other.reset = link.board.reset
    with pytest.raises(WrongChipError, match=r"this is an ESP32-C3, not an ESP32\b"):
        Esp(Link(other)).chip.identify()


def test_secure_download_mode_still_tells_who_it_is(rack):
    with Link(make_board(rack.board("locked"), rack)) as link:
        esp = Esp(link)
        identity = esp.chip.identify()
        assert identity.secure_download_mode
        assert not identity.stub_loaded
        assert "SECURE_DOWNLOAD_ENABLE" in esp.security.info().flag_names
        with pytest.raises(OperationError, match="secure download mode"):
            esp.efuse.read_all()


def test_a_board_that_falls_silent_in_a_write_is_an_error_soon_and_recovers(link, short_waits):
    esp = Esp(link)
    esp.chip.identify()
    link.board.wire.faults = Faults(to_device=Fault(silent_after=20_000))
    begun = time.monotonic()
    with pytest.raises(LinkError, match="does not answer") as caught:
        esp.flash.write([(0x10000, os.urandom(60_000)), (0x40000, b"later" * 100)])
    assert time.monotonic() - begun < 3
    assert caught.value.board == "c3"
    assert "0x10000 partly written" in caught.value.hint
    assert "0x40000 untouched" in caught.value.hint
    link.board.wire.faults = None
    assert esp.flash.write([(0x10000, b"again" * 1000)]).bytes_written == 5000


def test_lost_bytes_are_found(link, short_waits):
    esp = Esp(link)
    data = os.urandom(200_000)
    esp.flash.write([(0, data)])
    link.board.wire.faults = Faults(to_host=Fault(lose=0.0001, seed=3))

    def read_until_it_fails():
        for _ in range(20):
            assert esp.flash.read(0, len(data)).data == data

    with pytest.raises((LinkError, OperationError)):
        read_until_it_fails()
    link.board.wire.faults = None
    assert esp.flash.read(0, len(data)).data == data


@pytest.mark.in_process
def test_a_board_that_vanishes_says_so(link):
    esp = Esp(link)
    esp.chip.identify()
    link.port.lose("the cable was pulled")
    with pytest.raises(PortError, match="vanished: the cable was pulled"):
        esp.flash.read(0, 4096)


@pytest.mark.in_process
def test_ctrl_c_in_the_middle_of_a_write_leaves_a_board_that_can_be_used(link):
    esp = Esp(link)

    def interrupt(done, total):
        raise KeyboardInterrupt

    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        esp.flash.write([(0x10000, os.urandom(100_000))], progress=interrupt)
    assert not link.session.is_connected
    data = os.urandom(10_000)
    esp.flash.write([(0x10000, data)])
    assert esp.flash.read(0x10000, len(data)).data == data
    assert threading.active_count() == threads


def test_opening_and_closing_leaks_nothing(rack):
    def once():
        with Link(make_board(rack.board("c3"), rack)) as link:
            Esp(link).chip.identify()

    once()
    gc.collect()  # what an earlier test has left must not end between the counts
    settle()
    before, threads = descriptors(), threading.active_count()
    for _ in range(50):
        once()
    settle()
    assert descriptors() == before
    assert threading.active_count() == threads


def test_changing_the_mode_never_closes_the_port(link):
    esp = Esp(link)
    port = link.port
    for _ in range(3):
        assert "rst:0x1" in esp.chip.reset("app").output
        assert esp.chip.reset("bootloader").mode == "bootloader"
        assert esp.chip.identify().mac_address == link.board.simulated.mac
    assert link.port is port
    assert port.is_open


def test_a_backend_that_this_version_has_not(rack):
    spec = rack.board("c3").model_copy(update={"backend": "jlink"})
    with pytest.raises(BackendError, match="unknown backend 'jlink'"):
        make_board(spec, rack)


# -- real ports


def test_a_port_that_does_not_exist(tmp_path):
    with pytest.raises(PortError, match="does not exist") as caught:
        Esp(serial_link(tmp_path, "/dev/ttyUSB987")).chip.identify()
    assert "plugged in" in caught.value.hint


def test_a_port_that_is_no_port(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PortError, match="is not a serial port"):
        Esp(serial_link(tmp_path, tmp_path / "file")).chip.identify()


@pytest.fixture
def terminal():
    main, device = os.openpty()
    yield main, os.ttyname(device)
    os.close(main)
    os.close(device)


def test_a_port_that_somebody_else_has_open(tmp_path, terminal):
    with serial.Serial(terminal[1], exclusive=True), pytest.raises(PortError, match="in use") as caught:
        Esp(serial_link(tmp_path, terminal[1])).chip.identify()
    assert f"pid {os.getpid()}" in str(caught.value) or str(os.getpid()) in caught.value.hint


@pytest.mark.in_process
@pytest.mark.parametrize("babble", [b"", b"Hello, I am a modem.\r\n" * 40])
def test_a_port_that_is_not_a_chip(tmp_path, terminal, babble, short_waits):
    main, name = terminal
    before = descriptors()
    link = serial_link(tmp_path, name)
    link.session.connect_attempts = 1
    os.write(main, babble)
    with link, pytest.raises(LinkError, match=r"does not answer|Failed to connect"):
        Esp(link).chip.identify()
    assert descriptors() == before


def test_a_remote_port_with_nobody_there(tmp_path):
    with pytest.raises(PortError, match="remote port does not respond"):
        Esp(serial_link(tmp_path, "rfc2217://127.0.0.1:1")).chip.identify()


@pytest.mark.parametrize("url", ["rfc2217://127.0.0.1:0", "pty:"])
def test_a_simulated_chip_behind_a_real_port(tmp_path, url):
    from pytest_esp.sim.chip import SimChip
    from pytest_esp.wire.endpoints import serve
    from pytest_esp.wire.reset import SLOW_HOST_RISE_TIME

    chip = SimChip("esp32c3", rise_time=SLOW_HOST_RISE_TIME)
    chip.reset(bootloader=True)
    endpoint = serve(chip.wire, url)
    data = os.urandom(50_000)
    with serial_link(tmp_path, endpoint.url.removeprefix("pty:")) as link:
        esp = Esp(link)
        assert esp.chip.identify().mac_address == chip.mac
        esp.flash.write([(0x1000, data)])
        assert esp.flash.verify([(0x1000, data)]).matches
        if url.startswith("rfc2217"):
            assert "ESP-ROM" in esp.chip.reset("app").output
    endpoint.close()
    chip.close()


@pytest.mark.in_process
def test_what_the_app_said_before_the_loader_took_over_is_kept(link):
    esp = Esp(link)
    link.reset(bootloader=False)
    esp.chip.identify()  # nobody has read the console yet
    assert "invalid header: 0xffffffff" in link.console.text
    link.reset(bootloader=False)
    link.console.expect_silence(0.05)
    assert link.console.text.count("ESP-ROM") >= 2


def test_work_that_is_stopped_in_the_middle_leaves_no_half_conversation(rack):
    def stop(done, total):
        raise StoppedError("enough")

    with Link(make_board(rack.board("c3"), rack)) as link:
        esp = Esp(link)
        with pytest.raises(StoppedError, match="enough"):
            esp.flash.read(0, 200_000, progress=stop)
        assert not link.session.is_connected
        assert esp.chip.identify().chip_type == "esp32c3"
