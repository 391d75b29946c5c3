"""What chips have reported about themselves, remembered by MAC address, and the chip last seen on each port.

Both are small JSON files in the state folder, one for each chip and one for each port. Whoever has connected to a
board writes them, under its lease; they are only a hint until the chip is connected again. What is read is not trusted:
a file with wrong contents counts as absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pytest_esp.errors import PortError
from pytest_esp.rack.chips import AUTO
from pytest_esp.rack.identity import identity, state_folder
from pytest_esp.units import format_revision, format_size

if TYPE_CHECKING:
    from pytest_esp.rack.rack import Rack
    from pytest_esp.rack.spec import BoardSpec

REPORTED_FEATURES = ("psram", "embedded-flash")
"""The features that a chip reports itself; all others are words of the user."""

_FOLDER = "facts"
_LARGEST = 4096  # bytes
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
_CHIP = re.compile(r"esp[0-9a-z]{2,16}")


@dataclass(frozen=True)
class Facts:
    """What a chip reports about itself.

    Attributes:
        chip: as esptool names it.
        mac: base MAC address, ``"7c:df:a1:00:00:01"``; None in secure download mode, as all that follows.
        revision: major * 100 + minor; None if the chip does not report it (ESP8266).
        flash_size: in bytes, from the flash ID; None if the ID is unknown.
        crystal: the crystal's frequency in MHz.
        features: those of `REPORTED_FEATURES` that it has.
    """

    chip: str
    mac: str | None = None
    revision: int | None = None
    flash_size: int | None = None
    crystal: int | None = None
    features: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return one line for people: ``esp32c3 v0.4, 4MB of flash, 40 MHz crystal``."""
        words = (
            self.chip + (f" {format_revision(self.revision)}" if self.revision is not None else ""),
            f"{format_size(self.flash_size)} of flash" if self.flash_size else "",
            f"{self.crystal} MHz crystal" if self.crystal else "",
            *self.features,
        )
        return ", ".join(filter(None, words))


def filled_in(spec: BoardSpec, facts: Facts | None) -> BoardSpec:
    """Return *spec* with the facts that its entry does not give."""
    if facts is None:
        return spec
    found = {key: getattr(facts, key) for key in ("flash_size", "revision", "crystal") if getattr(spec, key) is None}
    chip = facts.chip if spec.chip == AUTO else spec.chip
    return spec.model_copy(update={**found, "chip": chip, "features": spec.features | set(facts.features)})


def contradictions(spec: BoardSpec, facts: Facts) -> Iterator[tuple[str, str]]:
    """Yield each key that an entry gives wrongly, and a message with both values."""
    if spec.chip not in (AUTO, facts.chip):
        yield "chip", f"the chip is an {facts.chip}, but boards.toml says chip = {spec.chip!r}"
    for key, what, write in (
        ("flash_size", "the flash has", format_size),
        ("revision", "the chip's revision is", format_revision),
        ("crystal", "the frequency of the chip's crystal in MHz is", str),
    ):
        stated, found = getattr(spec, key), getattr(facts, key)
        if None not in (stated, found) and stated != found:
            value = stated if key == "crystal" else repr(write(stated))
            yield key, f"{what} {write(found)}, but boards.toml says {key} = {value}"


# -- remembering


def remembered(spec: BoardSpec, rack: Rack) -> Facts | None:
    """Return the facts of the chip last seen on a real board's port, or of the one that its entry pins; else None."""
    mac = spec.mac or last_seen(spec, rack)
    return recall(mac) if mac and not spec.virtual else None


def recall(mac: str) -> Facts | None:
    """Return the facts of the chip with this MAC address; None if they are not remembered."""
    record = _read(_file_of_chip(mac))
    return _facts(record) if record.get("mac") == mac else None


def last_seen(spec: BoardSpec, rack: Rack) -> str | None:
    """Return the MAC address of the chip last seen on a real board's port; None if that is not remembered."""
    port = _port(spec, rack)
    if port is None:
        return None
    record = _read(_file_of_port(port))
    mac = record.get("mac")
    return mac if record.get("port") == port and isinstance(mac, str) and _MAC.fullmatch(mac) else None


def remember(spec: BoardSpec, rack: Rack, facts: Facts) -> None:
    """Remember what the chip on a real board's port has reported. Has no effect if the folder cannot be written."""
    if facts.mac is None:
        return
    with contextlib.suppress(OSError):
        if recall(facts.mac) != facts:
            _write(_file_of_chip(facts.mac), asdict(facts))
        if last_seen(spec, rack) != facts.mac and (port := _port(spec, rack)) is not None:
            _write(_file_of_port(port), {"port": port, "mac": facts.mac})


def _port(spec: BoardSpec, rack: Rack) -> str | None:
    """Return the identity of a real board's port; None for tags of a lab, which several places may have."""
    if spec.virtual or (spec.tags and not spec.place):
        return None
    with contextlib.suppress(PortError):
        return identity(spec, rack)
    return None


def _file_of_chip(mac: str) -> Path:
    return state_folder() / _FOLDER / f"chip-{mac.replace(':', '')}.json"


def _file_of_port(port: str) -> Path:
    return state_folder() / _FOLDER / f"port-{hashlib.sha256(os.fsencode(port)).hexdigest()[:16]}.json"


def _read(path: Path) -> dict[str, Any]:
    """Return the table in a file; an empty one if there is none, or it is too large."""
    try:
        if not path.is_file():  # reading from a pipe may never end
            return {}
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        record = json.loads(data) if len(data) <= _LARGEST else None
    except (OSError, ValueError, RecursionError):
        return {}
    return cast(dict[str, Any], record) if isinstance(record, dict) else {}


def _write(path: Path, record: dict[str, Any]) -> None:
    """Write a temporary file and rename it: other processes may read or write the same file at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(record, file)
        os.replace(part, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def _facts(record: dict[str, Any]) -> Facts | None:
    """Return the facts in a record; None if it is not one that `remember` writes."""
    chip, mac, features = record.get("chip"), record.get("mac"), record.get("features")
    right = (
        isinstance(chip, str) and _CHIP.fullmatch(chip),
        isinstance(mac, str) and _MAC.fullmatch(mac),
        isinstance(features, list) and all(one in REPORTED_FEATURES for one in cast(list[Any], features)),
        _is_number(record.get("revision"), 0, 9999),
        _is_number(record.get("flash_size"), 1, 1 << 32),
        _is_number(record.get("crystal"), 1, 200),
    )
    if not all(right) or record.keys() != Facts.__dataclass_fields__.keys():
        return None
    values: dict[str, Any] = {**record, "features": tuple(cast(list[str], features))}
    return Facts(**values)


def _is_number(value: Any, least: int, most: int) -> bool:
    return value is None or (type(value) is int and least <= value <= most)
