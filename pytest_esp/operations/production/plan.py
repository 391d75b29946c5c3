"""Plans the contents of a board's flash, checked as far as possible without the board."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from esptool.targets import CHIP_DEFS

from pytest_esp.errors import FirmwareError, OperationError
from pytest_esp.formats import boot_image
from pytest_esp.formats.files import resolve
from pytest_esp.formats.firmware import Firmware
from pytest_esp.formats.images import check_image
from pytest_esp.formats.nvs_pages import NvsEntry
from pytest_esp.formats.nvs_values import NvsData
from pytest_esp.formats.partition_layouts import build
from pytest_esp.formats.partition_table import MAGIC, TABLE_SIZE, Partition, parse
from pytest_esp.formats.regions import SECTOR, Region, check_fits, make_regions
from pytest_esp.operations.chip.identity import ChipIdentity
from pytest_esp.operations.partitions import nvs
from pytest_esp.operations.production.config import MANUFACTURING, SERIAL_NUMBER, FactoryConfig
from pytest_esp.operations.production.nvs_update import Key, as_data, table_of
from pytest_esp.operations.production.secrets import Secrets

_IMAGE_START = bytes([boot_image.MAGIC])

_USUAL_OFFSET = 0x8000
_TABLES = range(0x1000, 0x20000, SECTOR)
_USUAL_SIZE = 4 * 1024 * 1024


@dataclass(frozen=True)
class Plan:
    """The planned contents of a flash, except each board's own values (see `with_values`).

    Attributes:
        regions: firmware and partition table, ordered by address.
        partitions: of that table.
        chip: the chip that it is for; None if unknown.
        values: NVS values common to all boards.
        image: the NVS partition; None if nothing is written to it.
        entries: values in that image.
        place: the NVS partition's entry in the table.
    """

    config: FactoryConfig
    firmware: Firmware
    regions: tuple[Region, ...]
    partitions: tuple[Partition, ...]
    chip: str | None
    values: NvsData = field(repr=False)
    secrets: Secrets
    image: bytes | None = field(default=None, repr=False)
    entries: Mapping[Key, NvsEntry] = field(default_factory=dict[Key, NvsEntry], repr=False)
    place: Partition | None = None

    @property
    def all_regions(self) -> tuple[Region, ...]:
        """All regions to write: firmware, partition table and NVS."""
        if self.image is None or self.place is None:
            return self.regions
        own = Region(self.place.offset, self.image, f"NVS ({self.place.name})")
        return tuple(sorted((*self.regions, own), key=lambda region: region.address))

    def with_values(self, serial_number: str | None, values: NvsData) -> Plan:
        """Return the plan of one board: with its serial number, and its own NVS values taking precedence.

        Raises:
            OperationError: if the values are invalid, or the table has no partition for them.
        """
        joined = {name: dict(keys) for name, keys in self.values.items()}
        for namespace, keys in values.items():
            joined.setdefault(namespace, {}).update(keys)
        if serial_number is not None:
            joined.setdefault(MANUFACTURING, {})[SERIAL_NUMBER] = serial_number
        config = self.config.model_copy(update={"serial_number": serial_number})
        if not joined:
            return replace(self, config=config)
        place = self._nvs_partition()
        secrets = Secrets({**joined, MANUFACTURING: _but_the_serial_number(joined.get(MANUFACTURING, {}))})
        with secrets.guard():
            image = nvs.make(joined, place.size, key_file=self.config.nvs_key_file)
        entries = table_of(nvs.contents(image, key_file=self.config.nvs_key_file).entries)
        for region in self.regions:
            if region.address < place.offset + place.size and place.offset < region.end:
                raise OperationError(f"{region.source} overlaps the partition {place.name}, which gets NVS values")
        return replace(self, config=config, image=image.data, entries=entries, place=place, secrets=secrets)

    def _nvs_partition(self) -> Partition:
        name = self.config.nvs_partition
        found = next((part for part in self.partitions if part.name == name), None)
        if found is None or (found.type, found.subtype) != ("data", "nvs"):
            names = ", ".join(part.name for part in self.partitions if part.subtype == "nvs") or "none"
            raise OperationError(
                f"the partition table has no NVS partition {name!r}", hint=f"use an NVS partition of the table: {names}"
            )
        if found.encrypted:
            raise OperationError(f"the partition {name} has the flag encrypted", hint="use NVS encryption instead")
        return found

    def check_board(self, who: ChipIdentity, flash_size: int) -> None:
        """Check that the plan suits this board, before anything is erased.

        Raises:
            FirmwareError, OperationError: if the chip, its revision, its MAC address or its flash does not match.
        """
        if self.chip not in (None, who.chip_type):
            raise FirmwareError(
                f"this firmware is for {self.chip}, but the board has an {who.chip_type}",
                hint=f"use `idf.py set-target {who.chip_type}`, or another board",
            )
        if self.config.mac is not None and who.mac_address is not None and who.mac_address != self.config.mac.lower():
            raise OperationError(
                f"this is for the board with the MAC address {self.config.mac}, but this one has {who.mac_address}",
                hint="use the right board",
            )
        for region in self.all_regions:
            check_fits(region, flash_size)
            check_image(region, who.chip_type, who.revision)
        for part in self.partitions:
            if part.offset + part.size > flash_size:
                raise OperationError(
                    f"the partition {part.name} ends at {part.offset + part.size:#x}, beyond the flash of "
                    f"{flash_size:#x} bytes",
                    hint="use a table for this flash size",
                )


def make_plan(config: FactoryConfig) -> Plan:
    """Return the plan for *config*, with all files read and checked against each other.

    Raises:
        FirmwareError, OperationError: if something is missing, damaged or inconsistent.
    """
    firmware = Firmware.open(config.firmware, config.chip)
    chip = firmware.chip or config.chip
    regions, partitions = _with_table(config, firmware)
    _check_bootloader(firmware, regions, chip)
    placed = make_regions([(region.address, region.data) for region in regions])
    names = {region.address: region.source for region in regions}
    named = tuple(replace(region, source=names[region.address]) for region in placed)
    for region in named:
        _check_in_its_partition(region, partitions)
    values = _values(config)
    common = Plan(config, firmware, named, partitions, chip, values, Secrets(values))
    return common.with_values(config.serial_number, {})


def _check_bootloader(firmware: Firmware, regions: list[Region], chip: str | None) -> None:
    """Reject firmware that could not start: the whole flash is erased first."""
    places = {rom.BOOTLOADER_FLASH_OFFSET for name, rom in CHIP_DEFS.items() if chip in (None, name)}
    for region in regions:
        if any(
            region.data[place - region.address :][:1] == bytes([boot_image.MAGIC])
            for place in places
            if place >= region.address
        ):
            return
    raise FirmwareError(
        f"{firmware.path} has no bootloader, but the whole flash is erased first",
        hint="give the build folder (flasher_args.json), or a merged image",
    )


def _with_table(config: FactoryConfig, firmware: Firmware) -> tuple[list[Region], tuple[Partition, ...]]:
    """Return the regions of the firmware, including a partition table, and the contents of the table."""
    regions = list(firmware.regions)
    found = _table_in(regions)
    if config.partition_table is None:
        if found is None:
            raise OperationError(
                f"{firmware.path} has no partition table, but the whole flash is erased first",
                hint="give partition_table: a CSV or binary file, or a predefined layout by name",
            )
        return regions, parse(found[1])
    offset = found[0] if found else _USUAL_OFFSET
    data = _given_table(config.partition_table, offset, firmware.chip or config.chip)
    kept = [region for region in regions if not region.address <= offset < region.end]
    for region in regions:
        if region.address < offset < region.end:
            raise OperationError(
                f"{region.source} contains a partition table", hint="omit partition_table, or give a build folder"
            )
    table = Region(offset, data, str(config.partition_table))
    return [*kept, table], parse(data)


def _given_table(table: Path | str, offset: int, chip: str | None) -> bytes:
    path = Path(table)
    if path.suffix == ".bin":
        try:
            return resolve(path).read_bytes()
        except OSError as error:
            raise OperationError(f"{path} cannot be read: {error.strerror}") from error
    return build(table, 1 << 30 if path.suffix == ".csv" else _USUAL_SIZE, table_offset=offset, chip=chip).data


def _table_in(regions: list[Region]) -> tuple[int, bytes] | None:
    for offset in (_USUAL_OFFSET, *_TABLES):
        for region in regions:
            if region.address <= offset < region.end:
                data = region.data[offset - region.address : offset - region.address + TABLE_SIZE]
                if data.startswith(MAGIC):
                    return offset, data
    return None


def _check_in_its_partition(region: Region, partitions: tuple[Partition, ...]) -> None:
    for part in partitions:
        if region.address == part.offset and region.size > part.size:
            raise FirmwareError(
                f"{region.source} has {region.size:#x} bytes, but the partition {part.name} has only {part.size:#x}",
                hint="nothing was touched; make the partition larger",
            )


def _values(config: FactoryConfig) -> NvsData:
    if isinstance(config.nvs, Path):
        # Espressif's CSV: its values are read from a partition that is large enough for all of them.
        return as_data(nvs.contents(nvs.make(config.nvs, 1 << 20)).entries)
    return config.nvs


def _but_the_serial_number(keys: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in keys.items() if key != SERIAL_NUMBER}
