"""Provisions a board with its own data: calibration, manufacturing data, a network and credentials."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from pytest_esp.errors import OperationError
from pytest_esp.formats.files import ReadPath
from pytest_esp.formats.nvs_values import NvsData
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

# What the Wi-Fi library of ESP-IDF (closed source) stores with WIFI_STORAGE_FLASH: the SSID after its length, the
# password with a trailing zero, each as a blob of fixed size. https://github.com/espressif/esp-idf/issues/14554
# shows the keys, https://github.com/espressif/arduino-esp32/issues/1147 the sizes.
_WIFI_LIBRARY = "nvs.net80211"
_SSID_SIZE, _PASSWORD_SIZE = 32, 65
_STATION = 1  # WIFI_MODE_STA
# Derived from the SSID and the password of the previous network, or learned about it.
_OF_THE_OLD_NETWORK = ("sta.pmk", "sta.apinfo", "sta.apsw", "sta.bssid", "bssid.set", "sta.chan")
_USER_BLOCKS = ("BLOCK_USR_DATA", "BLOCK3")
_NUMBERS = {"u8": "<B", "i8": "<b", "u16": "<H", "i16": "<h", "u32": "<I", "i32": "<i", "u64": "<Q", "i64": "<q"}


@dataclass(frozen=True)
class Provisioning:
    """The result of provisioning; it contains no values.

    Attributes:
        ssid: of the network; None if none was given.
        nvs: what was written to NVS; its other values are kept.
    """

    ssid: str | None
    nvs: NvsUpdate


@operation(Effect.WRITE, group="production")
def provision(link: Link, config: Given) -> Provisioning:
    """Provision a board with its Wi-Fi network and credentials: written to NVS and read back; other values are kept.

    No value appears in a result, a log or an error. Use a file to keep secrets out of command lines and conversations.

    Args:
        config: {"wifi": {"ssid", "password", "store": "esp-idf" (where its Wi-Fi library reads it), "namespace"
            (NVS "wifi") or "both"}, "credentials": {key: value or {"file": NAME}}, "namespace" of the credentials,
            "nvs_partition", "nvs_key_file"}, or a JSON or TOML file with these keys.

    Raises:
        OperationError: if the table or a value is invalid, there is no NVS partition, or the values do not read back.
    """
    __tracebackhide__ = True
    wanted = ProvisionConfig.load(config)
    values: dict[str, Mapping[str, Any]] = _wifi_values(wanted.wifi) if wanted.wifi else {}
    if wanted.credentials:
        values[wanted.namespace] = {**values.get(wanted.namespace, {}), **wanted.credentials}
    if not values:
        raise OperationError("nothing to provision", hint="give wifi (ssid, password) or credentials")
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
    """Where data was written: to *nvs* (in *namespace*), or to the user *efuse*; the other is None."""

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
    """Write calibration data to NVS, or to the user eFuse block, and read it back; other NVS values are kept.

    Args:
        data: values by key: text, numbers, {"type": "u16", "value": 1100}, {"type": "blob", "value": hex} or
            {"file": NAME}; or a JSON or TOML file with these values.
        namespace: NVS namespace.
        nvs_partition: name of the NVS partition.
        nvs_key_file: key of NVS encryption.
        to_efuse: burn one value into the user eFuse block instead, from its first byte: irreversible.

    Raises:
        OperationError: if the values are invalid or do not read back, or the chip has no user eFuse block.
        RefusedError: if burning eFuses is not allowed.
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
    """Write manufacturing data (serial_number, batch, ...) to NVS, or to the user eFuse block, and read it back.

    Other NVS values are kept.

    Args:
        data: values by key: text, numbers, {"type": "u16", "value": 1100}, {"type": "blob", "value": hex} or
            {"file": NAME}; or a JSON or TOML file with these values.
        namespace: NVS namespace.
        nvs_partition: name of the NVS partition.
        nvs_key_file: key of NVS encryption.
        to_efuse: burn one value into the user eFuse block instead, from its first byte: irreversible.

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
    """Return what burning *data* into the user eFuse block would do, without changing anything.

    Raises:
        OperationError: see `write_calibration_data`.
    """
    return efuse.plan(link, *_for_user_block(link, _values(data)))


def _values(data: Given) -> Mapping[str, Any]:
    table, file = opened(data)
    values = with_files(cast("NvsData", {"": table}), file)[""]
    if not values:
        raise OperationError("no values were given", hint='use {"key": value, ...}')
    return values


def _for_user_block(link: Link, values: Mapping[str, Any]) -> tuple[str, bytes]:
    """Return the chip's user eFuse block, and the bytes for it."""
    fields = efuse.read_all(link).fields
    name = next((name for name in _USER_BLOCKS if name in fields), None)
    if name is None:
        raise OperationError("this chip has no user eFuse block", hint="write the data to NVS")
    if len(values) != 1:
        raise OperationError("the user eFuse block takes one value", hint="combine everything into one text or blob")
    ((key, value),) = values.items()
    data = _raw(key, value)
    size = fields[name].bit_length // 8
    if len(data) > size:
        raise OperationError(f"{key!r} has {len(data)} bytes, but the eFuse {name} has {size}")
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
        raise OperationError(f"the value of {key!r} is out of range for {kind}") from None
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and kind in (None, "string"):
        return value.encode()
    raise OperationError(
        f"the value of {key!r} cannot be burnt", hint='use text, {"type": "u32", "value": 1} or {"type": "blob", ...}'
    )
