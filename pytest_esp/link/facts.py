"""Asks a connected chip what its board's entry does not say, and compares it with what the entry says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from esptool import cmds
from esptool.cmds import DETECTED_FLASH_SIZES

from pytest_esp.errors import WrongChipError
from pytest_esp.rack.facts import REPORTED_FEATURES, Facts, contradictions, last_seen, recall, remember
from pytest_esp.units import parse_size

if TYPE_CHECKING:
    from pytest_esp.boards.board import Board


def meet(board: Board, esp: Any, chip: str, notice: Callable[[str], object]) -> None:
    """Find out which chip a real board has, at the beginning of a connection.

    A chip that was seen before, on whatever port, is known by its MAC address and not asked again, unless the entry
    says something else: its flash may have been replaced.

    Args:
        board: gets the facts; the caller holds its lease.
        esp: esptool's loader object, which has just been connected.
        chip: as esptool names it.
        notice: called with a line for people if the port had another chip before.

    Raises:
        WrongChipError: if the entry pins another MAC address, or gives a wrong value.
    """
    mac = mac_of(esp)
    pinned = board.spec.mac
    if pinned is not None and mac != pinned:
        raise WrongChipError(
            f"the chip has the MAC address {mac or '(unknown: secure download mode)'}, "
            f"but boards.toml says mac = {pinned!r}",
            board=board.name,
            hint="check which board is plugged into this port, or correct or remove `mac` in the board's entry",
        )
    before = last_seen(board.spec, board.rack)
    known = recall(mac) if mac else None
    is_right = known is not None and known.chip == chip and not any(contradictions(board.spec, known))
    settle(board, known if is_right and known else ask(esp, chip))
    if None not in (before, mac) and before != mac:
        notice(f"{board.name}: another board is on this port: {mac} instead of {before} ({board.facts})")


def settle(board: Board, facts: Facts) -> None:
    """Remember what a real board's chip has reported.

    Raises:
        WrongChipError: if the board's entry says something else.
    """
    board.facts = facts
    remember(board.spec, board.rack, facts)
    for key, message in contradictions(board.spec, facts):
        raise WrongChipError(
            message,
            board=board.name,
            hint=f"correct or remove `{key}` in the board's entry",
        )


def ask(esp: Any, chip: str) -> Facts:
    """Return what a chip reports about itself; in secure download mode that is only which chip it is.

    Args:
        esp: esptool's loader object, connected.
        chip: as esptool names it.
    """
    if esp.secure_download_mode:
        return Facts(chip)
    cmds.attach_flash(esp)
    return Facts(
        chip=chip,
        mac=mac_of(esp),
        revision=revision_of(esp, chip),
        flash_size=flash_size_of(int(esp.flash_id())),
        crystal=int(esp.get_crystal_freq()),
        features=features_of(esp.get_chip_features()),
    )


def mac_of(esp: Any) -> str | None:
    """Return the base MAC address of a connected chip; None in secure download mode."""
    return None if esp.secure_download_mode else bytes(esp.read_mac("BASE_MAC")).hex(":")


def revision_of(esp: Any, chip: str) -> int | None:
    """Return the revision of a connected chip (major * 100 + minor); None for the ESP8266, which has none."""
    return None if chip == "esp8266" else int(esp.get_chip_revision())


def features_of(reported: Iterable[str]) -> tuple[str, ...]:
    """Return those of `REPORTED_FEATURES` that esptool's list of a chip's features has."""
    present = " ".join(feature.lower().replace(" ", "-") for feature in reported if not feature.startswith("No "))
    return tuple(name for name in REPORTED_FEATURES if f"embedded-{name.removeprefix('embedded-')}" in present)


def flash_size_of(flash_id: int) -> int | None:
    """Return the flash size in bytes for a flash id (``esptool.cmds.DETECTED_FLASH_SIZES``); None if unknown."""
    name = DETECTED_FLASH_SIZES.get(flash_id >> 16)
    return parse_size(name) if name else None
