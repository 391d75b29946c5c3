"""Configuration of a production line: a table, or a JSON or TOML file. Errors name keys, never values."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pytest_esp.errors import OperationError
from pytest_esp.formats.files import resolve
from pytest_esp.formats.nvs_values import NvsData
from pytest_esp.names import ChipName, nearest
from pytest_esp.operations.security.secret_names import remember_in


class _TableOrFile:
    """Makes the JSON schema of a `Given`."""

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        return {**handler(core_schema), "anyOf": [{"type": "object"}, {"type": "string"}]}


Given = Annotated[
    Mapping[str, Any] | str | os.PathLike[str],
    _TableOrFile(),
]
"""A table, its JSON text, or a JSON or TOML file with it; file names in that file are relative to it."""

SERIAL_NUMBER = "serial_number"
MANUFACTURING = "manufacturing"
CALIBRATION = "calibration"
CREDENTIALS = "credentials"

_MODEL = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
M = TypeVar("M", bound="Configured")


class Configured(BaseModel):
    """A table of settings that is validated."""

    model_config = _MODEL

    @classmethod
    def load(cls, given: Given) -> Self:
        """Return the settings in *given*, with all files found, and read if they are values.

        Raises:
            OperationError: if a file cannot be read, or a key is unknown, missing or invalid.
        """
        __tracebackhide__ = True
        values = cls.table(given)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            errors = error.errors(include_url=False, include_input=False, include_context=False)
            found = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
            raise OperationError(_in_words(found["loc"], found["msg"], found["type"], cls)) from None

    @classmethod
    def table(cls, given: Given) -> dict[str, Any]:
        """Return *given* as a table that `load` accepts, with file names resolved to paths or replaced by contents.

        Raises:
            OperationError: if a file cannot be read. RefusedError: if a file may not be read.
        """
        values, file = opened(given)
        remember_in(values)
        return cls._resolved(dict(values), file)

    @classmethod
    def _resolved(cls, values: dict[str, Any], file: Path | None) -> dict[str, Any]:
        """Return the *values* of *file* with file names resolved to paths, or replaced by contents."""
        return values


def _in_words(place: tuple[str | int, ...], message: str, kind: str, model: type[BaseModel]) -> str:
    where = ".".join(map(str, place))
    if kind == "extra_forbidden" and len(place) == 1:
        return f"unknown setting {where!r}; nearest: {nearest(where, model.model_fields)}"
    return f"{where}: {message[:1].lower()}{message[1:]}" if where else message


class Boot(BaseModel):
    """How the boot is checked: listen for *wait* seconds, or until the text *expect*."""

    model_config = _MODEL

    wait: float = Field(default=3.0, gt=0, le=300)
    expect: str | None = None


class FactoryConfig(Configured):
    """How a board is programmed.

    Attributes:
        firmware: a build folder, a merged image, or a single app (which needs *partition_table* and has no bootloader).
        chip: required chip of the board; by default the chip that the firmware is for.
        mac: required MAC address of the board.
        partition_table: a CSV or binary file, or a predefined layout by name; by default that of the firmware.
        serial_number: is written to NVS, namespace ``manufacturing``, key ``serial_number``. In a batch it may contain
            ``{index}``, ``{mac}`` and ``{board}``.
        nvs: values by namespace and key, or a CSV file for Espressif's generator; a value may be ``{"file": NAME}``.
        nvs_partition: name of the NVS partition.
        nvs_key_file: key of NVS encryption.
        boot: how to check the boot; false to skip the check.
    """

    firmware: Path
    chip: ChipName | None = None
    mac: str | None = Field(default=None, pattern=r"^([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}$")
    partition_table: Path | str | None = None
    serial_number: str | None = Field(default=None, min_length=1, max_length=64)
    nvs: dict[str, dict[str, Any]] | Path = Field(default_factory=dict[str, dict[str, Any]], repr=False)
    nvs_partition: str = "nvs"
    nvs_key_file: Path | None = None
    boot: Boot | Literal[False] = Boot()

    @field_validator("serial_number")
    @classmethod
    def _printable(cls, value: str | None) -> str | None:
        if value is not None and not value.isprintable():
            raise ValueError("a serial number must be printable text")
        return value

    @classmethod
    def _resolved(cls, values: dict[str, Any], file: Path | None) -> dict[str, Any]:
        for key in ("firmware", "nvs_key_file"):
            if isinstance(values.get(key), (str, os.PathLike)):
                values[key] = resolve(values[key], named_by=file)
        table = values.get("partition_table")
        if isinstance(table, (str, os.PathLike)) and Path(table).suffix in (".csv", ".bin"):
            values["partition_table"] = resolve(table, named_by=file)
        nvs = values.get("nvs")
        if isinstance(nvs, (str, os.PathLike)):
            values["nvs"] = resolve(nvs, named_by=file)
        elif isinstance(nvs, Mapping):
            values["nvs"] = with_files(cast("NvsData", nvs), file)
        return values


class Wifi(BaseModel):
    """A network. *store*: ``esp-idf`` is where its Wi-Fi library looks; ``namespace`` is NVS ``wifi``: ssid, password.

    An open network has no password; otherwise it has 8 to 63 characters, or is the key itself as 64 hex digits.
    """

    model_config = _MODEL

    ssid: str = Field(min_length=1)
    password: str = Field(default="", repr=False)
    store: Literal["esp-idf", "namespace", "both"] = "esp-idf"

    @field_validator("ssid")
    @classmethod
    def _short(cls, value: str) -> str:
        if len(value.encode()) > 32:
            raise ValueError("an SSID must have at most 32 bytes")
        return value

    @field_validator("password")
    @classmethod
    def _fits(cls, value: str) -> str:
        size = len(value.encode())
        is_key = size == 64 and all(digit in "0123456789abcdefABCDEF" for digit in value)
        if value and not 8 <= size <= 63 and not is_key:
            raise ValueError("a password must have 8 to 63 characters, or 64 hex digits")
        return value


class ProvisionConfig(Configured):
    """Data to provision: *credentials* are NVS values by key, in *namespace*; a value may be ``{"file": NAME}``."""

    wifi: Wifi | None = None
    credentials: dict[str, Any] = Field(default_factory=dict[str, Any], repr=False)
    namespace: str = CREDENTIALS
    nvs_partition: str = "nvs"
    nvs_key_file: Path | None = None

    @classmethod
    def _resolved(cls, values: dict[str, Any], file: Path | None) -> dict[str, Any]:
        if isinstance(values.get("nvs_key_file"), (str, os.PathLike)):
            values["nvs_key_file"] = resolve(values["nvs_key_file"], named_by=file)
        given = values.get("credentials")
        if isinstance(given, Mapping):
            values["credentials"] = with_files({CREDENTIALS: cast("Mapping[str, Any]", given)}, file)[CREDENTIALS]
        return values


def with_files(values: NvsData, file: Path | None = None) -> dict[str, dict[str, Any]]:
    """Return NVS values with files replaced by their contents (``{"file": NAME}``: blobs, or of *type* string).

    File names are relative to *file*, which contains the values.

    Raises:
        OperationError: if a file cannot be read, or a namespace has no keys.
    """
    found: dict[str, dict[str, Any]] = {}
    for namespace, keys in values.items():
        if not isinstance(keys, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - it may come from JSON
            raise OperationError(f"the namespace {namespace!r} has no keys", hint='use {"namespace": {"key": value}}')
        found[namespace] = {key: _contents(key, value, file) for key, value in keys.items()}
    remember_in(found)
    return found


def _contents(key: str, value: Any, file: Path | None) -> Any:
    if not isinstance(value, Mapping) or "file" not in value:
        return value
    given = cast("Mapping[str, Any]", value)
    path = resolve(str(given["file"]), named_by=file)
    try:
        data = path.read_bytes()
        return data.decode() if given.get("type") == "string" else data
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise OperationError(f"the file {path} of {key!r} cannot be read: {reason}") from None


def opened(given: Given) -> tuple[Mapping[str, Any], Path | None]:
    """Return the table in *given*, and its file if it has one.

    Raises:
        OperationError: if the file cannot be read, or is neither JSON nor TOML.
    """
    if isinstance(given, Mapping):
        return given, None
    name = os.fspath(given)
    if name.lstrip().startswith("{"):
        return _parsed(name, "this table", is_toml=False), None
    path = resolve(name)
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise OperationError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise OperationError(f"{path} is not text") from None
    table = _parsed(text, str(path), is_toml=path.suffix == ".toml")
    return table, path.resolve()


def _parsed(text: str, what: str, *, is_toml: bool) -> dict[str, Any]:
    try:
        loaded: Any = tomllib.loads(text) if is_toml else json.loads(text)
    except (ValueError, RecursionError) as error:  # the message may quote the text
        place = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise OperationError(f"{what} is not valid {'TOML' if is_toml else 'JSON'}{place}") from None
    if not isinstance(loaded, dict):
        raise OperationError(f"{what} does not contain a table", hint='use {"key": value, ...}')
    return cast("dict[str, Any]", loaded)
