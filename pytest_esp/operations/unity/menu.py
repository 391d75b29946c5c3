"""Parses the test menu of an app.

Its form is that of ESP-IDF's runner (``print_test_menu`` in ``components/unity/unity_runner.c``)::

    Here's the test menu, pick your combo:
    (1)	"queue keeps order" [queue][timeout=10]
    (2)	"counts its restarts" [restart][multi_stage]
        (1)	"first_boot"
        (2)	"second_boot"

    Enter test for running.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from pytest_esp.errors import OperationError
from pytest_esp.names import nearest

HEADER = "Here's the test menu, pick your combo:"
END = re.compile(r"Enter test for running\.[^\n]*\n")

Kind = Literal["normal", "multi_stage", "multi_device"]

_KIND_TAGS = ("multi_stage", "multi_device")
# Other tasks may print in front of a line and behind it, hence no anchors.
_CASE = re.compile(r'\((?P<index>\d+)\)\t"(?P<name>.*)" (?P<tags>(?:\[[^\[\]]*\]\s*)*)(?P<rest>.*)')
_CASE_WITH_TAGS = re.compile(r'\((?P<index>\d+)\)\t"(?P<name>.*?)" (?P<tags>(?:\[[^\[\]]*\]\s*)+)(?P<rest>.*)')
_PART = re.compile(r'\t\((?P<index>\d+)\)\t"(?P<name>[^"]*)"')
_TRACE = re.compile(r'^\t?\(\d+(?!\d|\) )|\)\t"|^\[')  # traces of a menu line that other output has split
_TAG = re.compile(r"\[([^\[\]]*)\]")


@dataclass(frozen=True)
class Part:
    """A stage of a multi-stage case, or one board's role in a multi-device case."""

    index: int
    name: str


@dataclass(frozen=True)
class Case:
    """One entry of the menu.

    Attributes:
        index: its number in the menu, from 1.
        tags: all its tags in order, without brackets: ``("queue", "timeout=10")``.
        kind: how it is run.
        parts: its stages or roles, if it has several.
    """

    index: int
    name: str
    tags: tuple[str, ...] = ()
    kind: Kind = "normal"
    parts: tuple[Part, ...] = ()

    @property
    def groups(self) -> tuple[str, ...]:
        """Its tags that are neither attributes nor its kind, each once."""
        return tuple(dict.fromkeys(tag for tag in self.tags if "=" not in tag and tag not in _KIND_TAGS))

    @property
    def attributes(self) -> Mapping[str, str]:
        """Its tags of the form ``[key=value]``."""
        return dict(tag.split("=", 1) for tag in self.tags if "=" in tag)

    @property
    def timeout(self) -> float | None:
        """Its timeout in seconds, from ``[timeout=...]``; None without this tag."""
        try:
            return float(self.attributes["timeout"])
        except (KeyError, ValueError):
            return None

    @property
    def is_ignored(self) -> bool:
        """Whether it is tagged ``[ignore]``: run only on request."""
        return "ignore" in self.tags

    @property
    def restarts(self) -> bool:
        """Whether the chip restarts after it: ESP-IDF does so for cases tagged ``[leaks]`` or ``[leaks=...]``."""
        return any(tag.startswith("leaks") for tag in self.tags)

    @property
    def resets(self) -> tuple[str, ...]:
        """The crashes and resets that it must cause, in order, from ``[reset=abort,SW_CPU_RESET]``."""
        return tuple(word for item in self.attributes.get("reset", "").split(",") if (word := item.strip()))


@dataclass(frozen=True)
class Menu:
    """The test cases of an app, in its order."""

    cases: tuple[Case, ...]

    def __iter__(self) -> Iterator[Case]:
        return iter(self.cases)

    def __len__(self) -> int:
        return len(self.cases)

    def case(self, which: int | str) -> Case:
        """Return a case by its name or its number (which may be text); the first one, if several have that name.

        Raises:
            OperationError: if there is no such case.
        """
        for key in ("name", "index"):
            for case in self.cases:
                if str(getattr(case, key)) == str(which):
                    return case
        raise OperationError(
            f"the app's menu has no test case {which!r}",
            hint=f"nearest: {nearest(str(which), (case.name for case in self.cases))}",
        )


@dataclass
class Draft:
    """The known parts of a menu that may be printed incompletely; further prints fill the gaps.

    Attributes:
        cases: by number.
        is_clean: whether every line of the last print was readable, without anything in between.
        has_end: whether the last print has its end.
    """

    cases: dict[int, Case] = field(default_factory=dict[int, Case])
    is_clean: bool = False
    has_end: bool = False
    _last: int = 0

    @property
    def missing(self) -> tuple[int, ...]:
        """The numbers of cases that must exist, but were not read completely."""
        whole = {number for number, case in self.cases.items() if _is_whole(case)}
        return tuple(number for number in range(1, max(self.cases, default=0) + 1) if number not in whole)

    @property
    def is_usable(self) -> bool:
        """Whether nothing is known to be missing."""
        return self.has_end and bool(self.cases) and not self.missing

    def read(self, text: str) -> None:
        """Read the last menu in *text*, which has no ANSI sequences; add its cases to those of earlier prints."""
        body = text.rpartition(HEADER)[2]
        end = END.search(body)
        self.has_end, self.is_clean, self._last = end is not None, True, 0
        for line in body[: end.start() if end else len(body)].splitlines():
            self._read_line(line)

    def _read_line(self, line: str) -> None:
        part, found = _PART.search(line), _CASE_WITH_TAGS.search(line) or _CASE.search(line)
        if part is not None:
            self._add_part(Part(int(part["index"]), part["name"]))
        elif found is not None and not _is_cut(found["rest"]):
            self._add_case(int(found["index"]), found["name"], tuple(_TAG.findall(found["tags"])))
            self.is_clean = self.is_clean and not found["rest"].strip()
        elif found is not None or _TRACE.search(line):
            self._last = 0
            self.is_clean = False

    def _add_case(self, index: int, name: str, tags: tuple[str, ...]) -> None:
        known = self.cases.get(index)
        self._last = index
        if known is not None and known.name == name:
            tags = max(known.tags, tags, key=len)
        self.cases[index] = Case(index, name, tags, _kind(tags), known.parts if known and known.name == name else ())

    def _add_part(self, part: Part) -> None:
        case = self.cases.get(self._last)
        if case is None:
            self.is_clean = False
            return
        parts = {known.index: known for known in case.parts} | {part.index: part}
        kind: Kind = "multi_stage" if case.kind == "normal" else case.kind
        self.cases[self._last] = replace(case, kind=kind, parts=tuple(parts[number] for number in sorted(parts)))


def _kind(tags: tuple[str, ...]) -> Kind:
    if "multi_device" in tags:
        return "multi_device"
    return "multi_stage" if "multi_stage" in tags else "normal"


def _is_cut(rest: str) -> bool:
    """Whether the text after the tags of a line begins another line, which other output has split."""
    return rest.startswith("[")


def _is_whole(case: Case) -> bool:
    """Whether a case has all its parts, judged by their numbers."""
    has_all = [part.index for part in case.parts] == list(range(1, len(case.parts) + 1))
    return has_all and (case.kind == "normal" or len(case.parts) > 1)
