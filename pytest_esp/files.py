"""Which files an operation may open: any for fixtures and the command line, those inside the roots for a client.

Every file that an operation opens for its caller goes through `resolve`, whether the caller names it or another file
does. The confinement belongs to the context of a call; threads and processes that work for the call enter it again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pytest_esp.errors import OperationError, RefusedError

FileName = str | os.PathLike[str]
Access = Literal["read", "write"]


@dataclass(frozen=True)
class Confinement:
    """What a client may open; all paths are absolute and have no links in them.

    Attributes:
        roots: folders whose files may be read and written; relative names start at the first one.
        readable: files outside of them that may be read, too.
        protected: files inside of them that may not be written.
        hint: how somebody else can allow more.
    """

    roots: tuple[Path, ...]
    readable: tuple[Path, ...] = ()
    protected: tuple[Path, ...] = ()
    hint: str = ""


_confinement: ContextVar[Confinement | None] = ContextVar("pytest_esp_confinement", default=None)


def confinement() -> Confinement | None:
    """Return what confines the running call; None where any file may be opened."""
    return _confinement.get()


@contextlib.contextmanager
def confined(to: Confinement | None) -> Generator[None]:
    """Let `resolve` refuse what *to* does not allow."""
    token = _confinement.set(to)
    try:
        yield
    finally:
        _confinement.reset(token)


def resolve(path: FileName, access: Access = "read", *, named_by: Path | None = None) -> Path:
    """Return the path to open: as given, or absolute and without links where the call is confined.

    Args:
        path: a file or folder.
        access: what for.
        named_by: the file that has *path* in it, which is then relative to that file's folder.

    Raises:
        RefusedError: if the call is confined, and *path* leads out of its roots, is protected, or cannot be a path.
    """
    limits = _confinement.get()
    given = named_by.parent / path if named_by is not None else Path(path)
    if limits is None:
        return given
    try:
        place = Path(*limits.roots[:1], given.expanduser()).resolve()
    except (ValueError, OSError, RuntimeError) as error:
        if limits.roots:
            raise RefusedError(f"{os.fspath(path)!r} is not a path: {error}") from error
        raise _nothing_allowed(path, limits) from error
    if access == "write" and place in limits.protected:
        raise RefusedError(f"{path} may not be written here", hint="name another file")
    allowed = any(place.is_relative_to(root) for root in limits.roots)
    if allowed or (access == "read" and place in limits.readable):
        return place
    if not limits.roots:
        raise _nothing_allowed(path, limits)
    words = f"{named_by} names {path}, which" if named_by is not None else f"{path}"
    inside = " or ".join(map(str, limits.roots))
    raise RefusedError(
        f"{words} lies outside the folders that may be used", hint=f"use a path inside {inside}, or {limits.hint}"
    )


def _nothing_allowed(path: FileName, limits: Confinement) -> RefusedError:
    return RefusedError(
        f"{path} may not be opened, nor any other file: the working folder is too broad (the root folder, a home "
        "folder, or a folder that contains home folders)",
        hint=limits.hint,
    )


def allows(path: FileName) -> bool:
    """Return whether *path* may be read."""
    try:
        resolve(path)
    except RefusedError:
        return False
    return True


def new_file(name: FileName, overwrite: bool) -> Path:
    """Return the path of a file that is to be written.

    Raises:
        OperationError: if it is there already and *overwrite* is false.
        RefusedError: see `resolve`.
    """
    path = resolve(name, "write")
    if path.exists() and not overwrite:
        raise OperationError(f"{path} exists already", hint="name another file, or ask for overwrite")
    return path
