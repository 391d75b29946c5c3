"""What a test needs: reads and checks its markers, without looking at the rack."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pytest

from pytest_esp.names import nearest
from pytest_esp.plugin.options import FLASH_POLICIES
from pytest_esp.rack.chips import CHIPS

FIXTURES = frozenset({"board", "boards", "esp", "console", "faults", "firmware"})
"""Fixtures that lease a board for a test."""

SESSION_FIXTURES = frozenset({"session_board", "session_esp"})
"""Fixtures that lease a board for the session."""

_SCOPES = ("test", "module", "session")
_EACH = ("chip", "board")
_KEYWORDS = ("chip", "backend", "features", "flash", "revision", "crystal", "count", "each", "board", "scope")
_FIRMWARE_KEYWORDS = ("flash", "scope")


class MarkerError(Exception):
    """A marker is invalid; the message says why and what was probably meant."""


@dataclass(frozen=True)
class FirmwareWanted:
    """What a test needs of the fixture ``firmware``.

    Attributes:
        paths: paths of builds from the marker; empty for those from the run's options.
        flash: one of `options.FLASH_POLICIES`.
        scope: the tests that share one boot: ``"test"``, ``"module"`` or ``"session"``.
    """

    paths: tuple[str, ...] = ()
    flash: str = "changed"
    scope: str = "test"


@dataclass(frozen=True)
class Wanted:
    """What a test needs.

    Attributes:
        chip, backend: any of these; empty for any.
        features: all of these.
        flash: the flash size, e.g. ``">=4MB"``.
        revision: the chip's revision, e.g. ``">=3"``.
        crystal: the crystal's frequency in MHz, e.g. ``"40"``.
        count: the number of boards.
        each: parametrise over the matching ``"chip"`` types or ``"board"`` names.
        board: the name of the board; None for any.
        scope: how long the board is held: ``"test"``, ``"module"`` or ``"session"``.
        burns, erases: whether it burns eFuses or erases flash.
        faults: whether it injects faults.
        firmware: the firmware to flash; None if the test does not use that fixture.
    """

    chip: tuple[str, ...] = ()
    backend: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    flash: str | None = None
    revision: str | None = None
    crystal: str | None = None
    count: int = 1
    each: str | None = None
    board: str | None = None
    scope: str = "test"
    burns: bool = False
    erases: bool = False
    faults: bool = False
    firmware: FirmwareWanted | None = None


def wanted(marks: Iterable[pytest.Mark], fixturenames: Iterable[str] = ()) -> Wanted:
    """Read the markers of a test, the nearest first. For each keyword, the marker nearest to the test wins.

    Raises:
        MarkerError: for an unknown keyword or value.
    """
    marks = list(marks)
    given: dict[str, Any] = {}
    names = {mark.name for mark in marks}
    for mark in marks:
        if mark.name == "esp":
            if mark.args:
                raise MarkerError(
                    f"@pytest.mark.esp takes keywords only, not {mark.args[0]!r}: write e.g. chip={mark.args[0]!r}"
                )
            _check_keywords(mark, _KEYWORDS)
            given = {**mark.kwargs, **given}
    firmware = _firmware(marks)
    uses_firmware = "firmware" in fixturenames
    return Wanted(
        chip=tuple(_chip(chip) for chip in _words("chip", given.get("chip"))),
        backend=_words("backend", given.get("backend")),
        features=_words("features", given.get("features")),
        flash=_comparison("flash", given.get("flash"), ">=4MB"),
        revision=_comparison("revision", given.get("revision"), ">=3"),
        crystal=_comparison("crystal", given.get("crystal"), "40"),
        count=_count(given.get("count", 1)),
        each=_choice("each", given["each"], _EACH) if given.get("each") is not None else None,
        board=_words("board", given.get("board"))[0] if given.get("board") else None,
        # Tests that share a boot share the board.
        scope=_choice("scope", given.get("scope", firmware.scope if uses_firmware else "test"), _SCOPES),
        burns="burns" in names,
        erases="erases" in names,
        faults="faults" in fixturenames,
        firmware=firmware if uses_firmware else None,
    )


def _firmware(marks: Iterable[pytest.Mark]) -> FirmwareWanted:
    """Read the ``firmware`` markers. For the paths and each keyword, the marker nearest to the test wins."""
    paths: tuple[str, ...] = ()
    given: dict[str, Any] = {}
    for mark in marks:
        if mark.name == "firmware":
            _check_keywords(mark, _FIRMWARE_KEYWORDS)
            if not all(isinstance(path, (str, os.PathLike)) for path in mark.args):
                raise MarkerError(f"@pytest.mark.firmware: {mark.args!r} are not paths: write e.g. 'build'")
            paths = paths or tuple(os.fspath(path) for path in mark.args)
            given = {**mark.kwargs, **given}
    return FirmwareWanted(
        paths,
        flash=_choice("flash", given.get("flash", "changed"), FLASH_POLICIES, "firmware"),
        scope=_choice("scope", given.get("scope", "test"), _SCOPES, "firmware"),
    )


def uses_board(fixturenames: Iterable[str]) -> bool:
    """Return whether a test with these fixtures leases a board."""
    return not (FIXTURES | SESSION_FIXTURES).isdisjoint(fixturenames)


def uses_session_board(fixturenames: Iterable[str]) -> bool:
    """Return whether a test with these fixtures leases a board for the session."""
    return not SESSION_FIXTURES.isdisjoint(fixturenames)


def _check_keywords(mark: pytest.Mark, known: Sequence[str]) -> None:
    for keyword in mark.kwargs:
        if keyword not in known:
            raise MarkerError(
                f"@pytest.mark.{mark.name} has no keyword {keyword!r}; "
                f"did you mean {nearest(keyword, known, 1)}? (it has {', '.join(known)})"
            )


def _words(keyword: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if isinstance(value, (list, tuple, set, frozenset)):
        words = tuple(cast("Iterable[object]", value))
        if all(isinstance(word, str) for word in words):
            return cast("tuple[str, ...]", words)
    raise MarkerError(f"@pytest.mark.esp: {keyword}={value!r} is neither a string nor a list of strings")


def _chip(chip: str) -> str:
    name = chip.lower().replace("-", "")
    if name not in CHIPS:
        raise MarkerError(f"@pytest.mark.esp: unknown chip {chip!r}; did you mean {nearest(name, CHIPS)}?")
    return name


def _comparison(keyword: str, value: object, example: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        what = "a size" if keyword == "flash" else "a number or comparison"
        raise MarkerError(f"@pytest.mark.esp: {keyword}={value!r} is not {what}: write e.g. {keyword}={example!r}")
    return str(value)


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise MarkerError(f"@pytest.mark.esp: count={value!r} is not a number of boards: write e.g. count=2")
    return value


def _choice(keyword: str, value: object, choices: tuple[str, ...], marker: str = "esp") -> str:
    if value not in choices:
        raise MarkerError(
            f"@pytest.mark.{marker}: unknown value {keyword}={value!r}; "
            f"did you mean {nearest(str(value), choices, 1)!r}? (it can be {', '.join(choices)})"
        )
    return cast(str, value)
