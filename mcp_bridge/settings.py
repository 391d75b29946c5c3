"""What the server may do and where, from its command line and environment."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from pytest_esp.errors import RackError
from pytest_esp.names import nearest
from pytest_esp.operations.registry import Effect

_ROOT_VARIABLES = ("MCP_ESP_PROJECT_DIR", "MCP_PROJECT_ROOTS")


def default_roots() -> tuple[Path, ...]:
    """Return the folders that MCP_ESP_PROJECT_DIR and MCP_PROJECT_ROOTS name; the working folder if neither is set."""
    named = [name for variable in _ROOT_VARIABLES for name in os.environ.get(variable, "").split(os.pathsep) if name]
    return tuple(Path(name).expanduser().resolve() for name in named) or (Path.cwd().resolve(),)


@dataclass(frozen=True)
class Settings:
    """How one server runs.

    Attributes:
        rack: the rack file; None for the usual search.
        components: names of the components that are loaded; empty for all.
        allow: what tools may do to boards at most; a board's own ``allow`` still holds.
        roots: folders that files may be read from and written to.
        idle: seconds after the last call until a board is given back.
        burns_enabled: consent to burn eFuses of real boards that ``allow_burn`` names.
        update_key: file with the public key (PEM) that updates must be signed for; None for any update.
    """

    rack: Path | None = None
    components: tuple[str, ...] = ()
    allow: frozenset[Effect] = frozenset({Effect.READ, Effect.WRITE, Effect.ERASE})
    roots: tuple[Path, ...] = field(default_factory=default_roots)
    idle: float = 60.0
    burns_enabled: bool = False
    update_key: Path | None = None


def parse_allow(text: str) -> frozenset[Effect]:
    """Return the effects in a list such as ``"read,write,erase"``.

    Raises:
        RackError: if a word is none.
    """
    words = {effect.value: effect for effect in Effect}
    found: set[Effect] = set()
    for word in filter(None, (part.strip() for part in text.split(","))):
        if word not in words:
            raise RackError(f"--allow: {word!r} is no effect", hint=f"nearest: {nearest(word, words)}")
        found.add(words[word])
    return frozenset(found)
