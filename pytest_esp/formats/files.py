"""Reading and writing files, and which an operation may open: any for fixtures and the command line, for a client those
inside the roots.

Every file that an operation opens for its caller goes through `resolve`, whether the caller or another file gives its
name. The confinement belongs to the context of a call; threads and processes that work for the call enter it again.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Generator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Literal, Self

from esptool.targets import CHIP_DEFS

from pytest_esp.errors import FirmwareError, OperationError, RefusedError
from pytest_esp.formats import beneath
from pytest_esp.names import nearest

if sys.platform == "win32":
    from pathlib import WindowsPath as _Path
else:
    from pathlib import PosixPath as _Path

FileName = str | os.PathLike[str]
Access = Literal["read", "write"]


@dataclass(frozen=True)
class PathRole:
    """Marks a parameter of an operation as a path, and gives its access mode."""

    access: Access

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        described = {key: text for key, text in handler(core_schema).items() if key == "description"}
        return {"type": "string", **described}


ReadPath = Annotated[FileName, PathRole("read")]
"""A file or folder that an operation reads. In confined calls, it is resolved before the operation begins."""

WritePath = Annotated[FileName, PathRole("write")]
"""A file or folder that an operation writes, resolved like a `ReadPath`."""


@dataclass(frozen=True)
class Confinement:
    """The files that a client may open. All paths are absolute and without links.

    Attributes:
        roots: folders whose files may be read and written; relative names start at the first one.
        readable: files outside the roots that may be read.
        protected: files inside the roots that may not be written.
        hint: how the user can allow more.
        reason: why no file may be opened, if there are no roots.
    """

    roots: tuple[Path, ...]
    readable: tuple[Path, ...] = ()
    protected: tuple[Path, ...] = ()
    hint: str = ""
    reason: str = (
        "the working folder is too broad (the root folder, a home folder, or a folder that contains home folders)"
    )


_confinement: ContextVar[Confinement | None] = ContextVar("pytest_esp_confinement", default=None)


def confinement() -> Confinement | None:
    """Return the confinement of the running call; None if any file may be opened."""
    return _confinement.get()


@contextlib.contextmanager
def confined(to: Confinement | None) -> Generator[None]:
    """Confine `resolve` to the files that *to* allows."""
    token = _confinement.set(to)
    try:
        yield
    finally:
        _confinement.reset(token)


def resolve(path: FileName, access: Access = "read", *, named_by: Path | None = None) -> Path:
    """Return the path to open: as given, or absolute and without links if the call is confined.

    Args:
        path: a file or folder.
        access: how it will be opened.
        named_by: the file that contains *path*, which is then relative to that file's folder.

    Raises:
        RefusedError: if the call is confined, and *path* is outside its roots, protected, or not a valid path.
    """
    limits = _confinement.get()
    given = named_by.parent / path if named_by is not None else Path(path)
    if limits is None:
        return given
    try:
        place = Path(*limits.roots[:1], given.expanduser()).resolve()
    except (ValueError, OSError, RuntimeError) as error:
        if limits.roots:
            raise RefusedError(f"{os.fspath(path)!r} is not a valid path: {error}") from error
        raise _nothing_allowed(path, limits) from error
    if access == "write" and place in limits.protected:
        raise RefusedError(f"{path} may not be written here", hint="use another file")
    if access == "read" and place in limits.readable:
        return place
    if any(place.is_relative_to(root) for root in limits.roots):
        return ConfinedPath(place) if beneath.SUPPORTED else place
    if not limits.roots:
        raise _nothing_allowed(path, limits)
    words = f"{path}, from {named_by}," if named_by is not None else f"{path}"
    inside = " or ".join(map(str, limits.roots))
    raise RefusedError(
        f"{words} is outside the folders that may be used", hint=f"use a path inside {inside}, or {limits.hint}"
    )


class ConfinedPath(_Path):
    """A path inside the roots of a confined call, opened and changed without following links that lead out.

    A link may appear, or a folder may be replaced, after `resolve` has returned the path. So each method resolves it
    again, and then opens one folder after the other from the root on. Windows cannot do that: there `resolve` returns
    plain paths. Outside of confined calls it is a plain path, too.
    """

    def open(  # type: ignore[override] - the modes of `io.open`, without its overloads
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open the file, like `pathlib.Path.open`.

        Raises:
            RefusedError: see `resolve`.
        """
        return io.open(self, mode, buffering, encoding, errors, newline, opener=open_descriptor)  # noqa: UP020

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Create the folder, like `pathlib.Path.mkdir`."""
        if parents and not self.parent.exists():
            self.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _entry(self, "write") as (folder, name):
                os.mkdir(name, mode, dir_fd=folder)
        except FileExistsError:
            if not exist_ok or not self.is_dir():
                raise

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the file, like `pathlib.Path.unlink`."""
        with contextlib.suppress(*(FileNotFoundError,) if missing_ok else ()), _entry(self, "write") as (folder, name):
            os.unlink(name, dir_fd=folder)

    def replace(self, target: FileName) -> Self:
        """Rename the file to *target*, like `pathlib.Path.replace`."""
        with _entry(self, "write") as (folder, name), _entry(Path(target), "write") as (other, new):
            os.replace(name, new, src_dir_fd=folder, dst_dir_fd=other)
        return type(self)(target)


def open_descriptor(path: FileName, flags: int, mode: int = 0o666) -> int:
    """Open *path* like `os.open`, in confined calls without following links that lead out of the roots.

    Raises:
        RefusedError: see `resolve`.
    """
    access: Access = "write" if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) else "read"
    with _entry(resolve(path, access), access) as (folder, name):
        return os.open(name, flags | (os.O_NOFOLLOW if folder is not None else 0), mode, dir_fd=folder)


@contextlib.contextmanager
def _entry(path: Path, access: Access) -> Generator[tuple[int | None, str]]:
    """Yield the open folder of *path* and its name there, which may be a link; without folder if nothing is confined.

    Raises:
        OSError: if the folder cannot be opened.
        RefusedError: see `resolve`.
    """
    limits = _confinement.get()
    if limits is None or not beneath.SUPPORTED:
        yield None, os.fspath(path)
        return
    target = resolve(path, access)
    place = target if access == "read" or target in limits.roots else resolve(path.parent) / path.name
    root = next((root for root in limits.roots if place.is_relative_to(root)), place.parent)
    with beneath.folder_of(root, place) as folder:
        yield folder, place.name if place != root else "."


def _nothing_allowed(path: FileName, limits: Confinement) -> RefusedError:
    return RefusedError(f"{path} may not be opened, nor any other file: {limits.reason}", hint=limits.hint)


def allows(path: FileName) -> bool:
    """Return whether *path* may be read."""
    try:
        resolve(path)
    except RefusedError:
        return False
    return True


def new_file(name: FileName, overwrite: bool) -> Path:
    """Return the path of a file to write.

    Raises:
        OperationError: if it exists and *overwrite* is false.
        RefusedError: see `resolve`.
    """
    path = resolve(name, "write")
    if path.exists() and not overwrite:
        raise OperationError(f"{path} exists already", hint="use another file name, or enable overwrite")
    return path


def read_file(name: FileName, what: str) -> bytes:
    """Return the contents of a file; *what* describes it in messages, e.g. ``"ELF file"``.

    Raises:
        FirmwareError: if it cannot be read, is not a regular file, or is empty.
    """
    path = resolve(name)
    try:
        if path.exists() and not path.is_file():
            raise FirmwareError(f"the {what} {path} is not a regular file", hint="use a regular file")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise FirmwareError(f"the {what} {path} cannot be read: {reason or error}") from error
    if not data:
        raise FirmwareError(f"the {what} {path} is empty", hint="build it again")
    return data


def known_chip(name: str) -> str:
    """Return esptool's name of a chip, from that name or Espressif's (``"ESP32-C3"``); esptool also accepts both.

    Raises:
        OperationError: if the chip is unknown.
    """
    bare = name.strip().lower().replace("-", "")
    if bare not in CHIP_DEFS:
        raise OperationError(f"there is no chip {name!r}", hint=f"nearest: {nearest(bare, CHIP_DEFS)}")
    return bare


def save(path: Path, data: bytes) -> None:
    """Write a temporary file and rename it, so that *path* is never incomplete.

    Raises:
        OperationError: if it cannot be written.
    """
    path = resolve(path, "write")
    part = resolve(path.with_name(f".{path.name}.{os.getpid()}.part"), "write")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OperationError(f"{path} cannot be written: {error.strerror or error}") from error
