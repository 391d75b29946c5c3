"""The fixture ``firmware``: choose the build for a test and flash it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_esp.errors import FirmwareError
from pytest_esp.plugin.options import FIRMWARE_ENVIRONMENT, options_of
from pytest_esp.plugin.wanted import FirmwareWanted

if TYPE_CHECKING:
    from pytest_esp.formats.builds import Build
    from pytest_esp.formats.firmware import Firmware
    from pytest_esp.link.link import Link
    from pytest_esp.plugin.held_boards import Held

_BUILDS = pytest.StashKey[dict[Path, "list[Build]"]]()
_LOADED = pytest.StashKey[dict[tuple[Path, str], "Firmware"]]()

NOT_NAMED = (
    "no firmware was specified: use --esp-firmware DIR, esp_firmware in the ini file, "
    f"{FIRMWARE_ENVIRONMENT} or @pytest.mark.firmware('build')"
)


def sources_of(config: pytest.Config, home: Path, want: FirmwareWanted) -> tuple[Path, ...]:
    """Return the paths to search for a test's firmware; a marker's paths are relative to *home*."""
    return tuple(home / os.path.expanduser(path) for path in want.paths) or options_of(config).firmware


def policy_of(config: pytest.Config, want: FirmwareWanted) -> str:
    """Return when to flash (see `options.FLASH_POLICIES`); the command line overrides the marker."""
    return options_of(config).flash or want.flash


def chips_of(config: pytest.Config, sources: tuple[Path, ...]) -> dict[str, None]:
    """Return the chips that the builds in *sources* are for.

    Only file listings and headers are read, once for each source.

    Raises:
        FirmwareError: if one of the sources is not a build.
    """
    return dict.fromkeys(build.chip or "?" for source in sources for build in _builds(config, source))


def why_not(config: pytest.Config, sources: tuple[Path, ...], chip: str) -> str:
    """Return why there is no firmware for *chip*; empty if there is one.

    Raises:
        FirmwareError: if one of the sources is not a build.
    """
    if not sources:
        return NOT_NAMED
    chips = chips_of(config, sources)
    if chip in chips or "?" in chips or chip == "auto":
        return ""
    return f"its chip is {chip}, but the firmware is for {', '.join(chips)}"


def _builds(config: pytest.Config, source: Path) -> list[Build]:
    from pytest_esp.formats.builds import builds_in

    known = config.stash.setdefault(_BUILDS, {})
    if source not in known:
        known[source] = builds_in(source)
    return known[source]


def choose(config: pytest.Config, sources: tuple[Path, ...], chip: str) -> Firmware:
    """Return the build for *chip* from the first source that has one.

    Raises:
        FirmwareError: if there is none, there are several, or a file is missing.
    """
    from pytest_esp.formats.firmware import Firmware

    loaded = config.stash.setdefault(_LOADED, {})
    for source in sources:
        if why_not(config, (source,), chip):
            continue
        if (source, chip) not in loaded:
            loaded[source, chip] = Firmware.open(source, None if chip == "auto" else chip)
        return loaded[source, chip]
    raise FirmwareError(why_not(config, sources, chip))


def bring_up(held: Held, firmware: Firmware, policy: str, unit: tuple[str, ...] | None) -> None:
    """Flash *firmware* as *policy* says and boot it, so that the console begins with that boot.

    Args:
        held: the board. One that is off is flashed before it starts, if its backend allows that.
        firmware: the firmware to run.
        policy: one of `options.FLASH_POLICIES`.
        unit: the module or session that shares one boot: a board that was booted for it, and not reset since, runs
            on. None: the board is booted in any case.

    Raises:
        EspError: if the board cannot be flashed, or would start other firmware.
    """
    link = held.link
    if unit is not None and held.booted == (unit, link.boots) and link.runs_app:
        return
    link.elf, link.app_baudrate = firmware.elf, firmware.console_baud
    install(link, firmware, policy)
    link.boot()
    held.booted = (unit, link.boots)


def install(link: Link, firmware: Firmware, policy: str) -> None:
    """Write *firmware* if *policy* says so, and check that the bootloader will start it.

    Raises:
        EspError: if it cannot be written.
        FirmwareError: if the bootloader would start other firmware.
    """
    from pytest_esp.operations.flash import writing

    if policy != "never":
        writing.write(link, firmware, skip_unchanged=policy == "changed")
    if firmware.app is not None:
        _check_app(link, firmware, policy)
    elif policy == "never" and not writing.verify(link, firmware).matches:
        raise FirmwareError(f"the flash does not contain {firmware.name}", hint="use --esp-flash=changed to flash it")


def _check_app(link: Link, firmware: Firmware, policy: str) -> None:
    """Compare the app descriptor in flash with that of *firmware*."""
    from pytest_esp.operations.flash import tables

    installed = tables.app(link)
    if installed.app == firmware.app:
        return
    other = f"{installed.app.project} {installed.app.version}" if installed.app else "an app without a descriptor"
    hint = (
        "use --esp-flash=changed to flash it"
        if policy == "never"
        else "otadata selects that partition: erase it with esp.flash.erase('otadata'), or flash a build with otadata"
    )
    raise FirmwareError(
        f"the bootloader would start {other} from partition {installed.slot.name}, not {firmware.name}",
        board=link.board.name,
        hint=hint,
    )
