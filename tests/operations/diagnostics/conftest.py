"""Dumps and boards for the tests of diagnostics."""

import hashlib
import re
import struct
from pathlib import Path

import pytest

LOGS = Path(__file__).parents[2] / "link" / "data"


@pytest.fixture
def qemu_esp(need_qemu, make_esp):
    """Make a QEMU machine: a function from its chip to the operations on it."""

    def make(chip):
        need_qemu(chip)
        return make_esp(backend="qemu", chip=chip, flash_size="4MB")

    return make


@pytest.fixture
def esp32_log():
    """The console of a real app on QEMU that crashed and dumped to the UART."""
    return LOGS / "coredump_uart_esp32.log"


@pytest.fixture
def crashed_esp32(firmware_folder):
    """The ELF file of that app."""
    return firmware_folder / "coredump_uart_esp32" / "hello_world.elf"


@pytest.fixture
def crashed_esp32c3(firmware_folder):
    """The ELF file of the app that panics on an ESP32-C3."""
    return next((firmware_folder / "panic_esp32c3").glob("*.elf"))


@pytest.fixture
def riscv_dump(crashed_esp32c3):
    """What that app would have dumped, had it been built so: registers and stack of its real panic."""
    text = (LOGS / "panic_esp32c3.log").read_text(errors="replace")
    text = text[text.index("Guru Meditation") :]
    text = text[: text.index("Rebooting")]
    registers = {name: int(value, 16) for name, value in re.findall(r"\b([A-Z0-9/]+) *: 0x([0-9a-f]{8})", text)}
    stack = {}
    for row in re.finditer(r"^([0-9a-f]{8}):((?: 0x[0-9a-f]{8})+)", text, re.MULTILINE):
        for index, word in enumerate(row[2].split()):
            stack[int(row[1], 16) + 4 * index] = int(word, 16)
    sha = hashlib.sha256(crashed_esp32c3.read_bytes()).hexdigest()[:9]
    return make_riscv_dump(registers, stack, sha)


def make_riscv_dump(registers, stack, elf_sha256, *, tcb=0x3FC90000, reason="Store access fault"):
    names = "MEPC RA SP GP TP T0 T1 T2 S0/FP S1 A0 A1 A2 A3 A4 A5 A6 A7 S2 S3 S4 S5 S6 S7 S8 S9 S10 S11 T3 T4 T5 T6"
    words = [registers[name] for name in names.split()]
    status = bytearray(204)
    struct.pack_into("<I", status, 24, tcb)
    struct.pack_into("<32I", status, 72, *words)
    notes = note("CORE", 1, bytes(status))
    info = note("ESP_CORE_DUMP_INFO", 8266, struct.pack("<I", 0x50104) + elf_sha256.encode().ljust(68, b"\0"))
    info += note("ESP_EXTRA_INFO", 677, struct.pack("<II", tcb, 0))
    info += note("ESP_PANIC_DETAILS", 679, reason.encode() + b"\0")
    block = bytearray(0x80)
    block[52:57] = b"main\0"
    memory = struct.pack(f"<{len(stack)}I", *[stack[address] for address in sorted(stack)])
    core = elf_core([(min(stack), memory, 1), (tcb, bytes(block), 1), (0, notes, 4), (0, info, 4)], machine=243)
    head = struct.pack("<III", 12 + len(core) + 32, 5 << 16 | 0x0104, 4)
    return head + core + hashlib.sha256(head + core).digest()


def note(name, kind, content):
    text = name.encode() + b"\0"
    pad = lambda data: data + b"\0" * (-len(data) % 4)  # noqa: E731
    return struct.pack("<III", len(text), len(content), kind) + pad(text) + pad(content)


def elf_core(segments, machine):
    head = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIIIIIHHHHHH", 4, machine, 1, 0, 52, 0, 0, 52, 32, len(segments), 0, 0, 0)
    offset, table, body = 52 + 32 * len(segments), b"", b""
    for address, data, kind in segments:
        table += struct.pack("<8I", kind, offset + len(body), address, address, len(data), len(data), 6, 4)
        body += data
    return head + table + body
