"""The self-test as simulated chips play it: well, and with one thing wrong each."""

import re
import struct
import zlib

from pytest_esp import SimApp
from pytest_esp.operations.firmware.ram import self_test_image
from pytest_esp.wire.loop import call_later


def code_of(image):
    """Return address and contents of the last segment, by the layout of the image itself."""
    at, found = 24, (0, b"")
    for _ in range(image[1]):
        address, size = struct.unpack_from("<II", image, at)
        found = (address, image[at + 8 : at + 8 + size])
        at += 8 + size
    return found


class Passing(SimApp):
    """Answers as the program does on the ESP32-C3."""

    ram = "PASS 65536 bytes from 0x3fc98000"
    crc_error = 0
    uart_error = 0

    def say(self, *lines):
        self.send("".join(f"{line}\r\n" for line in lines).encode())

    def start(self):
        if self.boot is not None:  # it was started from flash
            return
        address, code = code_of(self_test_image("esp32c3"))
        crc = zlib.crc32(code) ^ self.crc_error
        self.say(
            "",
            "pytest-esp self-test 1.0 on esp32c3, revision 4",
            f"ram: {self.ram}",
            f"crc: PASS 0xcbf43926 code {address:#010x}..{address + len(code):#010x} {crc:#010x}",
            "timer: PASS 20 ms in 100 reads",
            "uart: send a line",
        )

    def receive(self, data):
        (line,) = re.findall(rb"(.*)\n", data)
        end = "FAIL 3 of 4" if self.ram.startswith("FAIL") else "PASS 4 of 4"
        crc = zlib.crc32(line) ^ self.uart_error
        self.say(f"uart: PASS {len(line)} bytes {crc:#010x}", f"self-test: {end}")


class BadRam(Passing):
    ram = "FAIL 0x3fc98010 holds 0x55aa33cd"


class BadCode(Passing):
    crc_error = 1


class BadUart(Passing):
    uart_error = 1


class Mute(SimApp):
    pass


class CrashLoop(SimApp):
    """Panics as soon as it runs, as the ESP32-C3 does, and restarts."""

    def start(self):
        self.send(
            b"Guru Meditation Error: Core  0 panic'ed (Store access fault). Exception was unhandled.\r\n"
            b"Core  0 register dump:\r\n"
            b"MEPC    : 0x42007a1e  RA      : 0x42007a1e  SP      : 0x3fc91f60  GP      : 0x3fc8b400\r\n"
            b"Rebooting...\r\n"
        )
        self.timer = call_later(0.05, lambda: self.restart("RTC_SW_CPU_RST"))

    def stop(self):
        self.timer.cancel()
