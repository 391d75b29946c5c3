"""Values put into an NVS partition that has others already: read, joined, written back, and read again."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pytest_esp.errors import EspError, OperationError
from pytest_esp.formats.nvs_pages import NvsContents, NvsData, NvsEntry
from pytest_esp.link.link import Link
from pytest_esp.operations.flash import reading, tables, writing
from pytest_esp.operations.partitions import nvs
from pytest_esp.operations.partitions.nvs import NvsImage

Key = tuple[str, str]
"""Namespace and key."""


@dataclass(frozen=True)
class NvsUpdate:
    """What an update did; values are never shown.

    Attributes:
        partition: its name.
        state: whether anything had to be written.
        written: ``"namespace.key"`` of all values that were asked for.
        removed: of those that were there, and had to go.
        kept: how many others are there, as they were.
        verified: whether all of them read back as they should; an update that does not is an error.
    """

    partition: str
    state: Literal["written", "unchanged"]
    written: tuple[str, ...]
    removed: tuple[str, ...]
    kept: int
    verified: bool


def update(
    link: Link,
    values: NvsData,
    *,
    partition: str = "nvs",
    key_file: str | os.PathLike[str] | None = None,
    remove: Collection[Key] = (),
) -> NvsUpdate:
    """Put *values* into an NVS partition and keep what else is in it; *remove* names what must go.

    Raises:
        OperationError: if there is no such partition, it is damaged or encrypted with another key, the values do not
            fit, or do not read back.
    """
    place = tables.find(link, partition)
    before = nvs.read(link, partition, key_file=key_file)
    _refuse_unreadable(partition, before)
    _refuse_other_encodings(reading.read(link, place.offset, place.size).data, before.entries, key_file is not None)
    asked = table_of(nvs.contents(nvs.make(values, place.size, key_file=key_file), key_file=key_file).entries)
    old = table_of(before.entries)
    gone = {key for key in remove if key in old and key not in asked}
    wanted = {key: entry for key, entry in {**old, **asked}.items() if key not in gone}
    if wanted != old:
        write(link, nvs.make(as_data(wanted.values()), place.size, key_file=key_file), place.offset, partition)
        check(link, wanted, partition, key_file)
    return NvsUpdate(
        partition,
        "unchanged" if wanted == old else "written",
        _names(asked),
        _names(gone),
        len(wanted) - len(asked),
        True,
    )


def write(link: Link, image: NvsImage, offset: int, partition: str) -> None:
    """Write an NVS partition; an error says that its old contents may be gone."""
    try:
        writing.write(link, image.data, offset)
    except EspError as error:
        state = f"the partition {partition} was being written: it may be blank, or partly written"
        error.hint = "; ".join(filter(None, (state, error.hint)))
        raise


def check(link: Link, wanted: dict[Key, NvsEntry], partition: str, key_file: str | os.PathLike[str] | None) -> None:
    """Check that a partition holds just these values.

    Raises:
        OperationError: if not; names the keys.
    """
    found = table_of(nvs.read(link, partition, key_file=key_file).entries)
    wrong = sorted({key for key in {*wanted, *found} if wanted.get(key) != found.get(key)})
    if wrong:
        raise OperationError(
            f"NVS does not read back what was written: {', '.join(_names(wrong))}",
            hint="the flash may be damaged: flash-analyze looks at it",
        )


def table_of(entries: Iterable[NvsEntry]) -> dict[Key, NvsEntry]:
    """Return entries by namespace and key."""
    return {(entry.namespace, entry.key): entry for entry in entries}


def as_data(entries: Iterable[NvsEntry]) -> dict[str, dict[str, Any]]:
    """Return entries as what `nvs.make` takes."""
    data: dict[str, dict[str, Any]] = {}
    for entry in entries:
        data.setdefault(entry.namespace, {})[entry.key] = {"type": entry.type, "value": entry.value}
    return data


def _names(keys: Iterable[Key]) -> tuple[str, ...]:
    return tuple(sorted(f"{namespace}.{key}" for namespace, key in keys))


def _refuse_unreadable(partition: str, contents: NvsContents) -> None:
    if contents.encrypted:
        raise OperationError(
            f"the partition {partition} is encrypted: what is in it could not be kept",
            hint="give the right nvs_key_file",
        )
    if contents.problems:
        raise OperationError(
            f"the partition {partition} is damaged: {contents.problems[0]}",
            hint="damaged values would be lost; production-factory-reset erases the partition",
        )


def _refuse_other_encodings(raw: bytes, entries: Iterable[NvsEntry], encrypted: bool) -> None:
    """Refuse text that is not UTF-8: it was read with backslashes in the place of some bytes, and would be kept so."""
    for entry in entries:
        text = str(entry.value)
        if entry.type == "string" and "\\x" in text and (encrypted or text.encode() + b"\0" not in raw):
            raise OperationError(
                f"{entry.namespace}.{entry.key} is text that is not UTF-8: it could not be kept as it is",
                hint="let the app store it as a blob",
            )
