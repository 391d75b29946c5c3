"""Data of its own for a board: calibration, manufacturing data, a network and credentials."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from pytest_esp.errors import OperationError
from pytest_esp.formats.files import ReadPath
from pytest_esp.formats.nvs_pages import NvsData
from pytest_esp.link.link import Link
from pytest_esp.operations.production.config import (
    CALIBRATION,
    MANUFACTURING,
    Given,
    ProvisionConfig,
    Wifi,
    opened,
    with_files,
)
from pytest_esp.operations.production.nvs_update import Key, NvsUpdate, update
from pytest_esp.operations.production.secrets import Secrets
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.operations.security import efuse
from pytest_esp.operations.security.efuse import BurnPlan, BurnResult

# What the Wi-Fi library of ESP-IDF (closed source) keeps where WIFI_STORAGE_FLASH is on: the SSID with its length in
# front, the password with a zero behind it, each as a blob of one size. https://github.com/espressif/esp-idf/issues/14554
# shows the keys, https://github.com/espressif/arduino-esp32/issues/1147 the sizes.
_WIFI_LIBRARY = "nvs.net80211"
_SSID_SIZE, _PASSWORD_SIZE = 32, 65
_STATION = 1  # WIFI_MODE_STA
# Made from the SSID and the password of the network before, or found out about it.
_OF_THE_OLD_NETWORK = ("sta.pmk", "sta.apinfo", "sta.apsw", "sta.bssid", "bssid.set", "sta.chan")
_USER_BLOCKS = ("BLOCK_USR_DATA", "BLOCK3")
_NUMBERS = {"u8": "<B", "i8": "<b", "u16": "<H", "i16": "<h", "u32": "<I", "i32": "<i", "u64": "<Q", "i64": "<q"}


@dataclass(frozen=True)
class Provisioning:
    """What a board was given; no value is in it.

    Attributes:
        ssid: of its network; None if it was given none.
        nvs: what was written, and that what else is in NVS was kept.
    """

    ssid: str | None
    nvs: NvsUpdate


@operation(Effect.WRITE, group="production")
def provision(link: Link, config: Given) -> Provisioning:
    """Give a board its Wi-Fi network and credentials: into NVS, read back; other values there stay as they are.

    No value appears in a result, a log or an error. A file keeps secrets out of command lines and conversations.

    Args:
        config: {"wifi": {"ssid", "password", "store": "esp-idf" (where its Wi-Fi library looks), "namespace" (NVS
            "wifi") or "both"}, "credentials": {key: value or {"file": NAME}}, "namespace": of the credentials,
            "nvs_partition", "nvs_key_file"}, or a JSON or TOML file with that.

    Raises:
        OperationError: if the table is wrong, there is no NVS partition, or the values do not fit or read back.
    """
    __tracebackhide__ = True
    wanted = ProvisionConfig.load(config)
    values: dict[str, Mapping[str, Any]] = _wifi_values(wanted.wifi) if wanted.wifi else {}
    if wanted.credentials:
        values[wanted.namespace] = {**values.get(wanted.namespace, {}), **wanted.credentials}
    if not values:
        raise OperationError("there is nothing to give it", hint="wifi (ssid, password), or credentials")
    stale: list[Key] = [(_WIFI_LIBRARY, key) for key in _OF_THE_OLD_NETWORK] if _WIFI_LIBRARY in values else []
    secrets = Secrets([values, wanted.wifi.password if wanted.wifi else ""])
    with secrets.guard():
        done = update(link, values, partition=wanted.nvs_partition, key_file=wanted.nvs_key_file, remove=stale)
    return Provisioning(wanted.wifi.ssid if wanted.wifi else None, done)


def _wifi_values(wifi: Wifi) -> dict[str, Mapping[str, Any]]:
    ssid, password = wifi.ssid.encode(), wifi.password.encode()
    values: dict[str, Mapping[str, Any]] = {}
    if wifi.store in ("esp-idf", "both"):
        values[_WIFI_LIBRARY] = {
            "opmode": {"type": "u8", "value": _STATION},
            "sta.ssid": struct.pack("<I", len(ssid)) + ssid.ljust(_SSID_SIZE, b"\0"),
            "sta.pswd": password.ljust(_PASSWORD_SIZE, b"\0"),
        }
    if wifi.store in ("namespace", "both"):
        values["wifi"] = {"ssid": wifi.ssid, "password": wifi.password}
    return values


@dataclass(frozen=True)
class DataWritten:
    """Where data went: into *nvs* (its *namespace*), or into the user *efuse*; the other is None."""

    namespace: str | None
    nvs: NvsUpdate | None
    efuse: BurnResult | None


@operation(Effect.BURN, group="production", without={"to_efuse": Effect.WRITE})
def write_calibration_data(
    link: Link,
    data: Given,
    *,
    namespace: str = CALIBRATION,
    nvs_partition: str = "nvs",
    nvs_key_file: ReadPath | None = None,
    to_efuse: bool = False,
) -> DataWritten:
    """Write calibration data into NVS, or into the user eFuse block, and read it back; other NVS values stay.

    Args:
        data: values by key: text, numbers, {"type": "u16", "value": 1100}, {"type": "blob", "value": hex} or
            {"file": NAME}; or a JSON or TOML file with them.
        namespace: in NVS.
        nvs_partition: name of the NVS partition.
        nvs_key_file: keys of NVS encryption.
        to_efuse: burn one value into the user eFuse block instead, from its first byte on: irreversible.

    Raises:
        OperationError: if the values do not fit or read back, or the chip has no user eFuse block.
        RefusedError: if eFuses may not be burnt.
    """
    __tracebackhide__ = True
    return _written(link, data, namespace, nvs_partition, nvs_key_file, to_efuse)


@operation(Effect.BURN, group="production", without={"to_efuse": Effect.WRITE})
def write_manufacturing_data(
    link: Link,
    data: Given,
    *,
    namespace: str = MANUFACTURING,
    nvs_partition: str = "nvs",
    nvs_key_file: ReadPath | None = None,
    to_efuse: bool = False,
) -> DataWritten:
    """Write manufacturing data (serial_number, batch, ...) into NVS, or into the user eFuse block, and read it back.

    Other NVS values stay.

    Args:
        data: values by key: text, numbers, {"type": "u16", "value": 1100}, {"type": "blob", "value": hex} or
            {"file": NAME}; or a JSON or TOML file with them.
        namespace: in NVS.
        nvs_partition: name of the NVS partition.
        nvs_key_file: keys of NVS encryption.
        to_efuse: burn one value into the user eFuse block instead, from its first byte on: irreversible.

    Raises:
        OperationError, RefusedError: see `write_calibration_data`.
    """
    __tracebackhide__ = True
    return _written(link, data, namespace, nvs_partition, nvs_key_file, to_efuse)


def _written(
    link: Link, data: Given, namespace: str, partition: str, key_file: str | os.PathLike[str] | None, to_efuse: bool
) -> DataWritten:
    __tracebackhide__ = True
    values = _values(data)
    with Secrets(values).guard():
        if to_efuse:
            name, raw = _for_user_block(link, values)
            return DataWritten(None, None, efuse.burn(link, name, raw))
        done = update(link, {namespace: values}, partition=partition, key_file=key_file)
        return DataWritten(namespace, done, None)


def plan_user_block(link: Link, data: Given) -> BurnPlan:
    """Return what burning *data* into the user eFuse block would do, and touch nothing.

    Raises:
        OperationError: see `write_calibration_data`.
    """
    return efuse.plan(link, *_for_user_block(link, _values(data)))


def _values(data: Given) -> Mapping[str, Any]:
    table, file = opened(data)
    values = with_files(cast("NvsData", {"": table}), file)[""]
    if not values:
        raise OperationError("there is nothing to write", hint='{"key": value, ...}')
    return values


def _for_user_block(link: Link, values: Mapping[str, Any]) -> tuple[str, bytes]:
    """Return the chip's eFuse block for users, and what goes into it."""
    fields = efuse.read_all(link).fields
    name = next((name for name in _USER_BLOCKS if name in fields), None)
    if name is None:
        raise OperationError("this chip has no eFuse block for users", hint="write it into NVS")
    if len(values) != 1:
        raise OperationError("the user eFuse block takes one value", hint="put all of it into one text or blob")
    ((key, value),) = values.items()
    data = _raw(key, value)
    size = fields[name].bit_length // 8
    if len(data) > size:
        raise OperationError(f"{key!r} has {len(data)} bytes, and the eFuse {name} {size}")
    return name, data.ljust(size, b"\0")


def _raw(key: str, value: Any) -> bytes:
    kind = None
    if isinstance(value, Mapping):
        given = cast("Mapping[str, Any]", value)
        kind, value = str(given.get("type")), given.get("value")
    try:
        if kind in _NUMBERS:
            return struct.pack(_NUMBERS[kind], int(value))
        if kind in ("blob", "hex", "hex2bin"):
            return bytes.fromhex(str(value))
    except (ValueError, TypeError, struct.error):
        raise OperationError(f"the value of {key!r} does not fit {kind}") from None
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and kind in (None, "string"):
        return value.encode()
    raise OperationError(
        f"the value of {key!r} cannot be burnt", hint='text, or {"type": "u32", "value": 1}, {"type": "blob", ...}'
    )
