"""Reads the pages of an NVS partition, and makes them with Espressif's generator.

Source: "Non-Volatile Storage Library", section Internals, of ESP-IDF's guide.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from pytest_esp.errors import OperationError
from pytest_esp.formats.nvs_values import ENCODING_ERRORS, NvsData, rows_of

PAGE = 4096
KEY_SIZE = 64
_ENTRY, _FIRST_ENTRY, _ENTRIES = 32, 64, 126
_LEAST_PAGES = 3
_NEWEST_VERSION = 2
_STATES = {0xFFFFFFFF: "empty", 0xFFFFFFFE: "active", 0xFFFFFFFC: "full", 0xFFFFFFF8: "freeing", 0xFFFFFFF0: "corrupt"}
_NUMBERS = {0x01: "u8", 0x11: "i8", 0x02: "u16", 0x12: "i16", 0x04: "u32", 0x14: "i32", 0x08: "u64", 0x18: "i64"}
_STRING, _OLD_BLOB, _BLOB_DATA, _BLOB_INDEX = 0x21, 0x41, 0x42, 0x48
_EMPTY, _WRITTEN, _ERASED = 3, 2, 0


# -- reading


@dataclass(frozen=True)
class NvsEntry:
    """A value; *type* is ``"u8"`` to ``"i64"``, ``"string"`` or ``"blob"`` (the value is hex digits)."""

    namespace: str
    key: str
    type: str
    value: int | str


@dataclass(frozen=True)
class NvsPage:
    """One page of 4 KB.

    Attributes:
        state: ``"empty"``, ``"active"``, ``"full"``, ``"freeing"``, ``"corrupt"`` (marked as such, or not blank where
            it should be), or ``"damaged"`` if its header's checksum is wrong.
        sequence, version: None unless the page is in use.
        written, erased, free: the number of its 126 entries in each state.
        encrypted: whether none of its entries can be read, as with NVS encryption and without the right key.
    """

    number: int
    state: Literal["empty", "active", "full", "freeing", "corrupt", "damaged"]
    sequence: int | None
    version: int | None
    written: int
    erased: int
    free: int
    encrypted: bool


@dataclass(frozen=True)
class NvsContents:
    """The contents of an NVS partition.

    Attributes:
        entries: all values that an app can read, by namespace and key.
        encrypted: whether some pages cannot be read without the right key.
        problems: damaged entries and pages, and values that an app cannot read.
    """

    namespaces: tuple[str, ...]
    entries: tuple[NvsEntry, ...]
    pages: tuple[NvsPage, ...]
    encrypted: bool
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _Item:
    """An entry of a page, with the data that follows it."""

    namespace: int
    type: int
    chunk: int
    key: str
    inline: bytes
    data: bytes


def read_pages(data: bytes, key: bytes | None = None) -> NvsContents:
    """Return the contents of an NVS partition.

    Args:
        data: the whole partition.
        key: the NVS encryption key: the first 64 bytes of the generator's key file or the nvs_keys partition.

    Raises:
        OperationError: if the size is not a multiple of the page size, or the key is not 64 bytes long.
    """
    if not data or len(data) % PAGE:
        raise OperationError(
            f"invalid size of an NVS partition: {len(data)} bytes", hint="expected a multiple of 4096 bytes"
        )
    if key is not None and len(key) != KEY_SIZE:
        raise OperationError(f"an NVS key has {KEY_SIZE} bytes, not {len(key)}")
    problems: list[str] = []
    pages: list[NvsPage] = []
    items: list[tuple[int, list[_Item]]] = []
    for number in range(len(data) // PAGE):
        page, found = _page(data[number * PAGE : (number + 1) * PAGE], number, key, problems)
        pages.append(page)
        items.append((page.sequence or 0, found))
    in_order = [item for _, found in sorted(items, key=lambda pair: pair[0]) for item in found]
    names = {item.inline[0]: item.key for item in in_order if item.namespace == 0}
    entries = _entries([item for item in in_order if item.namespace], names, problems)
    return NvsContents(
        namespaces=tuple(sorted(names.values())),
        entries=tuple(sorted(entries, key=lambda entry: (entry.namespace, entry.key))),
        pages=tuple(pages),
        encrypted=any(page.encrypted for page in pages),
        problems=tuple(problems),
    )


def _page(raw: bytes, number: int, key: bytes | None, problems: list[str]) -> tuple[NvsPage, list[_Item]]:
    state_word, sequence = struct.unpack_from("<II", raw)
    state = cast(Any, _STATES.get(state_word, "damaged"))
    if state == "empty" and raw == b"\xff" * PAGE:
        return NvsPage(number, "empty", None, None, 0, 0, _ENTRIES, False), []
    if state in ("empty", "corrupt"):  # ESP-IDF's library ignores the page
        problems.append(f"page {number}: it is {'not blank' if state == 'empty' else 'marked as corrupt'}")
        return NvsPage(number, "corrupt", None, None, 0, 0, 0, False), []
    if state == "damaged" or zlib.crc32(raw[4:28], 0xFFFFFFFF) != struct.unpack_from("<I", raw, 28)[0]:
        problems.append(f"page {number}: its header is damaged")
        return NvsPage(number, "damaged", None, None, 0, 0, 0, False), []
    bits = int.from_bytes(raw[32:64], "little")
    states = [bits >> 2 * index & 3 for index in range(_ENTRIES)]
    version = 0x100 - raw[8]  # version 1 is written as 0xff, version 2 as 0xfe
    # The library continues an active page at its first empty entry, and ignores everything after it.
    end = states.index(_EMPTY) if state == "active" and _EMPTY in states else _ENTRIES
    good, bad = _items(raw, number, states, end, key) if version <= _NEWEST_VERSION else ([], [])
    encrypted = bool(bad) and not good
    if version > _NEWEST_VERSION:
        problems.append(f"page {number}: unknown version {version}")
    elif not encrypted:
        problems += [f"page {number}, entry {index}: wrong checksum, or truncated" for index in bad]
    written, erased, free = (states.count(kind) for kind in (_WRITTEN, _ERASED, _EMPTY))
    return NvsPage(number, state, sequence, version, written, erased, free, encrypted), good


def _items(raw: bytes, number: int, states: list[int], end: int, key: bytes | None) -> tuple[list[_Item], list[int]]:
    """Return the valid entries before *end*, and the indices of the invalid ones."""
    good: list[_Item] = []
    bad: list[int] = []
    index = 0
    while index < _ENTRIES:
        if states[index] != _WRITTEN:
            index += 1
            continue
        if index > end:
            bad.append(index)
            break
        head = _plain(raw, number, index, 1, key)
        span = head[2]
        if zlib.crc32(head[:4] + head[8:], 0xFFFFFFFF) != struct.unpack_from("<I", head, 4)[0] or not span:
            bad.append(index)
            index += 1
            continue
        item = _item(head, _plain(raw, number, index + 1, min(span, _ENTRIES - index) - 1, key))
        if item is None or any(state != _WRITTEN for state in states[index : index + span]):
            bad.append(index)
        else:
            good.append(item)
        index += span
    return good, bad


def _item(head: bytes, following: bytes) -> _Item | None:
    data = b""
    if head[1] in (_STRING, _OLD_BLOB, _BLOB_DATA):
        size, check = struct.unpack_from("<H2xI", head, 24)
        data = following[:size]
        if len(data) != size or zlib.crc32(data, 0xFFFFFFFF) != check:
            return None
    name = head[8:24].split(b"\0")[0].decode("utf-8", "backslashreplace")
    return _Item(head[0], head[1], head[3], name, head[24:32], data)


def _plain(raw: bytes, number: int, index: int, count: int, key: bytes | None) -> bytes:
    start = _FIRST_ENTRY + index * _ENTRY
    data = raw[start : start + count * _ENTRY]
    if key is None:
        return data
    parts: list[bytes] = []
    for offset in range(0, len(data), _ENTRY):
        # The tweak is the entry's address in the partition.
        tweak = (number * PAGE + start + offset).to_bytes(16, "little")
        cipher = Cipher(algorithms.AES(key), modes.XTS(tweak)).decryptor()
        parts.append(cipher.update(data[offset : offset + _ENTRY]))
    return b"".join(parts)


def _entries(items: list[_Item], names: dict[int, str], problems: list[str]) -> Iterator[NvsEntry]:
    chunks = {(item.namespace, item.key, item.chunk): item.data for item in items if item.type == _BLOB_DATA}
    newest = {(item.namespace, item.key): item for item in items if item.type != _BLOB_DATA}
    for item in newest.values():
        value = _value(item, chunks)
        if item.namespace not in names:
            problems.append(f"{item.key}: its namespace {item.namespace} does not have a name")
        elif value is None:
            what = f"{names[item.namespace]}.{item.key}"
            problems.append(f"{what}: incomplete, or of unknown type {item.type:#04x}")
        else:
            yield NvsEntry(names[item.namespace], item.key, *value)


def _value(item: _Item, chunks: dict[tuple[int, str, int], bytes]) -> tuple[str, int | str] | None:
    if item.type in _NUMBERS:
        kind = _NUMBERS[item.type]
        size = int(kind[1:]) // 8
        return kind, int.from_bytes(item.inline[:size], "little", signed=kind[0] == "i")
    if item.type == _STRING:
        return "string", item.data.split(b"\0")[0].decode("utf-8", "backslashreplace")
    if item.type == _OLD_BLOB:
        return "blob", item.data.hex()
    if item.type == _BLOB_INDEX:
        size, count, start = struct.unpack_from("<IBB", item.inline)
        data = b"".join(chunks.get((item.namespace, item.key, start + number), b"") for number in range(count))
        return ("blob", data.hex()) if len(data) == size else None
    return None


# -- making


def make_pages(values: NvsData | str | Path, size: int, key: bytes | None = None) -> bytes:
    """Return an NVS partition of *size* bytes, made by Espressif's generator.

    Args:
        values: see `NvsData`; or a CSV file for that generator (files in it are relative to it).
        size: the size of the partition, at least 0x3000.
        key: the NVS encryption key, 64 bytes.

    Raises:
        OperationError: if a value does not fit its type, a name is too long, or the partition is too small; for a CSV
            file, the message has the line and the key.
    """
    from esp_idf_nvs_partition_gen import nvs_partition_gen as generator

    if size % PAGE or size < _LEAST_PAGES * PAGE:
        raise OperationError(
            f"invalid size of an NVS partition: {size:#x} bytes", hint="use a multiple of 0x1000, at least 0x3000"
        )
    if key is not None and len(key) != KEY_SIZE:
        raise OperationError(f"an NVS key has {KEY_SIZE} bytes, not {len(key)}")
    out = io.BytesIO()
    # One page stays free: the library moves entries into it.
    partition = generator.nvs_open(out, size - PAGE, generator.Page.VERSION2, key is not None, key)
    is_csv = isinstance(values, (str, Path))
    for row in rows_of(values):
        try:
            if row.encoding == "namespace":
                partition.write_namespace(row.key)
            elif is_csv:  # also adds what the Wi-Fi library expects beside an SSID
                generator.write_entry(partition, row.key, "data", row.encoding, row.value)
            else:
                partition.write_entry(row.key, row.value, row.encoding)
        except generator.InsufficientSizeError as error:
            raise OperationError(
                f"{row.place}there is no room for {row.key!r} in {size:#x} bytes", hint="make the partition larger"
            ) from error
        except ENCODING_ERRORS as error:
            raise row.error(f"is invalid: {error}", hint=f"it does not fit {row.encoding}") from error
    generator.nvs_close(partition)
    return out.getvalue()
