"""Operations on eFuses, through espefuse's own commands."""

from __future__ import annotations

import contextlib
import getpass
import io
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pytest_esp.errors import OperationError, RefusedError
from pytest_esp.link.link import Link
from pytest_esp.names import nearest
from pytest_esp.operations.registry import Effect, operation

AUDIT_FILE = "efuse-audit.jsonl"


@dataclass(frozen=True)
class Efuse:
    """One eFuse field.

    Attributes:
        name, block, word, bit_position, bit_length, category, description: as espefuse's definition of the chip says.
        value: what it means: bool, int or text, as espefuse shows it.
        bits: its raw bits, a string of 0 and 1; None if they cannot be read.
        readable, writeable: whether its protection allows it.
    """

    name: str
    value: bool | int | str
    bits: str | None
    readable: bool
    writeable: bool
    block: int
    bit_length: int
    category: str
    description: str


@dataclass(frozen=True)
class EfuseSummary:
    """All eFuses of a chip, by name."""

    chip: str
    fields: Mapping[str, Efuse]


@operation(Effect.READ)
def read_all(link: Link) -> EfuseSummary:
    """Return all eFuses.

    Source: ``espefuse summary --format json``.

    Raises:
        OperationError: on an ESP8266, for which espefuse has no definitions, or in secure download mode.
    """
    session = link.session
    with session.use("reading the eFuses", stub=False) as esp:
        _check_supported(link, esp)
        commands = session.espefuse(esp)
        commands.efuses.read_blocks()
        commands.efuses.update_efuses()
        return EfuseSummary(session.chip, _summary(commands))


@operation(Effect.READ)
def read(link: Link, name: str) -> Efuse:
    """Return one eFuse.

    Raises:
        OperationError: if the chip has none of that name; names the nearest ones.
    """
    return _field(link, read_all(link), name)


@dataclass(frozen=True)
class BurnPlan:
    """What a burn would do, bit by bit.

    Attributes:
        before, after: the raw bits; None before if they cannot be read.
        new_bits: how many bits go from 0 to 1; 0 means that nothing is to be done.
    """

    name: str
    value: str
    before: str | None
    after: str
    new_bits: int


@operation(Effect.READ)
def plan(link: Link, name: str, value: str | int) -> BurnPlan:
    """Return what `burn` with the same arguments would do, and touch nothing.

    Raises:
        OperationError: if there is no such eFuse, it is write-protected, the value does not fit, or bits that are
            burnt would have to become 0.
    """
    return _plan(link, _field(link, read_all(link), name), value)


@dataclass(frozen=True)
class BurnResult:
    """What a burn did, as it was read back."""

    name: str
    value_requested: str
    value_before: str
    value_after: str
    burnt_bits: int


@operation(Effect.BURN)
def burn(link: Link, name: str, value: str | int) -> BurnResult:
    """Burn an eFuse and read it back. **Irreversible on real hardware.**

    A real board needs ``"burn"`` in its ``allow``, the eFuse in its ``allow_burn``, and the run's consent
    (``--esp-allow-burn``). Every burn of a real board is written to an audit log before and after it is made.

    Raises:
        RefusedError: if any of these is missing; nothing was touched.
        OperationError: see `plan`; or if the eFuse reads back as something else.
    """
    _require_consent(link, name)
    before = _field(link, read_all(link), name)
    planned = _plan(link, before, value)
    if planned.new_bits:
        _audit(link, "begin", planned)
        _burn(link, before.name, value)
    after = _field(link, read_all(link), before.name)
    if planned.new_bits:
        _audit(link, "done", planned, after.bits)
    if after.bits is not None and after.bits != planned.after:
        raise OperationError(
            f"the eFuse {before.name} reads back as {after.bits}, not {planned.after}",
            board=link.board.name,
            attempted=f"burning {before.name}",
            hint="the coding scheme or a write protection may be in the way; the bits that were burnt stay burnt",
        )
    return BurnResult(before.name, str(value), str(before.value), str(after.value), planned.new_bits)


# -- inside


def _check_supported(link: Link, esp: Any) -> None:
    from espefuse.efuse_interface import SUPPORTED_CHIPS

    if link.session.chip not in SUPPORTED_CHIPS:
        raise OperationError(f"espefuse has no eFuse definitions for the {esp.CHIP_NAME}")
    if esp.secure_download_mode:
        raise OperationError(
            "its eFuses cannot be read: the ROM is in secure download mode", hint="security info still works"
        )


class _Kept(io.StringIO):
    """espefuse prints the name of the file that it writes its summary to, and closes it."""

    name = "memory"
    contents = ""

    def close(self) -> None:
        """Keep what was written."""
        if not self.closed:
            self.contents = self.getvalue()
        super().close()


def _summary(commands: Any) -> dict[str, Efuse]:
    buffer = _Kept()
    with buffer:
        commands.summary(format="json", file=buffer)
    fields: dict[str, Efuse] = {}
    raw: dict[str, Any] = json.loads(buffer.contents)
    for name, item in raw.items():
        fields[name] = Efuse(
            name=name,
            value=item["value"],
            bits=_bits(commands.efuses[name].get_bitstring()) if item["readable"] else None,
            readable=item["readable"],
            writeable=item["writeable"],
            block=item["block"],
            bit_length=item["bit_len"],
            category=item["category"],
            description=item["description"],
        )
    return fields


def _bits(array: Any) -> str:
    return f"{array.uint:0{array.len}b}"


def _field(link: Link, summary: EfuseSummary, name: str) -> Efuse:
    found = summary.fields.get(name) or summary.fields.get(name.upper())
    if found is None:
        raise OperationError(
            f"eFuse '{name}' not found",
            board=link.board.name,
            attempted="eFuse read",
            hint=f"nearest: {nearest(name, summary.fields)}; `efuse read-all` lists all {len(summary.fields)}",
        )
    return found


def _plan(link: Link, field: Efuse, value: str | int) -> BurnPlan:
    attempted = f"planning to burn {field.name}"
    with link.session.use(attempted, stub=False) as esp:
        if not field.writeable:
            raise OperationError(f"the eFuse {field.name} is write-protected")
        wanted = _requested_bits(link.session.espefuse(esp), field, value)
    before = field.bits if field.bits is not None else "0" * len(wanted)
    after = "".join("1" if "1" in pair else "0" for pair in zip(before, wanted, strict=True))
    if after != wanted and not field.name.startswith("BLOCK"):
        raise OperationError(
            f"the eFuse {field.name} has bits burnt ({before}) that the value {value} ({wanted}) has not",
            board=link.board.name,
            attempted=attempted,
            hint="a bit that is 1 stays 1",
        )
    new = sum(a != b for a, b in zip(before, after, strict=True))
    return BurnPlan(field.name, str(value), field.bits, after, new)


def _requested_bits(commands: Any, field: Efuse, value: str | int) -> str:
    """Return the bits that espefuse would write for *value*, as its own argument check understands it."""
    import esptool
    from espefuse.efuse.base_fields import CheckArgValue

    efuse = commands.efuses[field.name]
    try:
        checked = CheckArgValue(commands.efuses, field.name)(str(value))
        raw = efuse.convert_to_bitstring(checked)
    except (esptool.FatalError, ValueError, SystemExit) as error:
        raise OperationError(f"the value {value!r} does not fit the eFuse {field.name}: {error}") from error
    return _bits(raw)


def _burn(link: Link, name: str, value: str | int) -> None:
    session = link.session
    with session.use(f"burning {name}", stub=False) as esp:
        from espefuse.efuse.base_fields import CheckArgValue

        commands = session.espefuse(esp)
        checked = CheckArgValue(commands.efuses, name)(str(value))
        try:
            # espefuse leaves the process after burning an eFuse that closes its own way in.
            with contextlib.suppress(SystemExit):
                commands.burn_efuse({name: checked})
        finally:
            session.forget_efuses()


def _require_consent(link: Link, name: str) -> None:
    board = link.board
    if board.virtual:
        return
    if name not in board.spec.allow_burn:
        raise RefusedError(
            f"boards.toml does not allow {name} to be burnt on this board",
            board=board.name,
            attempted=f"burning {name}",
            hint=f'add "{name}" to `allow_burn` of [boards.{board.name}]; it cannot be undone',
        )
    if not link.burns_enabled:
        raise RefusedError(
            "this run was not told to burn eFuses",
            board=board.name,
            attempted=f"burning {name}",
            hint="start it with --esp-allow-burn; it cannot be undone",
        )


def audit_file(link: Link) -> Path:
    """Return the append-only log of all burns of a board: JSON lines."""
    return link.board.rack.state_dir(link.board.spec) / AUDIT_FILE


def _audit(link: Link, stage: str, planned: BurnPlan, read_back: str | None = None) -> None:
    """Append one line, and see to it that it is on the disk before the burn goes on."""
    if link.board.virtual:
        return
    entry = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "stage": stage,
        "user": getpass.getuser(),
        "pid": os.getpid(),
        "holder": link.holder,
        "board": link.board.name,
        "port": link.board.spec.port,
        "read_back": read_back,
        **asdict(planned),
    }
    with audit_file(link).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())
