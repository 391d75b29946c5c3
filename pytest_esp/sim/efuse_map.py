"""The registers of a chip's eFuses and their values on a new chip, from espefuse.

Importing espefuse and parsing its YAML takes 0.2 s. The data that a simulated chip needs to start is therefore kept in
the user's cache folder, in one file per esptool version, chip and revision.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
from dataclasses import asdict, dataclass
from typing import Any

import esptool
from platformdirs import user_cache_path

_FORMAT = 1  # of the cached files


@dataclass(frozen=True)
class EfuseMap:
    """The eFuse controller of a chip.

    Attributes:
        base: the address of its first register.
        size: the size of the register window in bytes.
        blank: the window's contents on a new chip of that revision, in hex, lowest address first.
        fields: name of an eFuse -> (address, lowest bit there, number of bits).
        blocks: name or alias of a block -> (address, bytes).
        read_only: (first, end) of the windows that show the eFuses and cannot be written.
    """

    base: int
    size: int
    blank: str
    fields: dict[str, tuple[int, int, int]]
    blocks: dict[str, tuple[int, int]]
    read_only: list[tuple[int, int]]


@functools.cache
def efuse_map(chip: str, revision: int) -> EfuseMap:
    """Return the map of *chip* at *revision* (major * 100 + minor): from the cache, else from espefuse."""
    version = esptool.__version__
    path = user_cache_path("pytest-esp") / f"efuses-{_FORMAT}-{version}-{chip}-{revision}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        return EfuseMap(**json.loads(path.read_bytes()))
    found = _ask_espefuse(chip, revision)
    with contextlib.suppress(OSError):  # it also works without a cache
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(asdict(found)))
        part.replace(path)
    return found


def emulator(chip: str) -> Any:
    """Return a new, blank ``EmulateEfuseController`` of *chip*. It is copied, as creating one takes 0.1 s."""
    controller = copy.copy(_prototype(chip))
    controller.mem = copy.deepcopy(controller.mem)
    return controller


def contents(controller: Any) -> bytes:
    """Return the registers of an emulator, lowest address first. The emulator stores them in reverse."""
    return controller.mem.bytes[::-1]


def set_contents(controller: Any, registers: bytes | bytearray) -> None:
    """Set the registers of an emulator to *registers*, lowest address first."""
    controller.mem = type(controller.mem)(bytes=bytes(registers[::-1]), length=len(registers) * 8)


@functools.cache
def _prototype(chip: str) -> Any:
    from espefuse.efuse_interface import SUPPORTED_CHIPS

    return SUPPORTED_CHIPS[chip].efuse_lib.EmulateEfuseController()


def _ask_espefuse(chip: str, revision: int) -> EfuseMap:
    controller = emulator(chip)
    controller.set_chip_revision(revision)
    blocks = [controller.Blocks.get(block) for block in controller.Blocks.BLOCKS]
    return EfuseMap(
        base=controller.REGS.DR_REG_EFUSE_BASE,
        size=controller.REGS.EFUSE_MEM_SIZE,
        blank=contents(controller).hex(),
        fields=_fields(controller, {block.id: block.rd_addr for block in blocks}),
        blocks={
            name: (block.rd_addr, block.len * 4) for block in blocks for name in (block.name, *(block.alias or ()))
        },
        read_only=[
            (block.rd_addr, block.rd_addr + block.len * 4) for block in blocks if block.rd_addr != block.wr_addr
        ],
    )


def _fields(controller: Any, addresses: dict[int, int]) -> dict[str, tuple[int, int, int]]:
    fields: dict[str, tuple[int, int, int]] = {}
    for field in controller.Fields.EFUSES:
        kind, _, number = field.type.partition(":")
        length = int(number or 1) * (8 if kind == "bytes" else 1)
        fields[field.name] = (addresses[field.block] + 4 * field.word, field.pos, length)
    return fields
