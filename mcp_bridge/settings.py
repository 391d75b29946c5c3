"""The server's settings, from its command line and environment."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Literal

from pytest_esp.errors import RackError
from pytest_esp.names import nearest
from pytest_esp.operations.registry import Effect

_ROOT_VARIABLES = ("MCP_ESP_PROJECT_DIR", "MCP_PROJECT_ROOTS")
_HOLDERS = ("C:/Users",) if os.name == "nt" else ("/home", "/Users", "/var/home", "/export/home")


def default_roots() -> tuple[Path, ...]:
    """Return the folders that MCP_ESP_PROJECT_DIR and MCP_PROJECT_ROOTS name; the working folder if neither is set.

    Empty if the working folder is too broad (see `is_broad`) or deleted: some clients start servers in ``/`` or in
    the home folder, and their users do not want to share all of it.
    """
    named = [name for variable in _ROOT_VARIABLES for name in os.environ.get(variable, "").split(os.pathsep) if name]
    if named:
        return tuple(Path(name).expanduser().resolve() for name in named)
    try:
        folder = Path.cwd().resolve()
    except FileNotFoundError:
        return ()
    homes = [home.resolve() for home in _homes()]
    holders = [Path(name).resolve() for name in _HOLDERS]
    return () if is_broad(folder, homes, holders) else (folder,)


def is_broad(folder: PurePath, homes: Sequence[PurePath], holders: Sequence[PurePath]) -> bool:
    """Return whether *folder* is the root of a file system or drive, a home folder, or a parent of one.

    Args:
        folder: with links followed, as the others.
        homes: known home folders.
        holders: folders that contain home folders, such as ``/home``.
    """
    return (
        folder == folder.parent
        or folder.parent in holders
        or any(folder == path or folder in path.parents for path in (*homes, *holders))
    )


def _homes() -> Iterator[Path]:
    with contextlib.suppress(RuntimeError):  # HOME is not set, and the user is not in the password database
        yield Path.home()
    if sys.platform != "win32":
        import pwd

        yield Path("/root")
        with contextlib.suppress(KeyError):
            yield Path(pwd.getpwuid(os.getuid()).pw_dir)


@dataclass(frozen=True)
class Settings:
    """The settings of one server.

    Attributes:
        rack: the rack file; None for the default search.
        components: names of the components to load; empty for all.
        allow: what tools may do to boards; a board's own ``allow`` also applies.
        roots: folders that tools may read files from and write files to; if empty, they cannot use any file.
        idle: seconds after the last call until a board is released.
        burns_enabled: allow burning the eFuses of real boards that ``allow_burn`` lists.
        suites: the user's own suites that esp_production_test may run: files, folders or modules.
        tools: "common" to list the tools for ad hoc work, and three that find and call the others, or "all"; None for
            "all" if components were named, else "common".
        output_schemas: whether tools are listed with the schemas of their answers.
        update_key: file with the public key (PEM) of the key that must have signed updates; None to accept any update.
    """

    rack: Path | None = None
    components: tuple[str, ...] = ()
    allow: frozenset[Effect] = frozenset({Effect.READ, Effect.WRITE, Effect.ERASE})
    roots: tuple[Path, ...] = field(default_factory=default_roots)
    idle: float = 60.0
    burns_enabled: bool = False
    suites: tuple[str, ...] = ()
    update_key: Path | None = None
    tools: Literal["common", "all"] | None = None
    output_schemas: bool = False

    @property
    def lists_all(self) -> bool:
        """Whether all tools are listed."""
        return self.tools == "all" or (self.tools is None and bool(self.components))


def parse_allow(text: str) -> frozenset[Effect]:
    """Return the effects in a list such as ``"read,write,erase"``.

    Raises:
        RackError: if a word is not an effect.
    """
    words = {effect.value: effect for effect in Effect}
    found: set[Effect] = set()
    for word in filter(None, (part.strip() for part in text.split(","))):
        if word not in words:
            raise RackError(f"--allow: unknown effect {word!r}", hint=f"did you mean {nearest(word, words)}?")
        found.add(words[word])
    return frozenset(found)
