"""Memory and registers: what can be read, what is refused, and that the maps agree with what others know."""

import pytest
from esptool.targets import CHIP_DEFS, CHIP_LIST

from pytest_esp.errors import OperationError
from pytest_esp.operations.diagnostics.soc import soc_of

KNOWN = ("esp32", "esp32s2", "esp32s3", "esp32c2", "esp32c3", "esp32c5", "esp32c6", "esp32c61", "esp32h2", "esp32p4")
RAM = {"esp32": 0x3FFB0000, "esp32s3": 0x3FC90000, "esp32c3": 0x3FC90000, "esp32c6": 0x40810000}


# -- the maps


@pytest.mark.parametrize(
    ("chip", "constant", "names"),
    [
        (chip, constant, names)
        for constant, names in [
            ("UART_CLKDIV_REG", ("UART_CLKDIV", "UART_CLKDIV_SYNC")),
            ("GPIO_STRAP_REG", ("GPIO_STRAP",)),
            ("RTC_CNTL_WDTCONFIG0_REG", ("RTC_CNTL_WDTCONFIG0", "LP_WDT_CONFIG0")),
            ("RTC_CNTL_SWD_CONF_REG", ("RTC_CNTL_SWD_CONF", "LP_WDT_SWD_CONFIG")),
            ("PCR_SYSCLK_CONF_REG", ("PCR_SYSCLK_CONF",)),
        ]
        for chip in KNOWN
        if constant in vars(CHIP_DEFS[chip])  # what esptool inherits from another chip may be wrong
    ],
)
def test_registers_lie_where_esptool_has_them(chip, constant, names):
    assert soc_of(chip).register(*names).address == getattr(CHIP_DEFS[chip], constant)


@pytest.mark.parametrize("chip", CHIP_LIST)
def test_every_register_can_be_read_by_the_map(chip):
    for revision in (0, 300):
        soc = soc_of(chip, revision)
        assert soc.registers or chip not in KNOWN
        for register in soc.registers:
            (area,) = soc.areas_of(register.address, register.address + 4)
            assert area.kind == "registers", register.name
            assert sum(field.width for field in register.fields) <= 32 * 2
            assert all(field.lsb + field.width <= 32 for field in register.fields)


@pytest.mark.parametrize("chip", KNOWN)
def test_efuses_and_flash_controller_are_mapped(chip):
    rom = CHIP_DEFS[chip]
    efuses = rom.EFUSE_RD_REG_BASE if chip == "esp32" else rom.MAC_EFUSE_REG
    for address in (rom.SPI_REG_BASE, efuses):
        assert soc_of(chip).areas_of(address, address + 4)[0].kind == "registers"


# -- memory


def test_what_was_written_is_read(esp):
    chip = esp.link.board.chip
    start = RAM[chip]
    with esp.link.session.use("writing memory", stub=False) as loader:
        for index in range(8):
            loader.write_reg(start + 4 * index, int.from_bytes(b"abcdefgh"[index : index + 1] * 4, "little"))
    dump = esp.diagnostics.memory_dump(start + 2, 7)
    assert (dump.data, dump.size, dump.areas) == (b"aabbbbc", 7, ("DRAM",))
    text = esp.diagnostics.memory_dump(start, 32).hexdump.splitlines()
    assert text[0] == f"{start:08x}  61 61 61 61 62 62 62 62 63 63 63 63 64 64 64 64  aaaabbbbccccdddd"
    assert len(text) == 2


def test_it_is_saved(esp_of, tmp_path):
    esp = esp_of("esp32c3")
    path = tmp_path / "ram.bin"
    dump = esp.diagnostics.memory_dump("0x3fc90000", "1KB", path)
    assert (path.read_bytes(), dump.output_file) == (dump.data, path)
    with pytest.raises(OperationError, match="exists already"):
        esp.diagnostics.memory_dump("0x3fc90000", "1KB", path)
    esp.diagnostics.memory_dump("0x3fc90000", 16, path, overwrite=True)
    assert path.stat().st_size == 16


@pytest.mark.parametrize(
    ("address", "size", "error"),
    [
        (0x0, 4, "nothing is mapped at 0x0"),
        (0x10000000, 4, "nothing is mapped"),
        (0x3FCDFFF0, 32, "nothing is mapped at 0x3fce0000"),  # begins in RAM, ends behind it
        (0x42000000, 16, "0x42000000 is in IROM, which cannot be read now: it shows flash"),
        (0x60006000, 4, "belongs to the radio"),
        (0x3FC90000, 0, "0 bytes"),
        (0x3FC90000, "2MB", "cannot read"),
        (0xFFFFFFFC, 8, "cannot read"),
        ("here", 4, "invalid address"),
    ],
)
def test_what_is_refused_before_the_wire_is_touched(esp_of, address, size, error):
    esp = esp_of("esp32c3")
    with pytest.raises(OperationError, match=error):
        esp.diagnostics.memory_dump(address, size)
    assert not esp.link.is_open


def test_the_refusal_says_what_is_near(esp_of):
    with pytest.raises(OperationError) as caught:
        esp_of("esp32").diagnostics.memory_dump(0x3FFA0000, 4)
    assert "DRAM" in caught.value.hint
    with pytest.raises(OperationError) as caught:
        esp_of("esp32s3").diagnostics.memory_dump(0x3C000000, 4)
    assert caught.value.hint == "read the flash itself, by its own address"


@pytest.mark.in_process
def test_secure_download_mode_shows_nothing(esp_of):
    for call in (lambda esp: esp.diagnostics.memory_dump(0x3FC90000, 4), lambda esp: esp.diagnostics.register_dump()):
        with pytest.raises(OperationError, match="cannot be read in secure download mode"):
            call(esp_of("locked"))


# -- registers


def test_registers_with_their_fields(esp):
    chip = esp.link.board.chip
    with esp.link.session.use("setting a register", stub=False) as loader:
        loader.write_reg(soc_of(chip).register("STORE4").address, 0xDEADBEEF)
    dump = esp.diagnostics.register_dump()
    assert (dump.chip_type, len(dump.registers) > 40) == (chip, True)
    assert next(state.value for state in dump.registers if state.name.endswith("STORE4")) == 0xDEADBEEF
    clock = next(state for state in dump.registers if state.name.startswith("UART_CLKDIV"))
    divider = next(value for name, value in clock.fields.items() if name.endswith("CLKDIV"))
    assert divider == pytest.approx(40e6 * CHIP_DEFS[chip].XTAL_CLK_DIVIDER / 115200, rel=0.05)
    assert "components/soc" in dump.source


@pytest.mark.in_process
def test_some_of_them_by_name(esp_of):
    dump = esp_of("esp32c3").diagnostics.register_dump("gpio")
    assert [state.name for state in dump.registers] == [
        "GPIO_OUT",
        "GPIO_ENABLE",
        "GPIO_STRAP",
        "GPIO_IN",
        "GPIO_STATUS",
    ]
    with pytest.raises(OperationError, match="no register begins with 'GPOI'") as caught:
        esp_of("esp32c3").diagnostics.register_dump("GPOI")
    assert "GPIO" in caught.value.hint


def test_an_esp8266_and_a_chip_that_nobody_knows(esp_of):
    dump = esp_of("esp8266").diagnostics.register_dump()
    assert [state.name for state in dump.registers][:2] == ["OTP_MAC0", "OTP_MAC1"]
    with pytest.raises(OperationError, match="the registers of the esp32e22 are unknown"):
        esp_of("esp32e22").diagnostics.register_dump()


@pytest.mark.qemu
@pytest.mark.parametrize(("chip", "strap"), [("esp32", 0x0F), ("esp32c3", 0x02)])
def test_on_qemu_every_register_answers(qemu_esp, chip, strap):
    esp = qemu_esp(chip)
    dump = esp.diagnostics.register_dump()
    assert len(dump.registers) == len(soc_of(chip).registers)
    assert dump["GPIO_STRAP"].value == strap
    assert dump.reset_reason == "CHIP_POWER_ON"
    rom = esp.diagnostics.memory_dump(0x40000000, 64)
    assert (rom.areas[0], len(set(rom.data)) > 8) == ("IROM" if chip == "esp32" else "IROM_MASK", True)
    assert esp.chip.identify().chip_type == chip  # the link has survived it
