"""Faults of virtual boards, and of a port that counts as real: operations fail with clear errors, and recover."""

import os
import socket
import time

import pytest

from pytest_esp.boards.faults import BoardFaults
from pytest_esp.boards.registry import make_board
from pytest_esp.errors import BackendError, EspError, LinkError, OperationError, PortError, RackError, WrongChipError
from pytest_esp.link.fast import FastLoader
from pytest_esp.sim.chip import SimChip
from pytest_esp.wire.endpoints import serve
from pytest_esp.wire.faults import Fault
from pytest_esp.wire.reset import SLOW_HOST_RISE_TIME

DATA = os.urandom(40_000)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(FastLoader, "longest_wait", 1.0)  # a busy machine answers late, too


@pytest.fixture
def esp(make_esp):
    found = make_esp(backend="sim", chip="esp32c3", flash_size="4MB")
    found.chip.identify()
    return found


@pytest.fixture
def faults(esp):
    return BoardFaults(esp.link.board)


def works(esp):
    esp.flash.write([(0x10000, DATA)])
    assert esp.flash.verify([(0x10000, DATA)]).matches


# -- the wire


@pytest.mark.parametrize("direction", ["to_device", "to_host"])
@pytest.mark.parametrize("fault", [{"lose": 0.01}, {"double": 0.01}, {"corrupt": 0.01}, {"cut": 0.5}])
def test_spoilt_bytes_are_noticed(esp, faults, direction, fault):
    setattr(faults, direction, Fault(**fault, seed=5))
    with pytest.raises(EspError):
        esp.flash.write([(0x10000, DATA)])
    faults.end()
    works(esp)


def test_latency_only_takes_longer(esp, faults):
    esp.flash.md5(0, 0x1000)
    faults.to_host.latency = faults.to_device.latency = 0.05
    begun = time.monotonic()
    esp.flash.md5(0, 0x1000)
    assert time.monotonic() - begun > 0.1
    faults.end()
    works(esp)


def test_latency_keeps_the_order():
    heard = bytearray()
    fault = Fault(latency=0.05)
    for number in range(20):
        fault.carry(bytes([number]), heard.extend)
    fault.latency = 0.0
    fault.carry(b"!", heard.extend)
    assert not heard
    deadline = time.monotonic() + 5
    while len(heard) < 21 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert heard == bytes(range(20)) + b"!"


def test_a_port_that_vanishes_in_the_middle_of_a_write_and_returns(esp, faults):
    faults.vanish_after, faults.vanish_seconds = faults.sent + 20_000, 0.5
    with pytest.raises(PortError, match="its cable was pulled") as caught:
        esp.flash.write([(0x10000, DATA)])
    assert caught.value.details["regions"][0]["state"] == "partly"
    with pytest.raises(PortError, match="vanished"):
        esp.chip.identify()
    time.sleep(0.6)
    works(esp)


def test_a_port_that_vanishes_is_gone_for_other_programs_too(esp, faults):
    with pytest.raises(BackendError, match="open virtual board"):
        BoardFaults(make_board(esp.link.board.spec, esp.link.board.rack))
    endpoint = esp.link.board.serve("socket://127.0.0.1:0")
    try:
        client = connect(endpoint.url)
        faults.vanish()
        assert client.recv(100) == b""
        assert connect(endpoint.url).recv(100) == b""
        faults.come_back()
        again = connect(endpoint.url)
        esp.link.board.reset(bootloader=False)
        assert again.recv(100)
        again.close()
    finally:
        endpoint.close()


def connect(url):
    host, port = url.removeprefix("socket://").split(":")
    client = socket.create_connection((host, int(port)), timeout=5)
    time.sleep(0.05)
    return client


@pytest.mark.parametrize("cause", ["reset", "brownout"])
def test_a_reset_in_the_middle_of_a_write(esp, faults, cause):
    faults.reset_after, faults.reset_cause = faults.sent + 20_000, cause
    with pytest.raises(LinkError) as caught:
        esp.flash.write([(0x10000, DATA)])
    assert caught.value.details["regions"][0]["state"] == "partly"
    works(esp)


def test_what_a_chip_says_after_a_reset_is_no_answer(esp, faults):
    """It boots over and over, and its words keep coming."""
    esp.flash.erase(0, 0x10000)
    esp.efuse.read("MAC")
    faults.boot_loop = 0.05
    faults.reset_after = faults.sent
    begun = time.monotonic()
    with pytest.raises(LinkError, match="invalid header"):
        esp.efuse.read("MAC")
    assert time.monotonic() - begun < 20
    faults.end()
    works(esp)


def test_a_brownout_in_the_app_fails_the_waiting_test(esp, faults, firmware_folder):
    esp.flash.write(firmware_folder / "hello_world_esp32c3")
    console = esp.link.boot()
    faults.reset("brownout")
    with pytest.raises(EspError, match=r"[Bb]rownout"):
        console.expect("never", timeout=5)


def test_a_boot_loop_is_told_and_the_loader_still_answers(esp, faults, firmware_folder):
    esp.flash.write(firmware_folder / "hello_world_esp32c3")
    faults.boot_loop = 0.1
    console = esp.link.boot()
    with pytest.raises(EspError, match=r"boot loop|watchdog"):
        console.expect("never", timeout=10)
    works(esp)


# -- the chip


def test_secure_download_mode(esp, faults):
    works(esp)
    faults.secure_download()
    assert esp.security.posture().download_mode == "secure"
    with pytest.raises(OperationError):
        esp.efuse.read_all()
    faults.end()
    assert esp.security.posture().download_mode == "enabled"
    works(esp)


def test_stuck_bits_are_found_by_the_verification(esp, faults):
    faults.stuck(0x10000 + 77, 0xFF)
    with pytest.raises(OperationError) as caught:
        esp.flash.write([(0x10000, b"\xff" * 77 + b"\x55" + b"\x00" * 1000)])
    assert caught.value.details["regions"][0]["state"] != "written"
    faults.end()
    works(esp)


def test_a_wrong_chip(esp, faults):
    works(esp)
    faults.wrong_chip("esp32s3")
    with pytest.raises(WrongChipError, match="ESP32-S3, not an ESP32-C3"):
        esp.chip.identify()
    faults.end()
    works(esp)


# -- by spec


def test_faults_of_an_entry_are_there_from_the_start(make_esp):
    esp = make_esp(backend="sim", chip="esp32c3", faults={"secure_download": True, "stuck": {"0x10000": 1}})
    assert esp.security.posture().download_mode == "secure"
    assert esp.link.board.simulated.flash.stuck == {0x10000: 1}
    with pytest.raises(WrongChipError, match="ESP32, not an ESP32-S2"):
        make_esp(backend="sim", chip="esp32s2", faults={"wrong_chip": "esp32"}).chip.identify()
    with pytest.raises(EspError):
        make_esp(backend="sim", chip="esp32c3", faults={"to_host": {"silent_after": 100}}).flash.read(0, 0x1000)


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"to_host": {"lose": 2}}, "less than or equal to 1"),
        ({"lose": 0.1}, "unknown key `lose`"),
        ({"stuck": {"here": 1}}, "match pattern"),
        ({"reset_cause": "x"}, "brownout"),
    ],
)
def test_a_wrong_entry_is_refused(make_esp, faults, words):
    with pytest.raises(RackError, match=words):
        make_esp(backend="sim", chip="esp32c3", faults=faults)


# -- a real port, by a proxy


@pytest.fixture
def real(make_esp):
    """Operations on a board that counts as real, whose entry asks for the proxy."""
    chip = SimChip("esp32c3", rise_time=SLOW_HOST_RISE_TIME)
    chip.reset(bootloader=False)
    endpoint = serve(chip.wire, "rfc2217://127.0.0.1:0")
    yield make_esp(backend="serial", chip="esp32c3", port=endpoint.url, faults={})
    endpoint.close()
    chip.close()


def test_a_real_port_works_through_the_proxy(real):
    works(real)
    assert real.chip.reset("app").mode == "app"


def test_a_real_port_is_spoilt_by_the_proxy(real):
    real.chip.identify()
    faults = BoardFaults(real.link.board)
    faults.to_host = Fault(silent_after=100)
    with pytest.raises(LinkError, match="does not answer"):
        real.flash.write([(0x10000, DATA)])
    faults.end()
    faults = BoardFaults(real.link.board)
    faults.vanish_after, faults.vanish_seconds = 5000, 0.3
    with pytest.raises(PortError, match="its cable was pulled"):
        real.flash.write([(0x10000, DATA)])
    time.sleep(0.4)
    works(real)


def test_what_only_a_simulated_chip_can_do(real):
    real.chip.identify()
    with pytest.raises(BackendError, match="only supported on a simulated chip"):
        BoardFaults(real.link.board).wrong_chip("esp32")
