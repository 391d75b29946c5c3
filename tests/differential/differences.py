"""Where QEMU and the simulated chip differ, and why. docs/qemu.md tells the same in words."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """One question that both answer, and answer differently.

    Attributes:
        chips: of which this is true.
        question: as the tests name it: group and question.
        qemu, simulated: what each says.
    """

    chips: tuple[str, ...]
    question: str
    qemu: str
    simulated: str
    why: str


ALL = ("esp32", "esp32c3", "esp32s3")

_FLASH = "QEMU's flash is of Winbond's old W25X family, the simulated one of GigaDevice's GD25Q"

DIFFERENCES = (
    Difference(ALL, "identity: flash_id", str(0x1530EF), str(0x1540C8), _FLASH),
    Difference(ALL, "status: flash_id", str(0x1530EF), str(0x1540C8), _FLASH),
    Difference(ALL, "flash_chip: flash_id", str(0x1530EF), str(0x1540C8), _FLASH),
    Difference(ALL, "flash_chip: manufacturer", str(0xEF), str(0xC8), _FLASH),
    Difference(ALL, "flash_chip: device", str(0x3015), str(0x4015), _FLASH),
    Difference(ALL, "sfdp: size", "None", str(2 * 1024 * 1024), "QEMU's flash does not know the command 0x5A"),
    Difference(
        ("esp32",),
        "rom: read slowly",
        str([f"0x0e ok {bytes(64).hex()}"]),
        str([f"0x0e ok {64 * 'ff'}"]),
        "the ESP32's ROM reads zeros from QEMU's flash; the stub, and a boot, read it right",
    ),
)


def expected(chip, group):
    """Return the differences of one group of questions on *chip*: question -> (QEMU's answer, the simulated chip's)."""
    return {
        known.question: (known.qemu, known.simulated)
        for known in DIFFERENCES
        if chip in known.chips and known.question.startswith(f"{group}: ")
    }


def found(group, real, simulated):
    """Return the same of two answers, which are dicts; a question that only one was asked counts."""
    return {
        f"{group}: {question}": (str(real.get(question)), str(simulated.get(question)))
        for question in real.keys() | simulated.keys()
        if real.get(question) != simulated.get(question)
    }
