"""Updates values in an NVS partition and keeps the others: read, merge, write, read back."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pytest_esp.errors import EspError, OperationError
from pytest_esp.formats.nvs_pages import NvsContents, NvsEntry
from pytest_esp.formats.nvs_values import NvsData
from pytest_esp.link.link import Link
from pytest_esp.operations.flash import reading, tables, writing
from pytest_esp.operations.partitions import nvs
from pytest_esp.operations.partitions.nvs import NvsImage

Key = tuple[str, str]
"""Namespace and key."""


@dataclass(frozen=True)
class NvsUpdate:
    """The result of an update; values are never shown.

    Attributes:
        partition: name of the partition.
        state: whether anything had to be written.
        written: ``"namespace.key"`` of all requested values.
        removed: ``"namespace.key"`` of the values that were removed.
        kept: number of other values, which are unchanged.
        verified: whether all values read back correctly; an update that fails this is an error.
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
    """Write *values* to an NVS partition and keep its other values; *remove* names values to remove.

    Raises:
        OperationError: if there is no such partition, it is damaged or encrypted with another key, the values are
            invalid, or do not read back.
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
    """Write an NVS partition; an error says that its old contents may be lost."""
    try:
        writing.write(link, image.data, offset)
    except EspError as error:
        state = f"an error occurred while writing {partition}: it may be blank or partly written"
        error.hint = "; ".join(filter(None, (state, error.hint)))
        raise


def check(link: Link, wanted: dict[Key, NvsEntry], partition: str, key_file: str | os.PathLike[str] | None) -> None:
    """Check that a partition contains exactly these values.

    Raises:
        OperationError: if not; names the keys.
    """
    found = table_of(nvs.read(link, partition, key_file=key_file).entries)
    wrong = sorted({key for key in {*wanted, *found} if wanted.get(key) != found.get(key)})
    if wrong:
        raise OperationError(
            f"NVS values read back differently: {', '.join(_names(wrong))}",
            hint="the flash may be damaged: check it with flash-analyze",
        )


def table_of(entries: Iterable[NvsEntry]) -> dict[Key, NvsEntry]:
    """Return entries by namespace and key."""
    return {(entry.namespace, entry.key): entry for entry in entries}


def as_data(entries: Iterable[NvsEntry]) -> dict[str, dict[str, Any]]:
    """Return entries in the form that `nvs.make` takes."""
    data: dict[str, dict[str, Any]] = {}
    for entry in entries:
        data.setdefault(entry.namespace, {})[entry.key] = {"type": entry.type, "value": entry.value}
    return data


def _names(keys: Iterable[Key]) -> tuple[str, ...]:
    return tuple(sorted(f"{namespace}.{key}" for namespace, key in keys))


def _refuse_unreadable(partition: str, contents: NvsContents) -> None:
    if contents.encrypted:
        raise OperationError(
            f"the partition {partition} is encrypted: its other values could not be kept",
            hint="give the right nvs_key_file",
        )
    if contents.problems:
        raise OperationError(
            f"the partition {partition} is damaged: {contents.problems[0]}",
            hint="to discard its values, erase the partition with production-factory-reset",
        )


def _refuse_other_encodings(raw: bytes, entries: Iterable[NvsEntry], encrypted: bool) -> None:
    """Reject text that is not UTF-8: it was read with some bytes escaped by backslashes, and would be written so."""
    for entry in entries:
        text = str(entry.value)
        if entry.type == "string" and "\\x" in text and (encrypted or text.encode() + b"\0" not in raw):
            raise OperationError(
                f"{entry.namespace}.{entry.key} is text that is not UTF-8: it could not be kept unchanged",
                hint="store it as a blob in the app",
            )
