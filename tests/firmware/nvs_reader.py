"""What the partition "nvs" of a flash holds, in the words of the test firmware's command ``nvs`` (app/nvs.c).

It is there to be held against others, and so shares no code with them: neither with the operations on NVS nor
with Espressif's generator. Format: "Non-Volatile Storage Library", section "Internals", of ESP-IDF's programming guide.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Read = Callable[[int, int], bytes]
"""Reads flash: address and size."""

_TABLE, _TABLE_ENTRIES, _NVS = 0x8000, 96, struct.pack("<HBB", 0x50AA, 1, 2)
_PAGE, _ENTRY, _ENTRIES, _MAX_PAGES, _MAX_ITEMS = 4096, 32, 126, 64, 1024
_IN_USE = (0xFFFFFFFE, 0xFFFFFFFC, 0xFFFFFFF8)  # active, full, being freed
_NUMBERS = {0x01: "B", 0x11: "b", 0x02: "H", 0x12: "h", 0x04: "I", 0x14: "i", 0x08: "Q", 0x18: "q"}
_STRING, _OLD_BLOB, _BLOB_DATA, _BLOB_INDEX = 0x21, 0x41, 0x42, 0x48
_WRITTEN, _EMPTY = 2, 3
_ACTIVE = b"\xfe\xff\xff\xff"
_SHORT_BLOB = 32


class _UnreachableError(Exception):
    """An app would not get this value."""


@dataclass(frozen=True)
class _Item:
    namespace: int
    type: int
    chunk: int
    key: str
    inline: bytes
    data: bytes

    @property
    def identity(self) -> tuple[int, str, int | None]:
        return self.namespace, self.key, self.chunk if self.type == _BLOB_DATA else None


@dataclass
class _Nvs:
    items: dict[tuple[int, str, int | None], _Item] = field(default_factory=dict)
    """In the order in which they were written; the newest of each."""
    names: dict[int, str] = field(default_factory=dict)
    entries: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, item: _Item) -> None:
        """Take an entry's value in the place of an older one."""
        self.entries += 1
        if self.entries > _MAX_ITEMS:
            if self.entries == _MAX_ITEMS + 1:
                self.problems.append(f"there are more than {_MAX_ITEMS} entries: the rest was not looked at")
            return
        self.items.pop(item.identity, None)
        self.items[item.identity] = item
        if not item.namespace:
            self.names[item.inline[0]] = item.key


def nvs_lines(read: Read, selection: str = "") -> list[str]:
    """Return what the command prints: all values, or that of *selection* ("NAMESPACE KEY"), damage, and how many."""
    nvs = _Nvs()
    _read_partition(read, nvs)
    lines = [f"nvs: {problem}" for problem in nvs.problems]
    namespace, _, key = selection.partition(" ")
    is_one = " " in selection
    values = 0
    for item in nvs.items.values():
        if item.namespace == 0 or item.type == _BLOB_DATA:
            continue
        name = nvs.names.get(item.namespace, "")
        if is_one and (name, item.key) != (namespace, key):
            continue
        try:
            lines.append(f"nvs {name}.{item.key} {_value(nvs, item, name, is_one)}")
            values += 1
        except _UnreachableError as error:
            nvs.problems.append(str(error))
            lines.append(f"nvs: {error}")
    return [*lines, f"nvs: values {values}, problems {len(nvs.problems)}"]


def _read_partition(read: Read, nvs: _Nvs) -> None:
    place = _partition(read)
    if place is None:
        nvs.problems.append("there is no partition nvs")
        return
    offset, size = place
    count = size // _PAGE
    if count > _MAX_PAGES:
        nvs.problems.append(f"there are more than {_MAX_PAGES} pages: the rest was not looked at")
    pages: list[tuple[int, int, bytes]] = []
    for number in range(min(count, _MAX_PAGES)):
        raw = read(offset + number * _PAGE, _PAGE)
        state, sequence = struct.unpack_from("<II", raw)
        if raw == b"\xff" * _PAGE:
            continue
        if state not in _IN_USE or _crc(raw[4:28]) != struct.unpack_from("<I", raw, 28)[0]:
            nvs.problems.append(f"page {number} is damaged")
        elif raw[8] not in (0xFF, 0xFE):
            nvs.problems.append(f"page {number} is of the unknown version {0x100 - raw[8]}")
        else:
            pages.append((sequence, number, raw))
    for _, number, raw in sorted(pages):
        _read_page(nvs, raw, number)


def _partition(read: Read) -> tuple[int, int] | None:
    for number in range(_TABLE_ENTRIES):
        raw = read(_TABLE + number * 32, 32)
        if raw[:2] != _NVS[:2]:
            return None
        if raw[:4] == _NVS and raw[12:28].split(b"\0")[0] == b"nvs":
            return struct.unpack_from("<II", raw, 4)
    return None


def _read_page(nvs: _Nvs, raw: bytes, number: int) -> None:
    bits = int.from_bytes(raw[32:64], "little")
    states = [bits >> 2 * index & 3 for index in range(_ENTRIES)]
    written = [state == _WRITTEN for state in states]
    is_active = raw[:4] == _ACTIVE
    end = states.index(_EMPTY) if is_active and _EMPTY in states else _ENTRIES
    bad: list[int] = []
    good = index = 0
    while index < _ENTRIES:
        span = 1
        if written[index] and index > end:  # the library will write here, and keeps nothing of it
            bad.append(index)
            break
        if written[index]:
            entry = raw[(index + 2) * _ENTRY : (index + 3) * _ENTRY]
            following = raw[(index + 3) * _ENTRY :]
            item = _item(entry, following)
            if item is not None and item.type in (_STRING, _OLD_BLOB, _BLOB_DATA):
                span = max(entry[2], 1)
                size, crc = struct.unpack_from("<H2xI", entry, 24)
                is_whole = index + entry[2] <= _ENTRIES and size <= (entry[2] - 1) * _ENTRY
                if not is_whole or not all(written[index : index + span]) or _crc(item.data) != crc:
                    item = None
            if item is None:
                bad.append(index)
            else:
                good += 1
                nvs.add(item)
        index += span
    if bad and not good:
        nvs.problems.append(f"no entry of page {number} can be read: is it encrypted?")
    elif bad:
        nvs.problems += [f"entry {index} of page {number} is damaged" for index in bad]


def _item(entry: bytes, following: bytes) -> _Item | None:
    namespace, kind, _, chunk, crc = struct.unpack_from("<BBBBI", entry)
    if _crc(entry[:4] + entry[8:]) != crc or kind not in (*_NUMBERS, _STRING, _OLD_BLOB, _BLOB_DATA, _BLOB_INDEX):
        return None
    key = entry[8:23].split(b"\0")[0].decode("latin-1")
    return _Item(namespace, kind, chunk, key, entry[24:], following[: int.from_bytes(entry[24:26], "little")])


def _value(nvs: _Nvs, item: _Item, name: str, is_one: bool) -> str:
    if not name:
        raise _UnreachableError(f"{item.key} is in namespace {item.namespace}, which has no name")
    if item.type == _STRING:
        return f"string = {''.join(_escaped(item.data.split(bytes(1))[0]))}"
    if item.type in _NUMBERS:
        letter = _NUMBERS[item.type]
        sign = "u" if letter.isupper() else "i"
        return f"{sign}{8 * struct.calcsize('<' + letter)} = {struct.unpack_from('<' + letter, item.inline)[0]}"
    data = item.data if item.type == _OLD_BLOB else _joined(nvs, item, name)
    if is_one or len(data) <= _SHORT_BLOB:
        return f"blob = {data.hex()}"
    return f"blob = {len(data)} bytes, crc32 {zlib.crc32(data):08x}"


def _joined(nvs: _Nvs, item: _Item, name: str) -> bytes:
    size, count, first = struct.unpack_from("<IBB", item.inline)
    chunks = [nvs.items.get((item.namespace, item.key, first + number)) for number in range(count)]
    data = b"".join(chunk.data for chunk in chunks if chunk is not None)
    if None in chunks or len(data) != size:
        raise _UnreachableError(f"the blob {name}.{item.key} is not complete")
    return data


def _escaped(text: bytes) -> Iterator[str]:
    for byte in text:
        is_plain = byte >= ord(" ") and byte not in (0x7F, ord("\\"))
        yield chr(byte) if is_plain else f"\\x{byte:02x}"


def _crc(data: bytes) -> int:
    return zlib.crc32(data, 0xFFFFFFFF)
