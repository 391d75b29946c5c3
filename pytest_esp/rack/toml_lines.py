"""Finds the lines of the keys in a TOML text, which tomllib does not report."""

from __future__ import annotations

import re
import tomllib

_TOKEN = re.compile(
    r"""
    (?P<blank>[ \t\r]+|\#[^\n]*)
    | (?P<quoted>
        \"{3}(?:\\[\s\S]|(?!\"{3})[^\\])*\"{3,5}
        | '{3}(?:(?!'{3})[\s\S])*'{3,5}
        | "(?:\\.|[^"\\\n])*"
        | '[^'\n]*'
      )
    | (?P<bare>[A-Za-z0-9_-]+)
    | (?P<mark>[\s\S])
    """,
    re.VERBOSE,
)

Path = tuple[str, ...]


def locate_keys(text: str) -> dict[Path, int]:
    """Return the line (from 1) of every key and table of a valid TOML text.

    A table without a separate header or key, such as ``a`` in ``[a.b]``, gets the line where it is first mentioned.
    The keys in an array of tables get the line where they are first used.
    """
    return _Locator(text).run()


class _Locator:
    """Walks over the tokens of a text that tomllib has accepted."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, int]] = []
        line = 1
        for match in _TOKEN.finditer(text):
            if match.lastgroup != "blank":
                self._tokens.append((match[0], line))
            line += match[0].count("\n")
        self._tokens.append(("", line))
        self._next = 0
        self._named: dict[Path, int] = {}
        self._mentioned: dict[Path, int] = {}

    def run(self) -> dict[Path, int]:
        table: Path = ()
        while self._peek():
            if self._peek() == "\n":
                self._skip()
            elif self._peek() == "[":
                self._skip("[")
                table = self._key(())
                self._skip("]")
            else:
                self._assignment(table)
        return self._mentioned | self._named

    def _peek(self) -> str:
        return self._tokens[self._next][0]

    def _skip(self, *marks: str) -> None:
        """Skip one token, or all tokens that are in *marks*."""
        if not marks:
            self._next += 1
        while marks and self._peek() in marks:
            self._next += 1

    def _assignment(self, table: Path) -> None:
        key = self._key(table)
        self._skip("=")
        self._value(key)

    def _key(self, table: Path) -> Path:
        line = self._tokens[self._next][1]
        key = table
        while True:
            key = (*key, _decoded(self._peek()))
            self._skip()
            if self._peek() != ".":
                break
            self._mentioned.setdefault(key, line)
            self._skip(".")
        self._named.setdefault(key, line)
        return key

    def _value(self, key: Path) -> None:
        if self._peek() == "{":
            self._skip()
            self._skip("\n")
            while self._peek() != "}":
                self._assignment(key)
                self._skip(",", "\n")
            self._skip()
        elif self._peek() == "[":
            self._skip()
            self._skip("\n")
            while self._peek() != "]":
                self._value(key)
                self._skip(",", "\n")
            self._skip()
        else:
            while self._peek() not in ("\n", ",", "]", "}", ""):
                self._skip()


def _decoded(token: str) -> str:
    return str(tomllib.loads(f"key = {token}")["key"]) if token[0] in "\"'" else token
