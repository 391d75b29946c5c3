"""Operations on the chip itself: who it is, how it is reset, what its registers say."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any, Literal

from esptool.cmds import DETECTED_FLASH_SIZES

from pytest_esp.errors import LinkError, OperationError
from pytest_esp.link.console import ConsoleError
from pytest_esp.link.link import Link
from pytest_esp.operations.registry import Effect, operation, size_argument
from pytest_esp.units import parse_size

_BOOT_TIMEOUT = 3.0
_HIGHEST_BAUDRATE = 20_000_000  # beyond any UART of these chips; boards.toml has the same limit
# What a chip says first: the ROM's banner, of any generation.
_ROM_BANNER = re.compile(rb"ESP-ROM:|ets [A-Z][a-z]{2} [ 0-9]\d \d{4}|rst:0x|rst cause")


@dataclass(frozen=True)
class ChipIdentity:
    """Who answers.

    Attributes:
        chip: as esptool names it, e.g. ``"esp32c3"``.
        description: with package and revision, e.g. ``"ESP32-C3 (QFN32) (revision v0.4)"``.
        package: product and package, e.g. ``"ESP32-C3 (QFN32)"``.
        revision: major * 100 + minor; None where the chip does not tell (secure download mode, ESP8266).
        mac: base MAC address, ``"7c:df:a1:00:00:01"``; None in secure download mode.
        features: as esptool lists them.
        crystal_mhz: frequency of the crystal; None in secure download mode.
        flash_id: manufacturer, type and capacity as RDID gives them; None in secure download mode.
        flash_size: bytes, by the id; None if it is unknown.
        secure_download: whether the ROM is in secure download mode.
        stub: whether esptool's stub flasher runs.
        connect_seconds: how long it took until the chip answered; 0 on a warm link.
    """

    chip: str
    description: str
    package: str
    revision: int | None
    mac: str | None
    features: tuple[str, ...]
    crystal_mhz: int | None
    flash_id: int | None
    flash_size: int | None
    secure_download: bool
    stub: bool
    connect_seconds: float


@operation(Effect.READ)
def identify(link: Link) -> ChipIdentity:
    """Return who the chip is: type, revision, MAC address, features, crystal and flash.

    Source: the getters of esptool's target classes.

    Raises:
        LinkError: if it does not answer; WrongChipError: if it is not the chip that boards.toml promises.
    """
    session = link.session
    begun = time.monotonic()
    warm = session.is_connected
    with session.use("identify", stub=not link.board.uploads_slowly, flash=True) as esp:
        connected = 0.0 if warm else time.monotonic() - begun
        if esp.secure_download_mode:
            return _identity_of_a_locked_chip(session.chip, esp, connected)
        flash_id = int(esp.flash_id())
        description = str(esp.get_chip_description())
        return ChipIdentity(
            chip=session.chip,
            description=description,
            package=description.rpartition(" (revision")[0] or description,
            revision=None if session.chip == "esp8266" else esp.get_chip_revision(),
            mac=bytes(esp.read_mac("BASE_MAC")).hex(":"),
            features=tuple(esp.get_chip_features()),
            crystal_mhz=esp.get_crystal_freq(),
            flash_id=flash_id,
            flash_size=flash_size_of(flash_id),
            secure_download=False,
            stub=esp.IS_STUB,
            connect_seconds=connected,
        )


def _identity_of_a_locked_chip(chip: str, esp: Any, connected: float) -> ChipIdentity:
    """Return what the ROM still tells in secure download mode: no register can be read."""
    return ChipIdentity(
        chip=chip,
        description=esp.CHIP_NAME,
        package=esp.CHIP_NAME,
        revision=None,
        mac=None,
        features=(),
        crystal_mhz=None,
        flash_id=None,
        flash_size=None,
        secure_download=True,
        stub=esp.IS_STUB,
        connect_seconds=connected,
    )


def flash_size_of(flash_id: int) -> int | None:
    """Return the size in bytes that a flash id stands for (``esptool.cmds.DETECTED_FLASH_SIZES``), if it is known."""
    name = DETECTED_FLASH_SIZES.get(flash_id >> 16)
    return parse_size(name) if name else None


@dataclass(frozen=True)
class ResetResult:
    """What the chip did after a reset.

    Attributes:
        mode: where it is now.
        seconds: from the reset to the proof.
        output: what the console said (to the app only), without ANSI sequences.
    """

    mode: Literal["app", "bootloader"]
    seconds: float
    output: str


@operation(Effect.READ)
def reset(link: Link, to: Literal["app", "bootloader"] = "app", wait: float = _BOOT_TIMEOUT) -> ResetResult:
    """Reset the chip into the app or the bootloader, and check by what it then does.

    The bootloader proves itself by an answer to SYNC, the app by the ROM's banner on the console.

    Args:
        to: where to.
        wait: seconds that the app has for its banner.

    Raises:
        LinkError: if the proof does not come.
        OperationError: for another *to*.
    """
    begun = time.monotonic()
    if to == "bootloader":
        link.reset(bootloader=True)
        return ResetResult("bootloader", time.monotonic() - begun, "")
    if to != "app":
        raise OperationError(f"there is no reset to {to!r}", hint="use 'app' or 'bootloader'")
    console = link.console
    console.skip()  # the banner of an earlier boot proves nothing
    start = len(console.text)
    link.reset(bootloader=False)
    try:
        console.expect(_ROM_BANNER, timeout=wait)
    except ConsoleError as error:
        raise LinkError(
            "it did not start: no boot banner came",
            attempted="reset to the app",
            hint="a chip whose console is not on this port (USB) says nothing here; else check EN and its supply",
        ) from error
    return ResetResult("app", time.monotonic() - begun, console.text[start:])


@dataclass(frozen=True)
class LinkSpeed:
    """The baud rate at which the chip answers."""

    baudrate: int


@operation(Effect.READ)
def change_baudrate(link: Link, baudrate: int) -> LinkSpeed:
    """Go on at *baudrate*, once the chip has answered at that rate.

    Raises:
        LinkError: if it does not.
        OperationError: on a ROM that cannot change it (ESP8266 without stub), or if it is no baud rate.
    """
    if not 0 < baudrate <= _HIGHEST_BAUDRATE:
        raise OperationError(f"{baudrate} is no baud rate", hint="usual ones: 115200, 460800, 921600")
    link.session.change_baudrate(baudrate)
    return LinkSpeed(baudrate)


@dataclass(frozen=True)
class RegisterValue:
    """The 32-bit word at an address."""

    address: int
    value: int


@operation(Effect.READ)
def read_register(link: Link, address: int | str) -> RegisterValue:
    """Return the 32-bit word at *address* (``ESPLoader.read_reg``).

    Raises:
        OperationError: if the address is no multiple of 4, or the chip does not let it be read.
    """
    number = size_argument(address, "address")
    if number % 4 or number >= 1 << 32:
        raise OperationError(f"{number:#x} is no address of a register", hint="a multiple of 4 below 0x100000000")
    with link.session.use(f"reading the register at {number:#x}", stub=False) as esp:
        return RegisterValue(number, int(esp.read_reg(number)))
