"""Recovers a board that does not answer or whose app crashes: one measure after another, each reported."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from pytest_esp.boards.board import Board
from pytest_esp.errors import BackendError, EspError, LinkError, OperationError, WrongChipError
from pytest_esp.link.link import Link
from pytest_esp.operations.chip import connection
from pytest_esp.operations.chip.running import FirmwareRun, run_firmware
from pytest_esp.operations.flash import tables, writing
from pytest_esp.operations.registry import Effect, operation

Outcome = Literal["worked", "failed", "skipped"]


@dataclass(frozen=True)
class RecoveryStep:
    """One measure, its outcome, and the reason.

    Attributes:
        name: ``reset``, ``power cycle``, ``boot strap``, ``lower baud rate``, ``stub``, ``ROM without stub``, ``boot``,
            ``erase app``, in this order.
    """

    name: str
    outcome: Outcome
    detail: str
    seconds: float


@dataclass(frozen=True)
class Recovery:
    """A recovered board.

    Attributes:
        state: final state of the app; ``"erased"`` if it was erased; see `FirmwareRun`.
        steps: all measures, in order.
        next: what to do next, in words; None if nothing is wrong.
    """

    chip_type: str
    state: str
    steps: tuple[RecoveryStep, ...]
    next: str | None
    seconds: float


@operation(Effect.ERASE, group="chip", without={"erase_app": Effect.WRITE})
def recover(link: Link, erase_app: bool = False, wait_seconds: float = 5.0) -> Recovery:
    """Recover a board that does not answer or whose app crashes; each measure is reported.

    The measures are, in this order: reset, power cycle, other boot resets, lower baud rates, ROM without stub, boot.
    Nothing is written, unless *erase_app* is given and the app crashes or cannot be started: this erases its partition.

    Args:
        erase_app: erase an app that crashes within *wait_seconds* or cannot be started.
        wait_seconds: seconds to wait for a crash of the app.

    Raises:
        LinkError: if the loader cannot be reached; ``details["steps"]`` lists all that was tried.
        RefusedError: if *erase_app* is not permitted.
    """
    begun = time.monotonic()
    steps: list[RecoveryStep] = []
    _reach_loader(link, steps)
    _try_stub(link, steps)
    chip = link.session.chip
    run = _boot(link, steps, wait_seconds)
    state: str = run.state
    if state in ("running", "silent"):
        _skip(steps, "erase app", "the app does not crash")
    elif not erase_app:
        _skip(steps, "erase app", "not requested")
    elif _step(steps, "erase app", lambda: _erase(link)):
        state = "erased"
    return Recovery(
        chip_type=chip, state=state, steps=tuple(steps), next=_next(state), seconds=time.monotonic() - begun
    )


def _next(state: str) -> str | None:
    return {
        "crashed": "the app crashes: flash another one, or recover with erase_app",
        "boot loop": "the app crashes repeatedly: flash another one, or recover with erase_app",
        "not bootable": "flash a bootloader, a partition table and an app",
        "silent": "the app prints nothing on this port: check which port its console uses",
        "erased": "flash an app",
    }.get(state)


def _reach_loader(link: Link, steps: list[RecoveryStep]) -> None:
    if _step(steps, "reset", lambda: link.reset(bootloader=True)):
        for name in ("power cycle", "boot strap", "lower baud rate"):
            _skip(steps, name, "its loader answers")
        return
    ways = connection.strategies(link)
    measures: list[tuple[str, Callable[[], object]]] = []
    if link.board.spec.power is None and type(link.board).power_cycle is Board.power_cycle:
        _skip(steps, "power cycle", "boards.toml has no `power` for this board")
    else:
        measures.append(("power cycle", lambda: _power_cycle(link)))
    rom = max(way.hello for way in ways)
    measures += [
        ("boot strap", lambda: _connect(link, [way for way in ways if way.hello == rom])),
        ("lower baud rate", lambda: _connect(link, [way for way in ways if way.hello < rom])),
    ]
    found = False
    for name, measure in measures:
        if found:
            _skip(steps, name, "its loader answers")
        else:
            found = _step(steps, name, measure)
    if not found:
        raise LinkError(
            "the loader cannot be reached by any measure",
            details={"steps": [asdict(step) for step in steps]},
            hint="hold the BOOT button, press RESET, and recover again; check supply, cable and port",
        )


def _power_cycle(link: Link) -> str:
    link.power_cycle()
    link.reset(bootloader=True)
    return "power off and on, then a reset into its loader"


def _connect(link: Link, ways: Iterable[connection.Strategy]) -> str:
    said: list[str] = []
    for way in ways:
        try:
            connection.connect_by(link, way)
        except WrongChipError:
            raise
        except EspError as error:
            said.append(f"{way}: {error.message}")
        else:
            return str(way)
    raise LinkError("; ".join(said) or "no other measure is available")


def _try_stub(link: Link, steps: list[RecoveryStep]) -> None:
    """Access the flash by the stub flasher, and by the ROM if the stub cannot be started."""

    def ask(*, stub: bool) -> str:
        with link.session.use("flash id", stub=stub, flash=True) as esp:
            if esp.secure_download_mode:
                return "secure download mode: the flash cannot be accessed"
            number = int(esp.flash_id(cache=False))
            if number in (0, 0xFFFFFF):
                raise OperationError(f"the flash does not answer: its id reads {number:#08x}")
            return f"the flash answers: id {number:#08x}"

    if link.board.uploads_slowly:
        _skip(steps, "stub", "loading it takes long on this board")
    elif _step(steps, "stub", lambda: ask(stub=True)):
        _skip(steps, "ROM without stub", "the stub works")
        return
    _step(steps, "ROM without stub", lambda: ask(stub=False))


def _boot(link: Link, steps: list[RecoveryStep], wait: float) -> FirmwareRun:
    begun = time.monotonic()
    run = run_firmware(link, wait)
    outcome: Outcome = "worked" if run.state == "running" else "failed"
    detail = run.crash or f"the app is {run.state}"
    steps.append(RecoveryStep("boot", outcome, detail, time.monotonic() - begun))
    return run


def _erase(link: Link) -> str:
    slot = tables.app_slot(link)
    writing.erase(link, slot.offset, slot.size)
    return f"{slot.name}: {slot.size:#x} bytes at {slot.offset:#x}"


def _step(steps: list[RecoveryStep], name: str, measure: Callable[[], object]) -> bool:
    """Take a measure and record its outcome."""
    begun = time.monotonic()
    try:
        said = measure()
    except WrongChipError:
        raise  # the chip answers: there is nothing to recover or erase
    except (LinkError, OperationError, BackendError) as error:
        steps.append(RecoveryStep(name, "failed", error.message, time.monotonic() - begun))
        return False
    steps.append(RecoveryStep(name, "worked", str(said or "its loader answers"), time.monotonic() - begun))
    return True


def _skip(steps: list[RecoveryStep], name: str, why: str) -> None:
    steps.append(RecoveryStep(name, "skipped", why, 0.0))
