"""Operations on eFuses, through espefuse's own commands."""

from __future__ import annotations

import contextlib
import contextvars
import io
import json
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pytest_esp.errors import EspError, LinkError, OperationError
from pytest_esp.link.burns import BitChange, is_key, joined
from pytest_esp.link.burns import changes as staged_changes
from pytest_esp.link.link import Link
from pytest_esp.link.logs import Transcript, capture
from pytest_esp.names import nearest
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.operations.security.secret_names import remember_key

R = TypeVar("R")

EfuseValue = bool | int | str | bytes
"""Values to burn: a bool or a number (also as text), bytes or hex digits for fields of bytes, a MAC address."""

Burns = Sequence[tuple[str, EfuseValue]]
"""eFuses to burn, in order, each with its value."""

# Fields whose new value espefuse joins with the burnt bits: bits are only ever added.
_ADDED_TO = frozenset({"WR_DIS", "RD_DIS"})
# After burning one of these, no loader can read the eFuses: the chip's behaviour is the only proof.
_CLOSE_THE_LOADER = frozenset({"DIS_DOWNLOAD_MODE", "UART_DOWNLOAD_DIS"})
_KEY_BLOCK = re.compile(r"BLOCK_KEY\w+|BLOCK[12]|flash_encryption|secure_boot_v1", re.IGNORECASE)
_CLOSES_THE_REGISTERS = "ENABLE_SECURITY_DOWNLOAD"


@dataclass(frozen=True)
class Efuse:
    """One eFuse field.

    Attributes:
        value: as text; ``"0"`` or ``"1"`` for a flag.
        meaning: the value as in espefuse's JSON: bool, int or text.
        bits: its raw bits, a string of 0 and 1, highest bit first; None if they cannot be read.
        readable, writeable: whether its protection allows reading and writing.
        block, word, bit: its position; word and bit are None for a field that is computed from others.
        bit_length, category, description: from espefuse's definition for the chip.
    """

    efuse_name: str
    value: str
    meaning: bool | int | str
    bits: str | None
    readable: bool
    writeable: bool
    block: int
    word: int | None
    bit: int | None
    bit_length: int
    category: str
    description: str


@dataclass(frozen=True)
class EfuseSummary:
    """All eFuses of a chip, by name."""

    chip_type: str
    fields: Mapping[str, Efuse]


@operation(Effect.READ, group="efuse")
def read_all(link: Link) -> EfuseSummary:
    """Return all eFuses.

    Source: ``espefuse summary --format json``.

    Raises:
        OperationError: on an ESP8266, for which espefuse has no definitions, or in secure download mode.
    """
    with link.session.use("reading the eFuses", stub=False) as esp:
        return EfuseSummary(link.session.chip, _summary(_commands(link, esp)))


@operation(Effect.READ, group="efuse")
def read(link: Link, efuse_name: str) -> Efuse:
    """Return one eFuse.

    Args:
        efuse_name: name of the eFuse in espefuse, or an alternative name; case does not matter.

    Raises:
        OperationError: if the chip has no such eFuse; the hint gives the nearest names, and
            ``details["available_efuses"]`` all names, the nearest first.
    """
    with link.session.use(f"reading the eFuse {efuse_name}", stub=False) as esp:
        commands = _commands(link, esp)
        found = _find(commands, efuse_name).name
        return _summary(commands)[found]


@dataclass(frozen=True)
class EfuseValues:
    """All eFuses of a chip as text, without keys: values by name, and espefuse's printed summary."""

    efuses: Mapping[str, str]
    raw_output: str


@operation(Effect.READ, group="efuse")
def summary(link: Link) -> EfuseValues:
    """Return all eFuses as printed by ``espefuse summary``. Keys are not shown.

    Raises:
        OperationError: see `read_all`.
    """
    with link.session.use("reading the eFuses", stub=False) as esp:
        commands = _commands(link, esp)
        printed = Transcript()
        with capture(printed):
            commands.summary(format="summary", file=sys.stdout)  # any other file it closes, its default, too
        text = printed.text
        for field in commands.efuses:
            if (
                field.category == "security"
                and field.efuse_type.startswith("bytes")
                and not field.get_bitstring().all(False)
            ):
                shown = str(field.get_meaning())
                text = text.replace(shown, re.sub("[0-9a-f]", "?", shown))
        return EfuseValues(texts(_summary(commands)), text)


def texts(fields: Mapping[str, Efuse]) -> dict[str, str]:
    """Return the values of all eFuses by name, without keys."""
    return {name: "(a key)" if _shows_a_key(field) else field.value for name, field in fields.items()}


def _shows_a_key(field: Efuse) -> bool:
    return field.efuse_name.startswith("BLOCK") and field.category == "security" and "1" in (field.bits or "")


# -- burning


@dataclass(frozen=True)
class BurnPlan:
    """The effect of a burn, bit by bit. Values and bits of key blocks are not shown: no log or result contains a key.

    Attributes:
        before, after: raw bits of the eFuse itself; None before if they cannot be read, both None for a key.
        new_bits: number of its bits that go from 0 to 1; 0 means that there is nothing to do.
        changes: all fields that change: espefuse also burns checksums and versions along with some.
    """

    efuse_name: str
    value: str
    before: str | None
    after: str | None
    new_bits: int
    changes: tuple[BitChange, ...]


@operation(Effect.READ, group="efuse")
def plan(link: Link, efuse_name: str, value: EfuseValue) -> BurnPlan:
    """Return what `burn` with the same arguments would do, without changing anything.

    The checks are espefuse's own: protection, coding scheme, incompatible eFuses.

    Args:
        efuse_name: name of the eFuse in espefuse.
        value: a number or bool; hex digits or bytes for a field of bytes; a MAC address for a MAC.

    Raises:
        OperationError: if the eFuse does not exist or cannot be burnt, the value is invalid, or burnt bits would
            have to become 0.
    """
    _remember_if_key(efuse_name, value)
    with link.session.use(f"planning to burn {efuse_name}", stub=False) as esp:
        return _Intent(_commands(link, esp), efuse_name, value).plan


@dataclass(frozen=True)
class BurnResult:
    """The result of a burn.

    Attributes:
        value_before, value_after: as text; ``"0"`` or ``"1"`` for a flag; after is None if it can no longer be read.
        burnt_bits: number of bits of the eFuse that went from 0 to 1.
        verified: whether the chip confirmed it, by the bits that were read back, or because its loader is now closed.
            None for a field that cannot be read.
        changes: all fields that were burnt.
    """

    efuse_name: str
    value_requested: str
    value_before: str
    value_after: str | None
    burnt_bits: int
    verified: bool | None
    changes: tuple[BitChange, ...]
    warning: str = "eFuse burn is IRREVERSIBLE on real hardware"


@operation(Effect.BURN, group="efuse")
def burn(link: Link, efuse_name: str, value: EfuseValue) -> BurnResult:
    """Burn an eFuse and read it back. This is irreversible on real hardware.

    A real board needs ``"burn"`` in its ``allow``, the eFuse in its ``allow_burn``, and the run's consent
    (``--esp-allow-burn``). Every burn on a real board is recorded in an audit log (`BurnGuard.audit_file`) before and
    after.
    Ctrl-C does not interrupt a burn; it takes effect afterwards. Only the ROM burns eFuses: if the stub is running, the
    chip is reset first.

    Args:
        efuse_name: name of the eFuse in espefuse.
        value: a number or bool; hex digits or bytes for a field of bytes; a MAC address for a MAC.

    Raises:
        RefusedError: if one of these permissions is missing; nothing was burnt.
        OperationError: see `plan`; or if the eFuse reads back a different value.
    """
    _remember_if_key(efuse_name, value)
    link.burns.check([efuse_name])
    return _uninterrupted(lambda: _burn_and_prove(link, efuse_name, value))


def plan_all(link: Link, burns: Burns) -> tuple[BurnPlan, ...]:
    """Return what `burn_all` with the same burns would do, each planned on the current eFuses. Changes nothing.

    Raises:
        OperationError: see `plan`.
    """
    with link.session.use(f"planning to burn {', '.join(name for name, _ in burns)}", stub=False) as esp:
        commands = _commands(link, esp)
        return tuple(_Intent(commands, name, value).plan for name, value in burns)


def burn_all(link: Link, burns: Burns) -> tuple[BurnResult, ...]:
    """Burn several eFuses in order, each like `burn`; all are planned before the first is burnt.

    Neither Ctrl-C nor a cancelled call stops between two of them.

    Raises:
        RefusedError: see `BurnGuard.check`; nothing was burnt.
        OperationError: see `plan`; nothing was burnt. If a later one fails, ``details["burnt"]`` names those before it.
    """
    link.burns.check(name for name, _ in burns)
    link.burns.show(change for planned in plan_all(link, burns) for change in planned.changes)
    return _uninterrupted(lambda: _burn_in_order(link, burns))


def _burn_in_order(link: Link, burns: Burns) -> tuple[BurnResult, ...]:
    done: list[BurnResult] = []
    for name, value in burns:
        try:
            done.append(_burn_and_prove(link, name, value))
        except EspError as error:
            burnt = [one.efuse_name for one in done if one.burnt_bits]
            error.details["burnt"] = burnt
            left = ", ".join(other for other, _ in burns[len(done) :])
            error.hint = f"burnt already: {', '.join(burnt) or 'nothing'}; still to be burnt: {left}" + (
                f"; {error.hint}" if error.hint else ""
            )
            raise
    return tuple(done)


def key_purposes(link: Link) -> dict[str, int]:
    """Return the key purposes of this chip and their numbers; empty if its key blocks have no purposes.

    Source: espefuse's definitions of the chip.
    """
    with link.session.use("looking up the key purposes", stub=False) as esp:
        efuses = _commands(link, esp).efuses
        field = next((field for field in efuses if field.name == "KEY_PURPOSE_0"), None)
        if field is None:
            return {}
        return {str(name): int(number) for name, number, *_ in field.KEY_PURPOSES if number >= 0}


def protection_masks(link: Link, name: str) -> tuple[int, int]:
    """Return the bits of RD_DIS and of WR_DIS that protect an eFuse; 0 if it has no such bit.

    Source: espefuse's definitions of the chip.

    Raises:
        OperationError: if the chip has no such eFuse.
    """
    with link.session.use(f"looking up what protects {name}", stub=False) as esp:
        field = _find(_commands(link, esp), name)

    def mask(bits: Any) -> int:
        return sum(1 << bit for bit in (bits if isinstance(bits, list) else [bits]) if bit is not None)

    return mask(field.read_disable_bit), mask(field.write_disable_bit)


# -- reading, inside


def _commands(link: Link, esp: Any) -> Any:
    """Return espefuse's commands, with the current eFuses read."""
    from espefuse.efuse_interface import SUPPORTED_CHIPS

    if link.session.chip not in SUPPORTED_CHIPS:
        raise OperationError(f"espefuse has no eFuse definitions for the {esp.CHIP_NAME}")
    if esp.secure_download_mode:
        raise OperationError("the eFuses cannot be read in secure download mode", hint="read the security info instead")
    commands = link.session.espefuse(esp)
    commands.efuses.read_blocks()
    commands.efuses.update_efuses()
    return commands


class _Kept(io.StringIO):
    """A file for espefuse's summary that keeps its contents: espefuse prints its name, writes to it and closes it."""

    name = "memory"
    contents = ""

    def close(self) -> None:
        """Keep the contents."""
        if not self.closed:
            self.contents = self.getvalue()
        super().close()


def _summary(commands: Any) -> dict[str, Efuse]:
    with _Kept() as buffer:
        commands.summary(format="json", file=buffer)
    raw: dict[str, Any] = json.loads(buffer.contents)
    return {
        name: Efuse(
            efuse_name=name,
            value=_text(item["value"]),
            meaning=item["value"],
            bits=_bits(commands.efuses[name].get_bitstring()) if item["readable"] else None,
            readable=item["readable"],
            writeable=item["writeable"],
            block=item["block"],
            word=item["word"],
            bit=item["pos"],
            bit_length=item["bit_len"],
            category=item["category"],
            description=item["description"],
        )
        for name, item in raw.items()
    }


def _bits(array: Any) -> str:
    return f"{array.uint:0{array.len}b}"


def _find(commands: Any, name: str) -> Any:
    """Return espefuse's field with this name."""
    efuses = commands.efuses
    for spelling in filter(None, (name, name.upper())):
        with contextlib.suppress(KeyError):
            return efuses[spelling]
    names = sorted(field.name for field in efuses)
    near = nearest(name, names).split(", ")
    raise OperationError(
        f"eFuse '{name}' not found",
        hint=f"nearest: {', '.join(near)}; the {commands.esp.CHIP_NAME} has {len(names)}",
        details={"available_efuses": [*near, *(other for other in names if other not in near)]},
    )


# -- planning, inside


class _Intent:
    """A burn that has passed all checks, including what only the burn itself may see.

    Attributes:
        raw: the value in the form that espefuse's ``burn_efuse`` takes.
        after: the field's bits after the burn.
        secret: whether the field is a key block.
        shown: the current value of the field, as shown by espefuse.
    """

    def __init__(self, commands: Any, name: str, value: EfuseValue) -> None:
        field = _find(commands, name)
        if not field.is_writeable():
            raise OperationError(f"the eFuse {field.name} is write-protected", hint="this cannot be undone")
        self.secret = is_key(commands.efuses, field)
        self.shown = _text(field.get())
        before = _bits(field.get_bitstring())
        raw, wanted = _requested(commands, field, value, self.secret)
        self.after = joined(before, wanted)
        if self.after != wanted and field.name not in _ADDED_TO:
            has = f"has burnt bits ({before}) that are 0 in the value {_text(value)} ({wanted})"
            raise OperationError(
                f"the eFuse {field.name} {has if not self.secret else 'is burnt with another key'}",
                hint="burnt bits cannot be cleared; choose a value that includes them",
            )
        self.raw = raw if isinstance(raw, bytes) else int(self.after, 2)
        self.plan = BurnPlan(
            efuse_name=field.name,
            value=_text(value) if not self.secret else "(a key)",
            before=before if field.is_readable() and not self.secret else None,
            after=self.after if not self.secret else None,
            new_bits=self.after.count("1") - before.count("1"),
            changes=_staged(commands, field, self.raw) if self.after != before else (),
        )


def _text(value: EfuseValue) -> str:
    """Return *value* as text for espefuse's command line."""
    if isinstance(value, bytes):
        return value.hex()
    return str(int(value) if isinstance(value, bool) else value)


def _remember_if_key(name: str, value: EfuseValue) -> None:
    """Mask a value for a key block; digests are burnt by an operation of their own and are not masked."""
    if _KEY_BLOCK.fullmatch(name) and isinstance(value, (str, bytes)):
        with contextlib.suppress(ValueError):
            remember_key(value if isinstance(value, bytes) else bytes.fromhex(value.removeprefix("0x")))


def _requested(commands: Any, field: Any, value: EfuseValue, secret: bool) -> tuple[int | bytes, str]:
    """Return *value* as parsed by espefuse, and its bits."""
    import esptool
    from espefuse.efuse.base_fields import CheckArgValue

    text = _text(value)
    try:
        if not field.efuse_type.startswith("bytes") and int(text, 0) == 0:
            return 0, "0" * field.bit_len  # espefuse rejects 0, even if it would change nothing
        raw = CheckArgValue(commands.efuses, field.name)(text)
        return raw, _bits(field.convert_to_bitstring(raw))
    except (esptool.FatalError, ValueError, TypeError) as error:
        shown = "given" if secret else repr(text)
        raise OperationError(
            f"invalid value {shown} for the eFuse {field.name}: {error}",
            hint=f"give {field.bit_len} bits ({field.efuse_type}); {field.description}",
        ) from error


def _staged(commands: Any, field: Any, raw: int | bytes) -> tuple[BitChange, ...]:
    """Return the fields that a burn would change, after espefuse's own checks; the staged values are cleared again."""
    import esptool

    efuses = commands.efuses
    try:
        # espefuse's output contains the bits of keys, so that it is kept out of the transcript.
        with capture(Transcript()):
            field.save(raw)
            incompatible = efuses.is_efuses_incompatible_for_burn()
            changes = tuple(staged_changes(efuses))
            for block in efuses.blocks:
                block.check_wr_data()
    except esptool.FatalError as error:
        raise OperationError(f"the eFuse {field.name} cannot be burnt: {str(error).strip()}") from error
    finally:
        for block in efuses.blocks:
            block.wr_bitarray.set(0)
    if incompatible:
        raise OperationError(
            f"the eFuse {field.name} is incompatible with eFuses that are burnt already",
            hint="the ROM of this chip has a bug with this combination, which espefuse also rejects; leave it unburnt",
        )
    return changes


# -- burning, inside


def _uninterrupted(work: Callable[[], R]) -> R:
    """Run *work* in a thread and return its result; interruptions of this thread wait until it is done."""
    begun = threading.Lock()
    done = threading.Event()
    results: list[R] = []
    errors: list[BaseException] = []

    def run() -> None:
        if not begun.acquire(blocking=False):
            return
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    interruption: BaseException | None = None
    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="efuse-burn")
    try:
        thread.start()
    except BaseException as error:
        if begun.acquire(blocking=False):
            raise  # it has not started, and will not start
        interruption = error
    while not done.is_set():
        try:
            done.wait()
        except BaseException as error:
            interruption = error
    if interruption is not None:
        raise interruption
    if errors:
        raise errors[0]
    return results[0]


def _burn_and_prove(link: Link, name: str, value: EfuseValue) -> BurnResult:
    with link.session.use(f"burning {name}", stub=False) as esp:
        commands = _commands(link, esp)
        intent = _Intent(commands, name, value)
        planned = intent.plan
        before = intent.shown if not intent.secret else "(a key)"
        if not planned.new_bits:
            return BurnResult(planned.efuse_name, planned.value, before, before, 0, True, ())
        _burn(link, commands, intent)
    after, bits, verified = _proof(link, planned.efuse_name, intent.after)
    if verified is False:
        found = f"reads back as {bits}, not {intent.after}" if not intent.secret else "reads back as another key"
        raise OperationError(
            f"the eFuse {planned.efuse_name} {found}",
            attempted=f"burning {planned.efuse_name}",
            hint="check the coding scheme and write protection; burnt bits stay burnt",
        )
    if intent.secret and after is not None:
        after = "(a key)"
    return BurnResult(
        efuse_name=planned.efuse_name,
        value_requested=planned.value,
        value_before=before,
        value_after=after,
        burnt_bits=planned.new_bits,
        verified=verified,
        changes=planned.changes,
    )


def _burn(link: Link, commands: Any, intent: _Intent) -> None:
    # Some burns block espefuse's own access; if it is satisfied with what it then finds, it exits the process.
    quiet = capture(Transcript()) if intent.secret else contextlib.nullcontext()
    with quiet, contextlib.suppress(SystemExit):
        commands.burn_efuse({intent.plan.efuse_name: intent.raw})
    if link.session.chip == "esp32":
        link.session.forget_efuses()  # which fields an ESP32 has depends on what is burnt in others


def _proof(link: Link, name: str, expected: str) -> tuple[str | None, str | None, bool | None]:
    """Return the current value and bits, if they can be read, and whether the bits are the expected ones."""
    if name in _CLOSE_THE_LOADER and not _loader_answers(link):
        return None, None, True
    if name == _CLOSES_THE_REGISTERS:
        link.session.drop()
        with link.session.use("looking for secure download mode", stub=False) as esp:
            return None, None, bool(esp.secure_download_mode)
    # On some chips the loader stays open: the first revisions of the ESP32 do not support UART_DOWNLOAD_DIS.
    now = read(link, name)
    return now.value, now.bits, None if now.bits is None else now.bits == expected


def _loader_answers(link: Link) -> bool:
    link.session.drop()
    try:
        with link.session.use("looking for the loader", stub=False):
            return True
    except LinkError:
        return False
