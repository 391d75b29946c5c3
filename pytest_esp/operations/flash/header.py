"""The flash settings in the header of a bootloader: changed by esptool, and compared with a partition table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from esptool.targets import CHIP_DEFS

from pytest_esp.errors import FirmwareError
from pytest_esp.formats.file_kinds import look
from pytest_esp.formats.firmware import Firmware
from pytest_esp.formats.flash_settings import KEEP, FlashSettings
from pytest_esp.formats.images import APP_HEAD_SIZE, flash_size_of
from pytest_esp.formats.partition_table import Partition
from pytest_esp.link.link import Link
from pytest_esp.link.logs import Transcript, capture
from pytest_esp.operations.flash import reading
from pytest_esp.units import format_size


def with_settings(data: bytes, source: str, chip: str, settings: FlashSettings) -> bytes:
    """Return the bootloader *data* of *source* with other flash settings, and its SHA-256 updated.

    Raises:
        FirmwareError: if a setting is unknown for the chip, or the image is damaged.
    """
    from esptool import cmds

    offset = CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET
    try:
        with capture(Transcript()):
            changed = cmds.merge_bin(
                [(offset, data)],
                chip,
                flash_freq=settings.frequency,
                flash_mode=settings.mode,
                flash_size=settings.size,
                target_offset=offset,
            )
    except Exception as error:
        raise FirmwareError(f"{source} cannot be changed: {error or type(error).__name__}") from error
    if changed is None:
        raise FirmwareError(f"{source} cannot be changed")
    return changed


def for_board(firmware: Firmware, chip: str, flash_size: int) -> Firmware:
    """Return *firmware* with its listing's flash settings in the bootloader, as ``esptool write-flash`` writes it.

    Args:
        firmware: a build.
        chip: the board's chip.
        flash_size: the board's, in bytes; takes the place of ``detect``.

    Raises:
        FirmwareError: see `with_settings`.
    """
    settings = firmware.settings
    if settings.size == "detect":
        settings = replace(settings, size=size_name(chip, flash_size) or "keep")
    if settings == KEEP:
        return firmware
    offset = CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET
    return replace(
        firmware,
        settings=KEEP,
        regions=tuple(
            replace(region, data=with_settings(region.data, region.source, chip, settings))
            if region.address == offset and look(region.data).images
            else region
            for region in firmware.regions
        ),
    )


def size_name(chip: str, size: int) -> str | None:
    """Return esptool's name of a flash size, e.g. ``"4MB"``; None if the chip's header has no code for it."""
    name = f"{size >> 20}MB" if size >= 1 << 20 else f"{size >> 10}KB"
    return name if name in CHIP_DEFS[chip].FLASH_SIZES else None


def beyond_header(link: Link, partitions: Sequence[Partition]) -> tuple[str, ...]:
    """Return a warning if partitions end beyond the flash size in the bootloader's header.

    The bootloader goes by its header: it then rejects the whole table, and starts nothing.
    """
    chip = reading.chip_of_flash(link)
    head = reading.read(link, CHIP_DEFS[chip].BOOTLOADER_FLASH_OFFSET, APP_HEAD_SIZE).data
    size, last = flash_size_of(head, chip), max(partitions, key=lambda part: part.offset + part.size)
    if size is None or last.offset + last.size <= size:
        return ()
    return (
        f"the bootloader's header has {format_size(size)} of flash, but {last.name} ends at "
        f"{last.offset + last.size:#x}: the bootloader will reject the table (exceeds flash chip size); "
        "flash a bootloader for the size of this flash",
    )
