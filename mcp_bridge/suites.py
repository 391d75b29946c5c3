"""The test suites of the user that clients may run: named when the server starts, in folders that no client writes."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pytest_esp.errors import OperationError


def named_suites(names: Sequence[str], roots: Sequence[Path]) -> Mapping[str, Path]:
    """Return where the suites lie, by the names that clients use for them: those of the command line.

    Args:
        names: files, folders or modules.
        roots: the folders in which clients may write files.

    Raises:
        OperationError: if a suite does not exist, or if a client could change what it runs.
    """
    found = {name: _place(name) for name in names}
    for name, place in found.items():
        for file in _files(place):
            root = next((root for root in roots if _overlap(file.resolve(), root.resolve(), place)), None)
            if root is not None:
                raise OperationError(
                    f"--suites {name}: {file} lies in {root}, where clients may write files: they could run any code",
                    hint="move the suite out of that folder, or share less with --roots",
                )
    return found


def _place(name: str) -> Path:
    try:
        path = Path(name).expanduser()
        if name and path.exists():
            return path.resolve()
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, RuntimeError):
        spec = None
    if spec is None or not spec.origin:
        raise OperationError(f"--suites {name}: there is no such file, folder or module")
    origin = Path(spec.origin).resolve()
    return origin.parent if spec.submodule_search_locations else origin


def _files(place: Path) -> Iterator[Path]:
    """Yield what pytest may load for a suite: it, all below it, and the configuration beside a file."""
    yield place
    yield from place.rglob("*") if place.is_dir() else (place.with_name("conftest.py"),)


def _overlap(file: Path, root: Path, place: Path) -> bool:
    return file.is_relative_to(root) or root.is_relative_to(place)
