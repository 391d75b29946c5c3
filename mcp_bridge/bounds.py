"""Answers of a bounded size: the longest fields are shortened, and a resource has the whole answer."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, cast

DEFAULT_KB = 20
MOST_KB = 1000
_NOTE = 700  # bytes for the note about what was cut
_LEAST = 64  # bytes that a field keeps
_MOST_KEPT = 64 << 20
_URI = "esp://answers/{number}"


def size_of(value: Any) -> int:
    """Return the bytes of *value* as JSON text."""
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str).encode("utf-8", "replace"))


class Archive:
    """The last whole answers that were shortened."""

    def __init__(self) -> None:
        self._texts: OrderedDict[int, str] = OrderedDict()
        self._count = 0
        self._lock = threading.Lock()

    def keep(self, answer: Mapping[str, Any]) -> str:
        """Keep an answer, and return the URI of its resource. The oldest ones make room for it."""
        text = json.dumps(answer, ensure_ascii=False, default=str)
        with self._lock:
            self._count += 1
            self._texts[self._count] = text
            while len(self._texts) > 1 and sum(map(len, self._texts.values())) > _MOST_KEPT:
                self._texts.popitem(last=False)
            return _URI.format(number=self._count)

    def read(self, number: int) -> str | None:
        """Return an answer as JSON text; None if it is not kept."""
        with self._lock:
            return self._texts.get(number)


def bounded(answer: dict[str, Any], kilobytes: int, archive: Archive) -> tuple[dict[str, Any], str | None]:
    """Return *answer* in at most *kilobytes* of JSON, and the URI of the whole one if something was cut.

    Texts and lists keep their beginning and their end. ``cut`` says what is missing.
    """
    limit = kilobytes * 1024
    size = size_of(answer)
    if size <= limit:
        return answer, None
    uri = archive.keep(answer)
    cuts: dict[str, str] = {}
    shown = cast("dict[str, Any]", _shortened(answer, limit - _NOTE, "", cuts))
    note = {
        "bytes": size,
        "fields": dict(list(cuts.items())[:5]),
        "whole_answer": uri,
        "hint": f"read that resource, or call again with answer_kb={min(size // 1024 + 1, MOST_KB)}",
    }
    return {**shown, "cut": note}, uri


def shortened(answer: dict[str, Any]) -> dict[str, Any]:
    """Return *answer* in the default size, without a note of what was cut."""
    return cast("dict[str, Any]", _shortened(answer, DEFAULT_KB * 1024, "", {}))


def _shortened(value: Any, limit: int, name: str, cuts: dict[str, str]) -> Any:
    """Return *value* in about *limit* bytes; *cuts* gets what is missing, by field."""
    if size_of(value) <= limit:
        return value
    if isinstance(value, str):
        return _text(value, limit, name, cuts)
    if isinstance(value, Mapping):
        return _table(cast("Mapping[str, Any]", value), limit, name, cuts)
    if isinstance(value, (list, tuple)):
        return _list(cast("Sequence[Any]", value), limit, name, cuts)
    return value


def _text(text: str, limit: int, name: str, cuts: dict[str, str]) -> str:
    keep = min(len(text), limit)
    while True:
        head = keep // 3
        shown = f"{text[:head]}\n... {len(text) - keep} characters cut ...\n{text[len(text) - (keep - head) :]}"
        if size_of(shown) <= limit or not keep:
            cuts[name] = f"{keep} of {len(text)} characters"
            return shown
        keep = int(keep * min(limit / size_of(shown), 0.95))  # some characters take several bytes


def _list(items: Sequence[Any], limit: int, name: str, cuts: dict[str, str]) -> list[Any]:
    """Return items from both ends, two thirds of them from the end; an item alone may not take more than a half."""
    sizes = [min(size_of(item), limit // 2) + 1 for item in items]
    first = _count(sizes, limit // 3)
    last = _count(sizes[:first:-1], limit - limit // 3 - _LEAST)
    if first + last < len(items):
        cuts[name] = f"{first + last} of {len(items)} items"
    chosen = [*items[:first], *items[len(items) - last :]]
    return [_shortened(item, limit // 2, f"{name}[]", cuts) for item in chosen]


def _count(sizes: Sequence[int], limit: int) -> int:
    """Return how many items fit."""
    total = 0
    for number, size in enumerate(sizes):
        total += size
        if total > limit:
            return number
    return len(sizes)


def _table(table: Mapping[str, Any], limit: int, name: str, cuts: dict[str, str]) -> dict[str, Any]:
    """Return a table in which no field takes more than the others leave it."""
    sizes = {key: size_of(value) + size_of(key) + 2 for key, value in table.items()}
    share = _share(sorted(sizes.values()), limit)
    shown = {
        key: value
        if sizes[key] <= share
        else _shortened(value, max(share - size_of(key) - 2, _LEAST), f"{name}.{key}".strip("."), cuts)
        for key, value in table.items()
    }
    most = _count([size_of(value) + size_of(key) + 2 for key, value in shown.items()], limit)
    if most < len(shown):
        cuts[name] = f"{most} of {len(shown)} entries"
    return dict(list(shown.items())[:most])


def _share(sizes: Sequence[int], limit: int) -> int:
    """Return how much each field may take, so that all of them together take *limit*; *sizes* are sorted."""
    left = limit
    for number, size in enumerate(sizes):
        share = left // (len(sizes) - number)
        if size > share:
            return share
        left -= size
    return limit
