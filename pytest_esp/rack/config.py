"""Reads boards.toml. Errors give file, line, key, the expected value and the nearest valid name."""

from __future__ import annotations

import functools
import os
import re
import tomllib
from collections.abc import Collection, Iterable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from pytest_esp.errors import RackError
from pytest_esp.names import nearest
from pytest_esp.rack.chips import AUTO, CHIPS
from pytest_esp.rack.file import ENVIRONMENT, find_rack_file
from pytest_esp.rack.identity import canonical_files, files_of
from pytest_esp.rack.ports import rack_of_ports
from pytest_esp.rack.rack import Rack
from pytest_esp.rack.spec import ASKED_BACKENDS, BACKENDS, BoardSpec, Power, PowerMeterSpec, misfits
from pytest_esp.rack.toml_lines import locate_keys

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_LONGEST = 1024 * 1024  # characters; enough for thousands of boards
_BOARD_KEYS = BoardSpec.model_fields.keys() - {"name"}

_DEFAULT: dict[str, Any] = {
    "boards": {
        "virtual-esp32": {"backend": "sim", "chip": "esp32", "flash_size": "4MB"},
        "virtual-s3": {"backend": "sim", "chip": "esp32s3", "flash_size": "8MB", "features": ["psram"]},
        "virtual-c3": {"backend": "sim", "chip": "esp32c3", "flash_size": "4MB"},
        "virtual-c6": {"backend": "sim", "chip": "esp32c6", "flash_size": "4MB"},
    }
}


class _RackTable(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "default"
    lock_dir: Path | None = None


def load_rack(path: Path | None = None, *, ports: Sequence[str] = ()) -> Rack:
    """Return the rack from *path*, ``PYTEST_ESP_RACK``, the nearest boards.toml here or above, or the built-in rack.

    The built-in rack has four simulated chips: esp32, esp32s3, esp32c3, esp32c6.

    Args:
        path: the rack file.
        ports: return only the boards on these ports; see `rack_of_ports`.

    Raises:
        RackError: if the file cannot be read or is invalid (the message lists all its errors), or a port cannot be
            used.
    """
    rack = _load(find_rack_file(path))
    return rack_of_ports(rack, ports) if ports else rack


def _load(path: Path | None) -> Rack:
    if path is None:
        return _build(None, "", _DEFAULT)
    text = _read(path)
    try:
        return _build(path, text, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        found = re.search(r" \(at line (\d+), column \d+\)$", str(error))
        line = found[1] if found else text.count("\n") + 1
        raise RackError(f"{path}:{line}: invalid TOML: {error}") from error
    except RecursionError as error:
        raise RackError(f"{path}: arrays or tables are nested too deeply") from error
    except ValueError as error:  # from int(): too many digits
        raise RackError(f"{path}: invalid TOML: {error}") from error


def _read(path: Path) -> str:
    """Return the text of a rack file. Pipes and devices are refused before they are opened: reading may never end."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise _unreadable(path, "not a regular file")
        with path.open(encoding="utf-8-sig") as file:  # some editors on Windows mark UTF-8 files
            text = file.read(_LONGEST + 1)
    except (OSError, ValueError) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or error) from error
    if len(text) > _LONGEST:
        raise _unreadable(path, f"it is longer than {_LONGEST} characters")
    return text


def _unreadable(path: Path, reason: object) -> RackError:
    return RackError(
        f"cannot read the rack file {path}: {reason}", hint=f"use another file, or set {ENVIRONMENT} to one"
    )


def _build(path: Path | None, text: str, data: dict[str, Any]) -> Rack:
    problems = _Problems(path, text)
    problems.check_names((), data, ("rack", "boards"))
    table = _validate(problems, ("rack",), _RackTable, _table(problems, data, "rack"))
    specs: dict[str, BoardSpec] = {}
    for name, entry in _table(problems, data, "boards").items():
        for spec in _board(problems, path, name, entry):
            if spec.name in specs:
                problems.add(("boards", name), f"duplicate board name {spec.name!r}")
            _check_own_files(problems, name, spec, specs.values())
            specs[spec.name] = spec
    if not data.get("boards"):
        problems.add((), "no boards are defined: add a [boards.NAME] table")
    problems.raise_if_any()
    assert isinstance(table, _RackTable)
    lock_dir = table.lock_dir
    if lock_dir is not None and path is not None:
        lock_dir = path.resolve().parent / os.path.expanduser(lock_dir)
    # Absolute: boards are identified by their rack file, and a test may change the working directory.
    return Rack(table.name, path and path.absolute(), specs, lock_dir)


def _table(problems: _Problems, data: dict[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key, {})
    if not isinstance(value, dict):
        problems.add((key,), f"[{key}] must be a table, not {value!r}")
        return {}
    return cast(dict[str, Any], value)


def _board(problems: _Problems, path: Path | None, name: str, entry: Any) -> list[BoardSpec]:
    key = ("boards", name)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        problems.add(key, f"{name!r} is not a valid board name: use letters, digits, '-', '_' and '.'")
    if not isinstance(entry, dict):
        problems.add(key, f"[boards.{name}] must be a table, not {entry!r}")
        return []
    entry = cast(dict[str, Any], entry)
    problems.check_names(key, entry, _BOARD_KEYS)
    for table, model in (("power", Power), ("power_meter", PowerMeterSpec)):
        if isinstance(entry.get(table), dict):
            problems.check_names((*key, table), cast(dict[str, Any], entry[table]), model.model_fields)
    _check_choice(problems, (*key, "backend"), entry, _backends())
    if entry.get("chip", AUTO) != AUTO or entry.get("backend") not in ASKED_BACKENDS:
        _check_choice(problems, (*key, "chip"), entry, _chips(entry.get("chip")))
    for misfit, message in misfits(entry):
        problems.add((*key, misfit) if misfit else key, message)
    if entry.get("count", 1) != 1:
        for file in ("flash_file", "efuse_file", "mac"):
            if file in entry:
                problems.add((*key, file), f"`{file}` cannot be shared by several boards; each needs its own")
    known = {name: value for name, value in entry.items() if name in _BOARD_KEYS}
    spec = _validate(problems, key, BoardSpec, {**known, **_absolute_paths(path, entry), "name": name})
    if not isinstance(spec, BoardSpec):
        return []
    if "count" not in entry:
        return [spec]
    return [spec.model_copy(update={"name": f"{name}-{number}"}) for number in range(1, spec.count + 1)]


def _check_own_files(problems: _Problems, name: str, spec: BoardSpec, others: Iterable[BoardSpec]) -> None:
    """Refuse two virtual boards that use the same file, however it is spelled: only one could ever be leased."""
    for key in ("flash_file", "efuse_file"):
        file: Path | None = getattr(spec, key)
        if file is None:
            continue
        for other in others:
            if not set(canonical_files([file])).isdisjoint(files_of(other)):
                problems.add(("boards", name, key), f"`{key}`: {str(file)!r} belongs to the board {other.name!r}")


def _absolute_paths(path: Path | None, entry: dict[str, Any]) -> dict[str, Any]:
    """Return the entry's files as absolute paths; relative ones start at the rack file's folder."""
    folder = path.resolve().parent if path else Path.cwd()
    return {
        key: folder / os.path.expanduser(entry[key])  # does not raise for unknown users
        for key in ("flash_file", "efuse_file")
        if isinstance(entry.get(key), str)
    }


def _check_choice(problems: _Problems, key: tuple[str, ...], entry: dict[str, Any], choices: Sequence[str]) -> None:
    value = entry.get(key[-1])
    if value is None:
        problems.add(key, f"`{key[-1]}` is missing: one of {', '.join(choices)}")
    elif value not in choices:
        problems.add(key, f"`{key[-1]}`: unknown value {value!r}; nearest: {nearest(str(value), choices)}")


@functools.cache
def _backends() -> list[str]:
    return [*BACKENDS, *sorted(entry_points(group="pytest_esp.backends").names - set(BACKENDS))]


def _chips(wanted: object) -> Sequence[str]:
    """Return the known chips; only for one that is not in our own list, those of the installed esptool."""
    if wanted in CHIPS:
        return CHIPS
    from esptool.targets import CHIP_LIST

    return CHIP_LIST


def _validate(problems: _Problems, key: tuple[str, ...], model: type[BaseModel], data: dict[str, Any]) -> Any:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        for item in error.errors():
            place = (*key, *(part for part in item["loc"] if isinstance(part, str)))
            if not problems.found_in(place):  # do not report a problem twice
                problems.add(place, _in_words(place[-1] if len(place) > len(key) else "", item, model))
        return None


def _in_words(key: str, item: ErrorDetails, model: type[BaseModel]) -> str:
    if item["type"] == "extra_forbidden":
        return _unknown_key(key, _table_at(model, item["loc"][:-1]).model_fields)
    text = item["msg"].removeprefix("Value error, ")
    if item["type"] == "literal_error":
        expected = re.findall(r"'([^']*)'", item.get("ctx", {}).get("expected", ""))
        text += f"; nearest: {nearest(str(item['input']), expected)}"
    shown = "" if isinstance(item["input"], dict) else f" (it is {item['input']!r})"
    return f"`{key}`: {text}{shown}" if key else text


def _table_at(model: type[BaseModel], place: Iterable[int | str]) -> type[BaseModel]:
    """Return the model of a nested table of *model*."""
    for part in place:
        field = model.model_fields.get(str(part))
        kinds = (field.annotation, *get_args(field.annotation)) if field is not None else ()
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), model)
    return model


def _unknown_key(name: str, names: Iterable[str]) -> str:
    return f"unknown key `{name}`; nearest: {nearest(name, names)}"


class _Problems:
    """Collects a file's errors with the line of each key."""

    def __init__(self, path: Path | None, text: str) -> None:
        self._path = path
        self._lines = locate_keys(text)
        self._found: list[tuple[tuple[str, ...], str]] = []

    def add(self, key: tuple[str, ...], message: str) -> None:
        self._found.append((key, message))

    def found_in(self, key: tuple[str, ...]) -> bool:
        return any(found[: len(key)] == key for found, _ in self._found)

    def check_names(self, key: tuple[str, ...], data: dict[str, Any], names: Collection[str]) -> None:
        for name in data:
            if name not in names:
                self.add((*key, name), _unknown_key(name, names))

    def raise_if_any(self) -> None:
        if not self._found:
            return
        lines = sorted((self._line(key), ".".join(key), message) for key, message in self._found)
        where = self._path or "built-in rack"
        text = "\n".join(f"{where}:{line}: {f'[{key}] ' if key else ''}{message}" for line, key, message in lines)
        raise RackError(text, hint="see docs/boards.md for the keys")

    def _line(self, key: tuple[str, ...]) -> int:
        while key and key not in self._lines:
            key = key[:-1]
        return self._lines.get(key, 1)
