"""The operations give the same results on a simulated chip and on QEMU's machine of that chip."""

import dataclasses
import random

import pytest
from differences import expected, found

from pytest_esp.errors import EspError

_ABOUT_THE_LINK = ("stub_loaded", "connection_time_seconds")
_WHOLE_AFTER = ("write the last word", "erase all")  # an MD5 of all 2 MB takes QEMU seconds
_BURNS = {
    "esp32": [("JTAG_DISABLE", 1), ("CONSOLE_DEBUG_DISABLE", 1)],
    "esp32c3": [("DIS_PAD_JTAG", 1), ("SECURE_VERSION", 3)],
    "esp32s3": [("DIS_PAD_JTAG", 1), ("SECURE_VERSION", 3)],
}


def fields(result):
    return {
        field.name: getattr(result, field.name)
        for field in dataclasses.fields(result)
        if field.name not in _ABOUT_THE_LINK
    }


def answer(operation, *args):
    """Return the fields of a result, or the message of an error without the board's name."""
    try:
        return fields(operation(*args))
    except EspError as error:
        return {"error": error.message}


def check(pair, **questions):
    """Ask groups of questions, and compare what differs with what is known to."""
    differing, known = {}, {}
    for group, question in questions.items():
        differing |= found(group, *pair.ask(question))
        known |= expected(pair.chip, group)
    assert differing == known


def efuses(esp):
    return {
        name: (fuse.value, fuse.bits, fuse.readable, fuse.writeable)
        for name, fuse in esp.efuse.read_all().fields.items()
    }


def test_who_they_are_and_how_they_are_locked(pair):
    check(
        pair,
        identity=lambda esp: answer(esp.chip.identify),
        flash_chip=lambda esp: answer(esp.flash.info),
        status=lambda esp: answer(esp.flash.status),
        sfdp=lambda esp: {"size": answer(esp.flash.sfdp_read).get("size")},
        size=lambda esp: {"size": answer(esp.flash.size_detect).get("size")},
        security_info=lambda esp: answer(esp.security.info),
        posture=lambda esp: answer(esp.security.posture),
    )


def test_every_efuse_before_and_after_the_same_burns(pair):
    check(pair, efuses=efuses)
    for name, value in _BURNS[pair.chip]:
        check(pair, burn=lambda esp, name=name, value=value: answer(esp.efuse.burn, name, value))
    check(pair, efuses=efuses, posture=lambda esp: answer(esp.security.posture))


def test_what_clocks_the_uart_and_times_a_burn(pair):
    """The stub raises the ESP32's clock; a burn after it is the ROM's, at the crystal's."""

    def clock(esp, *, stub):
        with esp.link.session.use("measuring the clock", stub=stub) as loader:
            divider = loader.read_reg(loader.UART_CLKDIV_REG) & loader.UART_CLKDIV_MASK
            return {"stub": loader.IS_STUB, "megahertz": round(divider * esp.link.port.baudrate / 1e6, -1)}

    check(pair, with_stub=lambda esp: clock(esp, stub=True))
    name, value = _BURNS[pair.chip][0]
    check(pair, burn=lambda esp: answer(esp.efuse.burn, name, value))
    check(pair, after_burn=lambda esp: clock(esp, stub=False))
    check(pair, with_stub=lambda esp: clock(esp, stub=True))


def test_the_same_writes_and_erases_leave_the_same_flash(pair):
    if pair.chip == "esp32s3":
        pytest.skip("not within a minute on QEMU's ESP32-S3")
    noise = random.Random(1).randbytes(0x2801)
    end = 0x200000
    steps = {
        "write": lambda flash: flash.write(noise, 0x10000, over="wire"),
        "write over it, unaligned": lambda flash: flash.write(noise[:333], 0x10123, over="wire"),
        "erase": lambda flash: flash.erase(0x11000, 0x1000, over="wire"),
        "erase half a sector": lambda flash: flash.erase(0x10000, 0x800, over="wire"),
        "write the last word": lambda flash: flash.write(b"last", end - 4, over="wire"),
        "read beyond the end": lambda flash: flash.read(end - 16, 32, over="wire"),
        "md5 beyond the end": lambda flash: flash.md5(end - 16, 32, over="wire"),
        "erase beyond the end": lambda flash: flash.erase(end, 0x1000, over="wire"),
        "write beyond the end": lambda flash: flash.write(b"abcd", end, over="wire"),
        "erase all": lambda flash: flash.erase("all", over="wire"),
    }
    regions = [(0, 0x1000), (0x10000, 0x3000), (0x10123, 333), (0x10001, 3), (end - 0x1000, 0x1000)]

    def ask(esp):
        answers = {}
        for name, step in steps.items():
            said = answer(step, esp.flash)
            said.pop("elapsed_seconds", None)
            answers[name] = said
            for address, size in [*regions, *([(0, end)] if name in _WHOLE_AFTER else [])]:
                answers[f"{name}: md5 of {size} at {address:#x}"] = esp.flash.md5(address, size, over="wire").md5
        return answers

    check(pair, flash=ask)


@pytest.mark.parametrize("to", ["bootloader", "app"])
def test_a_reset_leads_where_it_should(pair, to):
    def ask(esp):
        result = esp.chip.reset(to, wait_seconds=20.0)
        return {"mode": result.mode, "then": answer(esp.chip.identify).get("mac")}

    check(pair, reset=ask)
