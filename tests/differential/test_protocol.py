"""The ROM's loader and the stub flasher give the same answers to the same packets, on QEMU and simulated.

On QEMU it is the chip's own ROM, and esptool's own stub, that answer.
"""

import hashlib
import struct

import pytest
from conversations import SYNC, conversations
from differences import expected, found

from pytest_esp.wire.framing import Decoder, encode

_FIRST_ANSWER, _QUIET = 1.5, 0.08  # seconds: an answer must begin, and a pause ends it
_MOST_ANSWERS = 8  # to a SYNC
_HAS_VALUE = (0x08, 0x0A)  # SYNC and READ_REG: that of other answers means nothing


class Host:
    """Talks to a loader packet by packet."""

    def __init__(self, esp, *, stub):
        self._esp = esp
        self._stub = stub
        self.restart()

    def restart(self):
        self._esp.link.reset(bootloader=True)
        with self._esp.link.session.use("talking to the loader", stub=self._stub, flash=True) as loader:
            self._port = loader._port

    def talk(self, packets):
        """Return the answers, as text, after a SYNC; the loader is restarted if it has gone in the end."""
        for _ in range(2):  # the first one ends what went on before
            self._exchange(SYNC)
        answers = [self._exchange(packet) for packet in packets]
        if not any(self._exchange(SYNC).startswith("8 times 0x08") for _ in range(2)):
            self.restart()
            answers.append("gone")
        return answers

    def _exchange(self, packet):
        self._port.reset_input_buffer()
        self._port.write(encode(packet))
        decoder, frames = Decoder(), []
        self._port.timeout = _FIRST_ANSWER
        while len(frames) < _MOST_ANSWERS and (data := self._port.read(self._port.in_waiting or 1)):
            self._port.timeout = _QUIET
            frames += decoder.feed(data)
        said = [self._describe(frame) for frame in frames]
        return f"8 times {said[0]}" if len(said) == 8 and len(set(said)) == 1 else ", ".join(said)

    def _describe(self, frame):
        if len(frame) < 10 or frame[0] != 1:
            return f"{len(frame)} bytes {hashlib.md5(frame).hexdigest()[:8]}"
        op, value = struct.unpack_from("<xBxxI", frame)
        status = frame[-2:] if self._stub else frame[-4:-2]
        payload = frame[8 : -2 if self._stub else -4]
        failed = bool(status[0])
        said = f"{op:#04x} {status.hex() if failed else 'ok'}"  # the ROM leaves old errors behind an "ok"
        if op in _HAS_VALUE and not failed:
            said += f" {value:#x}"
        return said + (f" {payload.hex()}" if payload and not failed else "")


@pytest.mark.parametrize("loader", ["rom", "stub"])
def test_the_loaders_answer_the_same(pair, loader):
    """What happens in uninitialised memory is not asked: data before any begin, and packets without their words."""
    if pair.chip == "esp32s3":
        pytest.skip("QEMU's ESP32-S3 loses bytes, and hangs, when it is sent wrong packets one after the other")
    stub = loader == "stub"
    questions = conversations(pair.chip, stub=stub)

    def ask(esp):
        host = Host(esp, stub=stub)
        return {name: host.talk(packets) for name, packets in questions.items()}

    real, simulated = pair.ask(ask)
    assert found(loader, real, simulated) == expected(pair.chip, loader)
