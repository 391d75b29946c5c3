"""Finds the class of a backend: the built-in ones, and those from entry points."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from pytest_esp.boards.board import Board
from pytest_esp.errors import BackendError
from pytest_esp.formats.esptool_config import check_config

if TYPE_CHECKING:
    from pytest_esp.rack.rack import Rack
    from pytest_esp.rack.spec import BoardSpec

ENTRY_POINTS = "pytest_esp.backends"
_BUILT_IN = {
    "labgrid": "pytest_esp.boards.labgrid:LabgridBoard",
    "qemu": "pytest_esp.boards.qemu:QemuBoard",
    "serial": "pytest_esp.boards.serial:SerialBoard",
    "sim": "pytest_esp.boards.sim:SimBoard",
}


def board_class(backend: str) -> type[Board]:
    """Return the class of *backend*.

    Raises:
        BackendError: if it is not installed, or cannot be imported.
    """
    if backend in _BUILT_IN:
        module, _, name = _BUILT_IN[backend].partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except ValueError as error:
            check_config()
            raise BackendError(f"cannot load the backend {backend!r}: {error}") from error
    found = entry_points(group=ENTRY_POINTS, name=backend)
    if not found:
        raise BackendError(
            f"unknown backend {backend!r}",
            hint=f"use one of {', '.join(sorted(_BUILT_IN))}; packages can add more ({ENTRY_POINTS} entry points)",
        )
    try:
        return next(iter(found)).load()
    except Exception as error:
        raise BackendError(f"cannot load the backend {backend!r}: {error}") from error


def make_board(spec: BoardSpec, rack: Rack) -> Board:
    """Return the board for *spec*, not opened.

    Raises:
        BackendError: see `board_class`.
    """
    return board_class(spec.backend)(spec, rack)
