"""Reads what build systems list: ``flasher_args.json``, ``flash_args``, PlatformIO's ``idedata.json``, sdkconfig."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from pytest_esp.errors import FirmwareError
from pytest_esp.formats.files import allows, resolve
from pytest_esp.formats.flash_settings import DETECT, KEEP, FlashSettings
from pytest_esp.formats.regions import contents_of
from pytest_esp.units import parse_size

_AGAIN = "build the project again"
_WITHOUT_VALUE = {
    "-z",
    "-u",
    "-e",
    "-p",
    "--compress",
    "--no-compress",
    "--erase-all",
    "--encrypt",
    "--force",
    "--verify",
}
_TABLE_OFFSET = re.compile(r"^CONFIG_PARTITION_TABLE_OFFSET=(\w+)", re.MULTILINE)
_INVALID = (ValueError, KeyError, TypeError, AttributeError, StopIteration)


@dataclass(frozen=True)
class Listing:
    """What a build system says about a build.

    Attributes:
        path: the file that lists it.
        files: address and name of each file, relative to *path* or absolute.
        app_offset: the app's address, if it is given.
        settings: for the header of the bootloader.
    """

    path: Path
    files: tuple[tuple[int, str], ...]
    chip: str | None = None
    app_offset: int | None = None
    settings: FlashSettings = KEEP


def read_listing(folder: Path) -> Listing | None:
    """Return what ``flasher_args.json`` or ``flash_args`` lists; None if the folder has neither.

    Raises:
        FirmwareError: if it is damaged.
    """
    for name, read in (("flasher_args.json", _flasher_args), ("flash_args", _flash_args)):
        path = folder / name
        if resolve(path).is_file():
            return _checked(path, read)
    return None


def read_idedata(folder: Path, app: str) -> Listing | None:
    """Return what PlatformIO's ``idedata.json`` lists, with the program named *app*; None if there is none.

    Raises:
        FirmwareError: if it is damaged.
    """
    path = folder / "idedata.json"
    return _checked(path, partial(_idedata, app=app)) if resolve(path).is_file() else None


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a build.

    Raises:
        FirmwareError: if it cannot be read, or is not a JSON object.
    """
    try:
        content = json.loads(contents_of(path))
    except (ValueError, RecursionError) as error:
        raise FirmwareError(f"{path} is damaged: {error}", hint=_AGAIN) from error
    if not isinstance(content, dict):
        raise FirmwareError(f"{path} is damaged: expected a JSON object", hint=_AGAIN)
    return cast(dict[str, Any], content)


def table_offset_of(folder: Path) -> int | None:
    """Return the address of the partition table in the build's configuration; None if there is none.

    Arduino copies its ``sdkconfig`` into the build folder; PlatformIO keeps ``sdkconfig.ENV`` beside platformio.ini.
    """
    root = folder.parents[2] if len(folder.parents) > 2 else folder
    for path in (folder / "sdkconfig", root / f"sdkconfig.{folder.name}", root / "sdkconfig"):
        if allows(path) and resolve(path).is_file():
            found = _TABLE_OFFSET.search(contents_of(path).decode("utf-8", "replace"))
            if found is not None:
                return int(found[1], 0)
    return None


def _checked(path: Path, read: Callable[[Path], Listing | None]) -> Listing | None:
    try:
        return read(path)
    except _INVALID as error:
        raise FirmwareError(f"{path} is damaged: {error!r}", hint=_AGAIN) from error


def _flasher_args(path: Path) -> Listing:
    content = read_json(path)
    chip = content.get("extra_esptool_args", {}).get("chip")
    if not isinstance(chip, str | None):
        raise TypeError(f"chip is {chip!r}")
    app_offset = content.get("app", {}).get("offset")
    words = [str(word) for word in content.get("write_flash_args", [])]
    settings = content.get("flash_settings", {})
    return Listing(
        path,
        _files(content["flash_files"].items()),
        chip,
        None if app_offset is None else parse_size(app_offset),
        _settings(settings) if settings else _arguments(words)[0],
    )


def _flash_args(path: Path) -> Listing:
    settings, files = _arguments(shlex.split(contents_of(path).decode("utf-8-sig")))
    if not files:
        raise ValueError("it lists no files")
    return Listing(path, files, settings=settings)


def _arguments(words: Iterable[str]) -> tuple[FlashSettings, tuple[tuple[int, str], ...]]:
    """Return the settings and files in arguments of ``esptool write-flash``."""
    options: dict[str, str] = {}
    files: list[tuple[str, str]] = []
    rest = iter(words)
    for word in rest:
        if word in _WITHOUT_VALUE:
            continue
        if word.startswith("-"):
            options[word.lstrip("-").replace("-", "_")] = next(rest)
        else:
            files.append((word, next(rest)))
    return _settings(options), _files(files)


def _settings(options: Mapping[str, Any]) -> FlashSettings:
    """Return settings by esptool's names: ``flash_mode``, ``flash_freq`` and ``flash_size``."""
    mode, frequency, size = (str(options.get(f"flash_{name}", "keep")) for name in ("mode", "freq", "size"))
    return FlashSettings(mode, frequency, size)


def _files(pairs: Iterable[tuple[int | str, str]]) -> tuple[tuple[int, str], ...]:
    found = tuple((parse_size(address), name) for address, name in pairs)
    if not all(isinstance(name, str) for _, name in found):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError("a file name is not text")
    return found


def _idedata(path: Path, app: str) -> Listing | None:
    extra = read_json(path).get("extra", {})
    images = extra.get("flash_images", [])
    if not images:
        return None
    offset = None if extra.get("merged_firmware") else extra.get("application_offset")
    if offset is None:
        return None
    files = [(image["offset"], image["path"]) for image in images]
    return Listing(path, _files([*files, (offset, app)]), app_offset=parse_size(offset), settings=DETECT)
