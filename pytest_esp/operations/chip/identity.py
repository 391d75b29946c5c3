"""Operations on the chip itself: identity, baud rate of its link, registers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from pytest_esp.errors import OperationError
from pytest_esp.formats.regions import size_argument
from pytest_esp.link.facts import features_of, flash_size_of, mac_of, revision_of, settle
from pytest_esp.link.link import Link
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.operations.results import Address
from pytest_esp.rack.facts import Facts
from pytest_esp.units import format_revision, format_size

_HIGHEST_BAUDRATE = 20_000_000  # beyond any UART of these chips; boards.toml has the same limit


@dataclass(frozen=True)
class ChipIdentity:
    """The identity of a chip.

    Attributes:
        chip_type: as esptool names it, e.g. ``"esp32c3"``.
        chip_revision: ``"v0.4"``; None if the chip does not report it (secure download mode, ESP8266).
        revision: the same as a number: major * 100 + minor.
        description: with package and revision, e.g. ``"ESP32-C3 (QFN32) (revision v0.4)"``.
        package: product and package, e.g. ``"ESP32-C3 (QFN32)"``.
        mac_address: base MAC address, ``"7c:df:a1:00:00:01"``; None in secure download mode.
        features: as listed by esptool.
        crystal_frequency: ``"40MHz"``; None in secure download mode.
        crystal_mhz: the same as a number.
        flash_id: manufacturer, type and capacity as returned by RDID; None in secure download mode.
        flash_size: from the flash id, e.g. ``"4MB"``; None if the id is unknown.
        flash_size_bytes: the same as a number.
        secure_download_mode: whether the ROM is in secure download mode.
        stub_loaded: whether esptool's stub flasher is running.
        connection_time_seconds: time until the chip answered; 0 if it was connected already.
    """

    chip_type: str
    chip_revision: str | None
    revision: int | None
    description: str
    package: str
    mac_address: str | None
    features: tuple[str, ...]
    crystal_frequency: str | None
    crystal_mhz: int | None
    flash_id: Address | None
    flash_size: str | None
    flash_size_bytes: int | None
    secure_download_mode: bool
    stub_loaded: bool
    connection_time_seconds: float


@operation(Effect.READ, group="chip")
def identify(link: Link) -> ChipIdentity:
    """Return the chip's identity: type, revision, MAC address, features, crystal and flash.

    Source: the getters of esptool's target classes.

    Raises:
        LinkError: if the chip does not answer. WrongChipError: if it is not the chip in boards.toml.
    """
    session = link.session
    begun = time.monotonic()
    warm = session.is_connected
    with session.use("identify", stub=not link.board.uploads_slowly, flash=True) as esp:
        connected = 0.0 if warm else round(time.monotonic() - begun, 4)
        if esp.secure_download_mode:
            return _identity_of_a_locked_chip(session.chip, esp, connected)
        flash_id = int(esp.flash_id())
        flash_size = flash_size_of(flash_id)
        description = str(esp.get_chip_description())
        revision = revision_of(esp, session.chip)
        crystal = int(esp.get_crystal_freq())
        features = tuple(esp.get_chip_features())
        mac = mac_of(esp)
        if not link.board.virtual:  # what was remembered of the chip, such as its flash, may have changed
            settle(link.board, Facts(session.chip, mac, revision, flash_size, crystal, features_of(features)))
        return ChipIdentity(
            chip_type=session.chip,
            chip_revision=None if revision is None else format_revision(revision),
            revision=revision,
            description=description,
            package=description.rpartition(" (revision")[0] or description,
            mac_address=mac,
            features=features,
            crystal_frequency=f"{crystal}MHz",
            crystal_mhz=crystal,
            flash_id=flash_id,
            flash_size=format_size(flash_size) if flash_size else None,
            flash_size_bytes=flash_size,
            secure_download_mode=False,
            stub_loaded=esp.IS_STUB,
            connection_time_seconds=connected,
        )


def _identity_of_a_locked_chip(chip: str, esp: Any, connected: float) -> ChipIdentity:
    """Return what the ROM still reports in secure download mode, where no register can be read."""
    return ChipIdentity(
        chip_type=chip,
        chip_revision=None,
        revision=None,
        description=esp.CHIP_NAME,
        package=esp.CHIP_NAME,
        mac_address=None,
        features=(),
        crystal_frequency=None,
        crystal_mhz=None,
        flash_id=None,
        flash_size=None,
        flash_size_bytes=None,
        secure_download_mode=True,
        stub_loaded=esp.IS_STUB,
        connection_time_seconds=connected,
    )


@dataclass(frozen=True)
class MacAddress:
    """The base MAC address, ``"7c:df:a1:00:00:01"``; None in secure download mode."""

    mac_address: str | None


@operation(Effect.READ, group="chip")
def read_mac(link: Link) -> MacAddress:
    """Return the chip's base MAC address.

    Raises:
        LinkError: if the chip does not answer. WrongChipError: if it is not the chip in boards.toml.
    """
    with link.session.use("reading the MAC address", stub=False) as esp:
        return MacAddress(mac_of(esp))


@dataclass(frozen=True)
class LinkSpeed:
    """The current baud rate of the link."""

    baud: int


@operation(Effect.READ, group="chip")
def change_baudrate(link: Link, baud: int) -> LinkSpeed:
    """Switch the link to another baud rate, and check that the chip answers at it.

    Args:
        baud: the new baud rate, e.g. 921600.

    Raises:
        LinkError: if the chip does not answer at it.
        OperationError: if the ROM cannot change it (ESP8266 without stub), or the baud rate is invalid.
    """
    check_baudrate(baud)
    link.session.change_baudrate(baud)
    return LinkSpeed(baud)


def check_baudrate(baudrate: int) -> None:
    """Check that a baud rate is valid.

    Raises:
        OperationError: if it is not.
    """
    if not 0 < baudrate <= _HIGHEST_BAUDRATE:
        raise OperationError(f"invalid baud rate {baudrate}", hint="use e.g. 115200, 460800 or 921600")


@dataclass(frozen=True)
class RegisterValue:
    """The 32-bit word at an address."""

    address: Address
    value: Address


@operation(Effect.READ, group="chip")
def read_register(link: Link, address: int | str) -> RegisterValue:
    """Return the 32-bit word at an address (``ESPLoader.read_reg``).

    Args:
        address: of the register, a multiple of 4, e.g. 0x3ff00000 or "0x3ff00000".

    Raises:
        OperationError: if the address is not a multiple of 4, or the chip does not allow reading it.
    """
    number = size_argument(address, "address")
    if number % 4 or number >= 1 << 32:
        raise OperationError(f"invalid register address {number:#x}", hint="use a multiple of 4 below 0x100000000")
    with link.session.use(f"reading the register at {number:#x}", stub=False) as esp:
        return RegisterValue(number, int(esp.read_reg(number)))
