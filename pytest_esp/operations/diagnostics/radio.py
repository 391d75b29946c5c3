"""Checks the radio's calibration: init data in a partition, the app's stored calibration in NVS, and eFuses.

Source: components/esp_phy of ESP-IDF (phy_init.c, esp_phy_init.h): the magic around the init data, the keys in NVS, and
what an app checks before it uses this data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from pytest_esp.errors import EspError, OperationError
from pytest_esp.formats.nvs_pages import NvsContents, read_pages
from pytest_esp.formats.partition_table import Partition
from pytest_esp.link.link import Link
from pytest_esp.operations.chip.identity import identify
from pytest_esp.operations.flash import reading, tables
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.operations.results import Address
from pytest_esp.operations.security import efuse

_MAGIC = b"PHYINIT\0"
_NAMESPACE = "phy"
_CALIBRATION_SIZE = 1904  # bytes of esp_phy_calibration_data_t: version, MAC address, 1894 of data
_WITHOUT_RADIO = ("esp32p4",)

State = Literal["valid", "absent", "blank", "damaged"]


@dataclass(frozen=True)
class PhyInit:
    """The init data of the radio.

    Attributes:
        partition: its name; None if the table has none, in which case the data is part of the app.
        state: "blank" is an erased partition: an app configured to use it does not start its radio.
        size: bytes of data between the magic words.
        sha256: of the data, to compare boards; None unless it is valid.
        multiple: whether data for several regulatory domains follows.
    """

    partition: str | None
    offset: Address | None
    state: State
    size: int | None
    sha256: str | None
    multiple: bool | None


@dataclass(frozen=True)
class StoredCalibration:
    """The calibration that an app has measured and stored in NVS.

    Attributes:
        partition: name of the NVS partition.
        state: "absent" before the radio was first started, "damaged" if a part is missing or has a wrong size.
        version: of the calibration format (``cal_version``); an app built with another one calibrates again.
        mac_address: MAC address of the calibrated chip (``cal_mac``).
        mac_matches: whether that is this chip.
        data_version: version at the beginning of the data.
        data_mac_address: MAC address in the data.
        data_size: bytes of ``cal_data``.
    """

    partition: str | None
    state: State
    version: int | None
    mac_address: str | None
    mac_matches: bool | None
    data_version: int | None
    data_mac_address: str | None
    data_size: int | None


@dataclass(frozen=True)
class RadioCalibration:
    """The calibration data of a chip's radio.

    Attributes:
        mac_address: the chip's base MAC address.
        phy_init, stored: see these classes.
        efuse_version: version of the eFuse block with Espressif's factory calibration, ``"1.3"``; None if the chip
            has no such version.
        efuses: the calibration values in eFuses, by name; espefuse shows them if the block version says that they
            exist.
        usable: whether an app would use the calibration stored in NVS, if its own version matches.
        findings: what is wrong or worth knowing, in words.
    """

    chip_type: str
    mac_address: str
    phy_init: PhyInit
    stored: StoredCalibration
    efuse_version: str | None
    efuses: Mapping[str, str]
    usable: bool
    findings: tuple[str, ...]


@operation(Effect.READ, group="diagnostics")
def rf_calibration_check(link: Link, nvs_partition: str | None = None) -> RadioCalibration:
    """Check the radio's calibration: init data, stored calibration and its MAC address, eFuses.

    Args:
        nvs_partition: name of the partition where the app stores it; by default the first partition of type data/nvs.

    Raises:
        OperationError: if the chip has no radio, or flash has no partition table.
    """
    identity = identify(link)
    if identity.chip_type in _WITHOUT_RADIO:
        raise OperationError(f"the {identity.package} has no radio", hint="check its companion chip instead")
    if identity.mac_address is None:
        raise OperationError("flash and MAC address cannot be read in secure download mode")
    table = tables.read(link).partitions
    phy_init = _phy_init(link, _first(table, "phy"))
    stored = _stored(link, _named(table, nvs_partition), identity.mac_address)
    version, efuses = _efuses(link)
    return RadioCalibration(
        chip_type=identity.chip_type,
        mac_address=identity.mac_address,
        phy_init=phy_init,
        stored=stored,
        efuse_version=version,
        efuses=efuses,
        usable=stored.state == "valid" and bool(stored.mac_matches),
        findings=tuple(_findings(phy_init, stored, identity.mac_address, efuses)),
    )


def _first(table: tuple[Partition, ...], subtype: str) -> Partition | None:
    return next((part for part in table if (part.type, part.subtype) == ("data", subtype)), None)


def _named(table: tuple[Partition, ...], name: str | None) -> Partition | None:
    if name is None:
        return _first(table, "nvs")
    for part in table:
        if part.name == name:
            return part
    raise OperationError(f"there is no partition {name!r}", hint=f"use one of {', '.join(part.name for part in table)}")


def _phy_init(link: Link, place: Partition | None) -> PhyInit:
    if place is None:
        return PhyInit(None, None, "absent", None, None, None)
    data = reading.read(link, place.offset, place.size).data
    end = data.find(_MAGIC, len(_MAGIC))
    if not data.startswith(_MAGIC) or end < 0:
        is_blank = data.count(0xFF) == len(data)
        return PhyInit(place.name, place.offset, "blank" if is_blank else "damaged", None, None, None)
    parameters = data[len(_MAGIC) : end]
    digest = hashlib.sha256(parameters).hexdigest()
    # The third byte from the end (PHY_SUPPORT_MULTIPLE_BIN_OFFSET) says whether more follow.
    multiple = len(parameters) >= 3 and parameters[-3] != 0
    return PhyInit(place.name, place.offset, "valid", len(parameters), digest, multiple)


def _stored(link: Link, place: Partition | None, mac: str) -> StoredCalibration:
    if place is None:
        return StoredCalibration(None, "absent", None, None, None, None, None, None)
    contents = read_pages(reading.read(link, place.offset, place.size).data)
    values = {entry.key: entry.value for entry in contents.entries if entry.namespace == _NAMESPACE}
    version, found_mac, data = values.get("cal_version"), _blob(values, "cal_mac"), _blob(values, "cal_data")
    whole = isinstance(version, int) and found_mac is not None and data is not None
    right_sizes = len(found_mac or b"") == 6 and len(data or b"") == _CALIBRATION_SIZE
    return StoredCalibration(
        partition=place.name,
        state="absent" if not values else "valid" if whole and right_sizes else _state(contents),
        version=version if isinstance(version, int) else None,
        mac_address=found_mac.hex(":") if found_mac else None,
        mac_matches=found_mac.hex(":") == mac if found_mac else None,
        data_version=int.from_bytes(data[:4], "little") if data else None,
        data_mac_address=data[4:10].hex(":") if data and len(data) >= 10 else None,
        data_size=len(data) if data is not None else None,
    )


def _state(contents: NvsContents) -> State:
    return "absent" if contents.encrypted and not contents.entries else "damaged"


def _blob(values: Mapping[str, int | str], key: str) -> bytes | None:
    value = values.get(key)
    try:
        return bytes.fromhex(value) if isinstance(value, str) else None
    except ValueError:
        return None  # text instead of a blob


def _efuses(link: Link) -> tuple[str | None, dict[str, str]]:
    try:
        fields = efuse.read_all(link).fields
    except EspError:  # espefuse does not support the ESP8266
        return None, {}
    versions = [fields[name].bits for name in ("BLK_VERSION_MAJOR", "BLK_VERSION_MINOR") if name in fields]
    found = {name: str(field.value) for name, field in fields.items() if field.category == "calibration"}
    return ".".join(str(int(bits or "0", 2)) for bits in versions) if versions else None, found


def _findings(init: PhyInit, stored: StoredCalibration, mac: str, efuses: Mapping[str, str]) -> Iterator[str]:
    if init.partition is None:
        yield "there is no partition for init data: the app contains its own"
    elif init.state != "valid":
        yield f"the init data in {init.partition!r} is {init.state}: an app that uses it does not start the radio"
    if stored.partition is None:
        yield "there is no NVS partition: the app calibrates the radio fully at every start"
    elif stored.state == "absent":
        yield "no calibration is stored: the app calibrates the radio fully at its first start"
    elif stored.state == "damaged":
        yield "the stored calibration is incomplete: the app calibrates again"
    elif not stored.mac_matches:
        found = stored.mac_address
        yield f"the stored calibration is that of {found}, not of {mac}: the flash was copied; the app calibrates again"
    elif stored.data_mac_address != stored.mac_address:
        yield f"the stored data is for {stored.data_mac_address}, but its key says {stored.mac_address}"
    if not efuses:
        yield "the eFuses have no factory calibration"
