"""Parses build output: messages of compilers, the linker, CMake and idf.py, by file and line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_GCC = re.compile(
    r"(?P<file>[^\s:][^:]*):(?P<line>\d+):(?:(?P<column>\d+):)? (?P<kind>fatal error|error|warning): (?P<text>.*)"
)
_UNDEFINED = re.compile(r"(?:\S*/?ld(?:\.exe)?: )?(?P<place>\S.*?): (?P<text>undefined reference to .*)")
_SOURCE = re.compile(r"(?P<file>[^:()]+\.(?:c|cc|cpp|cxx|S|h|hpp)):(?P<line>\d+)?")
_LD = re.compile(r"\S*\bld(?:\.exe)?: (?P<kind>warning: )?(?P<text>(?!.*: in function `).*)")
_CMAKE = re.compile(
    r"CMake (?P<kind>Error|Warning)(?: \(dev\))?(?: at (?P<file>[^:]+):(?P<line>\d+)(?: \([^)]*\))?)?:?\s*(?P<text>.*)"
)
_NINJA = re.compile(r"ninja: (?:error|fatal): (?P<text>.*)")
_HINT = re.compile(r"HINT: (?P<text>.*)")
_PROGRESS = re.compile(r"\[(\d+)/(\d+)\]")
_MOST = 100  # messages of each kind to keep

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Diagnostic:
    """One message.

    Attributes:
        severity: error or warning.
        tool: source of the message: ``compiler``, ``linker``, ``cmake``, ``ninja``.
        message: text without the position.
        file: as written by the tool; None if not given.
        line: from 1.
        column: from 1.
    """

    severity: Severity
    tool: str
    message: str
    file: str | None = None
    line: int | None = None
    column: int | None = None


@dataclass(frozen=True)
class Findings:
    """Messages of a build, each once, and hints of idf.py; *warning_count* includes warnings that were left out."""

    errors: tuple[Diagnostic, ...]
    warnings: tuple[Diagnostic, ...]
    hints: tuple[str, ...]
    warning_count: int


def step_of(line: str) -> tuple[int, int] | None:
    """Return the step and the number of steps in a line of Ninja, e.g. ``[12/345] Building ...``."""
    match = _PROGRESS.match(line)
    return (int(match[1]), int(match[2])) if match else None


def findings(lines: Sequence[str]) -> Findings:
    """Return the messages in the output of a build."""
    found: dict[Diagnostic, None] = {}
    hints: dict[str, None] = {}
    for number, line in enumerate(lines):
        if match := _HINT.match(line):
            hints[match["text"]] = None
        elif (diagnostic := _diagnostic(line, lines[number + 1 : number + 12])) is not None:
            found[diagnostic] = None
    errors = tuple(item for item in found if item.severity == "error")
    warnings = tuple(item for item in found if item.severity == "warning")
    return Findings(errors[:_MOST], warnings[:_MOST], tuple(hints), len(warnings))


def _diagnostic(line: str, following: Sequence[str]) -> Diagnostic | None:
    if match := _GCC.match(line):
        severity: Severity = "warning" if match["kind"] == "warning" else "error"
        column = int(match["column"]) if match["column"] else None
        return Diagnostic(severity, "compiler", match["text"], match["file"], int(match["line"]), column)
    if match := _CMAKE.match(line):
        text = match["text"] or _indented(following)
        severity = "error" if match["kind"] == "Error" else "warning"
        return Diagnostic(severity, "cmake", text, match["file"], int(match["line"]) if match["line"] else None)
    if match := _UNDEFINED.match(line):
        source = _SOURCE.search(match["place"])
        file = source["file"].rpartition("ld: ")[2] if source else None
        number = int(source["line"]) if source and source["line"] else None
        return Diagnostic("error", "linker", match["text"], file, number)
    if match := _LD.match(line):
        return Diagnostic("warning" if match["kind"] else "error", "linker", match["text"])
    if match := _NINJA.match(line):
        return Diagnostic("error", "ninja", match["text"])
    return None


def _indented(lines: Sequence[str]) -> str:
    """Return the text of a CMake message, which follows indented."""
    words: list[str] = []
    for line in lines:
        if line and not line.startswith("  "):
            break
        if not line and words:
            break
        words.append(line.strip())
    return " ".join(filter(None, words))
