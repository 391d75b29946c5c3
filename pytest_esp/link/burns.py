"""The guard below every route to a burn: eFuses of a real board are burned while a permit is open, and only then.

Everything that is sent to a real board goes through its port, whoever sends it: an operation, esptool's loader object,
espefuse's commands, code of a test. The guard reads each request of the serial protocol and refuses the one that starts
the eFuse controller. Permits are opened for the commands of `Session.espefuse`, whose staged bits are known: they are
compared with ``allow_burn``, shown, and written to the audit log before the burn, and read back after it.

Not seen by the guard: programs that run on the chip, and programs or code that open the port by themselves.
"""

from __future__ import annotations

import copy
import functools
import getpass
import importlib
import json
import os
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from pytest_esp.boards.board import Board
from pytest_esp.boards.port import Port
from pytest_esp.errors import OperationError, RefusedError
from pytest_esp.secrets import hide_in
from pytest_esp.wire.framing import END, decode

R = TypeVar("R")

AUDIT_FILE = "efuse-audit.jsonl"
_MEM_BEGIN, _MEM_DATA, _WRITE_REG = 0x05, 0x07, 0x09
_HEADER = 8  # bytes: direction, command, size, checksum
_LONGEST = 1 << 18  # bytes; a frame with a size of 16 bits is shorter, even if every byte is escaped
_NEAR = 0x1000  # bytes; the registers of an eFuse controller are closer to each other


@dataclass(frozen=True)
class BitChange:
    """The bits of a field before and after; None before if they cannot be read, both None for a key."""

    efuse_name: str
    before: str | None
    after: str | None


class BurnGuard:
    """Decides which eFuses of *board* may be burned. On a virtual board all of them may, and no log is written.

    Args:
        board: the board.
        enabled: whether eFuses of real boards may be burned in this run (``--esp-allow-burn``).
        holder: who uses the board, for the audit log.
        announce: called with a description of each burn before it happens.
    """

    def __init__(
        self, board: Board, *, enabled: bool, holder: str = "", announce: Callable[[str], object] | None = None
    ) -> None:
        self.announce = announce
        self._board = board
        self._enabled = enabled
        self._holder = holder
        self._shown: set[BitChange] = set()
        self._sent: dict[str, Requests] = {}  # by port, also of before it was opened again
        self._burning: int | None = None  # the thread whose permit is open

    @property
    def audit_file(self) -> Path:
        """The append-only log of all burns on a board: JSON lines."""
        return self._board.rack.state_dir(self._board.spec) / AUDIT_FILE

    def check(self, names: Iterable[str]) -> None:
        """Check that all these eFuses may be burned on this board in this run, before anything is sent.

        Raises:
            RefusedError: if not; names every eFuse missing in boards.toml, else the switch of the run.
        """
        allowed = self._board.spec.allow_burn
        self._check([name.upper() for name in dict.fromkeys(names)], lambda name: name not in allowed)

    def _check(self, names: Sequence[str], is_missing: Callable[[str], bool]) -> None:
        if self._board.virtual:
            return
        name, attempted = self._board.name, f"burning {', '.join(names)}"
        missing = list(filter(is_missing, names))
        if missing:
            also = '"burn" to `allow` and ' * ("burn" not in self._board.spec.allow)
            raise RefusedError(
                f"boards.toml does not allow burning {', '.join(missing)} on this board",
                board=name,
                attempted=attempted,
                hint=f"add {also}{', '.join(map(json.dumps, missing))} to `allow_burn` of [boards.{name}]; "
                "burning cannot be undone",
                details={"allow_burn": missing},
            )
        if not self._enabled:
            raise RefusedError(
                "this run does not allow burning eFuses",
                board=name,
                attempted=attempted,
                hint="start pytest with --esp-allow-burn (`pytest-esp op` and the MCP server with --allow-burn); "
                "burning cannot be undone",
            )

    # -- permits

    def show(self, planned: Iterable[BitChange]) -> None:
        """Announce a burn that will follow, unless it was announced already, as a part of a longer plan."""
        new = [change for change in planned if change not in self._shown]
        self._shown.update(new)
        if self.announce is not None and new:
            lines = [f"  {change.efuse_name}: {describe_bits(change)}" for change in new]
            self.announce("\n".join([f"to be burnt on {self._board.name} (irreversible on a real board):", *lines]))

    def permitted(self, commands: Any, burn: Callable[[], R]) -> R:
        """Call *burn*, which burns what is staged in espefuse's *commands*, with a permit for exactly that.

        Raises:
            RefusedError: see `check`; nothing was burned.
            OperationError: if the audit log cannot be written.
        """
        staged = list(changes(commands.efuses))
        if self._burning is not None or not staged:
            return burn()  # what it sends is still checked
        names = [change.efuse_name for change in staged]
        if not self._board.virtual:
            missing = uncovered(commands.efuses, self._board.spec.allow_burn)
            self._check([*missing, *(name for name in names if name not in missing)], lambda name: name in missing)
        self.show(staged)
        entry = {"efuses": names, "changes": [asdict(change) for change in staged]}
        self._audit("begin", commands, entry)
        self._burning = threading.get_ident()
        try:
            result = burn()
        except SystemExit:  # espefuse, if a burn has closed its own access as it should
            self._audit("done", commands, {**entry, "read_back": None, "verified": None})
            raise
        except BaseException as error:
            self._audit("failed", commands, {**entry, "error": str(error)})
            raise
        finally:
            self._burning = None
            self._shown.difference_update(staged)
        self._audit("done", commands, {**entry, **_read_back(commands.efuses, staged)})
        return result

    def _audit(self, stage: str, commands: Any, outcome: Mapping[str, object]) -> None:
        """Append one line, synced to disk before the burn continues; nothing for a virtual board."""
        if self._board.virtual:
            return
        if stage == "begin":
            self._mac = bytes(commands.esp.read_mac("BASE_MAC")).hex(":")
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "stage": stage,
            "user": _user(),
            "pid": os.getpid(),
            "holder": self._holder,
            "board": self._board.name,
            "port": self._board.spec.port,
            "mac": self._mac,
            **outcome,
        }
        path = self.audit_file
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(hide_in(entry)) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OperationError(
                f"the audit log {path} cannot be written: {error.strerror}",
                hint="nothing was burnt" if stage == "begin" else f"the burn itself: {entry}",
            ) from error

    # -- what is sent

    def watch(self, port: Port, chip: Callable[[], str | None], name: str = "port") -> None:
        """Check everything that is written to *port* from now on.

        Args:
            port: a port of a real board.
            chip: returns the chip that answers at the port (esptool's name); None if it is unknown.
            name: its key in the board's entry.
        """
        write = port.write

        def checked(data: bytes) -> int | None:
            sent = copy.copy(self._sent.get(name)) or Requests(chip)
            if sent.starts_a_burn(bytes(data)) and self._burning != threading.get_ident():
                raise RefusedError(
                    "this request starts to burn eFuses, and was not sent",
                    board=self._board.name,
                    attempted="burning eFuses by their controller's registers",
                    hint="burn with esp.efuse.burn(...), or with the commands of link.session.espefuse(...): "
                    "they compare what they burn with `allow_burn` in boards.toml",
                )
            self._sent[name] = sent
            return write(data)

        port.write = checked  # pyright: ignore[reportAttributeAccessIssue] - the port stays the object that others know


class Requests:
    """Finds requests to the eFuse controller in what is sent to a chip, in pieces of any size.

    Args:
        chip: the chip that receives them (esptool's name); None for all chips.
    """

    def __init__(self, chip: Callable[[], str | None]) -> None:
        self._chip = chip
        self._begun = b""
        self._download = (0, 0)  # the address and the block size of the download into RAM
        self._next = 0  # the address of its next block

    def starts_a_burn(self, data: bytes) -> bool:
        """Return whether *data* contains a request that starts a burn, or the beginning of one."""
        *frames, self._begun = (self._begun + data).split(END)
        self._begun = self._begun[:_LONGEST]
        found = [self._is_burn(decode(frame)) for frame in frames]  # of all frames, to follow downloads
        return any(found) or copy.copy(self)._is_burn(decode(self._begun))

    def _is_burn(self, packet: bytes) -> bool:
        if len(packet) <= _HEADER:
            return False
        command, data = packet[1], packet[_HEADER:]
        if command == _WRITE_REG:
            whole = data.ljust(-(-len(data) // 16) * 16, b"\xff")
            records = struct.iter_unpack("<IIII", whole)
            return any(value & bit for address, value, *_ in records for bit in self._bits_at(address, 4))
        if command == _MEM_BEGIN and len(data) >= 16:
            size, count, block_size, address = struct.unpack_from("<IIII", data)
            self._download, self._next = (address, block_size), address
            return any(self._bits_at(address, max(size, count * block_size)))
        if command == _MEM_DATA and len(data) >= 8:
            (number,) = struct.unpack_from("<4xI", data)
            (address, block_size), size = self._download, len(data) - 16
            starts = {self._next, address + number * block_size}
            self._next += size
            return any(bit for start in starts for bit in self._bits_at(start, size))
        return False

    def _bits_at(self, address: int, size: int) -> Iterator[int]:
        """Yield the bit that starts a burn for each command register in this range of addresses."""
        chip = self._chip()
        for name, near in _controllers().items():
            for base in _buses(near) if chip in (None, name) else ():
                if address < base + _NEAR and base - _NEAR < address + size:
                    offset, bit = command_register(name)
                    if address & ~3 <= base + offset < address + size:
                        yield bit


@functools.cache
def _controllers() -> Mapping[str, int]:
    """Return the address of the first eFuse that can be read of each chip, from esptool's table."""
    from esptool.targets import CHIP_DEFS

    return {
        name: chip.EFUSE_RD_REG_BASE  # pyright: ignore[reportAttributeAccessIssue]
        for name, chip in CHIP_DEFS.items()
        if hasattr(chip, "EFUSE_RD_REG_BASE")  # not the ESP8266, whose eFuses nothing that is documented can burn
    }


def _buses(address: int) -> tuple[int, ...]:
    """Return the addresses of a register. ESP32 and ESP32-S2 have two buses to their peripherals."""
    return (address, 0x60000000 | address & 0x3FFFF) if address >> 24 == 0x3F else (address,)


@functools.cache
def command_register(chip: str) -> tuple[int, int]:
    """Return the offset of the controller's command register to `_controllers`, and the bit that starts a burn.

    Source: espefuse's definitions of the chip. They are imported late: most sessions never write near them.
    """
    found = importlib.import_module(f"espefuse.efuse.{chip}.mem_definition").EfuseDefineRegisters
    register, bit = ("EFUSE_REG_CMD", "EFUSE_CMD_WRITE") if chip == "esp32" else ("EFUSE_CMD_REG", "EFUSE_PGM_CMD")
    return getattr(found, register) - _controllers()[chip], getattr(found, bit)


# -- what is staged in espefuse's commands


def changes(efuses: Any) -> Iterator[BitChange]:
    """Yield the fields that would change if what is staged were burned."""
    for field in efuses:
        if field.is_field_calculated():
            continue
        before = _bits(field.get_bitstring())
        after = joined(before, _bits(field.get_bitstring(from_read=False)))
        if after != before:
            secret = is_key(efuses, field)
            readable = field.is_readable() and not secret
            yield BitChange(field.name, before if readable else None, None if secret else after)


def uncovered(efuses: Any, allowed: Iterable[str]) -> list[str]:
    """Return the names of the eFuses to be burned that are not in *allowed*: the smallest fields with these bits.

    A field that is allowed covers what espefuse burns along with it, such as the checksum of an ESP32's CUSTOM_MAC.
    """
    left = {block.id: block.wr_bitarray.uint & ~block.bitarray.uint for block in efuses.blocks}
    words = {name.upper() for name in allowed}
    for field in [field for field in efuses if words & _names(efuses, field)]:
        block, bits = _place(field)
        if left[block] & bits or field.is_field_calculated():
            for number, along in _burned_along(efuses, field):
                left[number] &= ~along
        left[block] &= ~bits
    found: dict[str, tuple[int, int]] = {}
    for field in sorted(efuses, key=lambda field: field.bit_len or 0):
        block, bits = _place(field)
        if left[block] & bits:
            left[block] &= ~bits
            found[field.name] = block, bits
    found.update((efuses.blocks[block].name, (block, -1)) for block, bits in left.items() if bits)
    return [name for name, place in found.items() if not any(_is_in(place, other) for other in found.values())]


def _names(efuses: Any, field: Any) -> set[str]:
    block = efuses.blocks[field.block]
    also = block.alias if field.name == block.name else ()
    return {name.upper() for name in (*field.all_names, *also)}


def _is_in(place: tuple[int, int], other: tuple[int, int]) -> bool:
    return place != other and place[0] == other[0] and not place[1] & ~other[1]


def _place(field: Any) -> tuple[int, int]:
    """Return the block of a field, and its bits in it as a mask."""
    if field.is_field_calculated():
        return field.block, 0
    return field.block, ((1 << field.bit_len) - 1) << (field.word * 32 + field.pos)


def _burned_along(efuses: Any, field: Any) -> list[tuple[int, int]]:
    """Return what espefuse stages, by block, if *field* is burned with its staged value."""
    import esptool

    from pytest_esp.link.logs import Transcript, capture

    staged = [block.wr_bitarray.uint for block in efuses.blocks]
    try:
        if field.is_field_calculated():
            value = field.get(from_read=False)
        else:
            bits = field.get_bitstring(from_read=False) | field.get_bitstring()
            value = bits.bytes[::-1] if field.efuse_type.startswith("bytes") else bits.uint
        _stage(efuses, [0] * len(staged))
        with capture(Transcript()):  # what espefuse prints may contain keys
            field.save(value)
        return [(block.id, block.wr_bitarray.uint) for block in efuses.blocks]
    except (esptool.FatalError, ValueError, TypeError):
        return []  # it can only be burned as a part of its block
    finally:
        _stage(efuses, staged)


def _stage(efuses: Any, values: Sequence[int]) -> None:
    for block, value in zip(efuses.blocks, values, strict=True):
        block.wr_bitarray.overwrite(f"uint:{block.wr_bitarray.len}={value}", pos=0)


def is_key(efuses: Any, field: Any) -> bool:
    """Return whether a field is a key: a whole block that can be read-protected, or one half of the ESP32-C2's."""
    block = efuses.blocks[field.block]
    whole = field.name in (block.name, *block.alias)
    return field.read_disable_bit is not None and (whole or field.name.startswith("BLOCK_KEY"))


def joined(before: str, wanted: str) -> str:
    """Return the bits that are 1 in either."""
    return "".join("1" if "1" in pair else "0" for pair in zip(before, wanted, strict=True))


def _bits(array: Any) -> str:
    return f"{array.uint:0{array.len}b}"


def _read_back(efuses: Any, staged: Sequence[BitChange]) -> dict[str, object]:
    """Return the bits after a burn, without keys, and whether they are the planned ones; None if nothing shows it."""
    efuses.update_efuses()
    found: dict[str, str | None] = {}
    for change in staged:
        field = efuses[change.efuse_name]
        shown = change.after is not None and field.is_readable()
        found[change.efuse_name] = _bits(field.get_bitstring()) if shown else None
    proven = [found[change.efuse_name] == change.after for change in staged if found[change.efuse_name] is not None]
    return {"read_back": found, "verified": all(proven) if proven else None}


# -- words


def describe_bits(change: BitChange) -> str:
    """Return the bits before and after in words; those of a key are not shown."""
    if change.after is None:
        return "a key"
    digits = -(-len(change.after) // 4)
    shown = (
        "unreadable" if bits is None else bits if digits < 3 else f"{int(bits, 2):#0{digits + 2}x}"
        for bits in (change.before, change.after)
    )
    return " -> ".join(shown)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
