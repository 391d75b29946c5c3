"""The test firmware's app for simulated chips, which run no machine code: the same commands, the same words.

`test_firmware.py` holds it against the real program in ``build/``; what panics print was recorded from that.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from weakref import WeakKeyDictionary

from nvs_reader import nvs_lines

from pytest_esp import SimApp
from pytest_esp.sim.chip import SimChip
from pytest_esp.wire.loop import Timer, call_later

HERE = Path(__file__).parent
VERSION = "1.0.0"

_XTENSA = ("esp32", "esp32s2", "esp32s3")
_FOREVER = -1
_LONGEST_LINE = 255
_FLOOD_LINE = 64
_LOOP_PERIOD = 0.1  # seconds from one boot to the next while it crashes at every boot
_CASES = "app/cases.c"

Steps = Generator[None, str, None]
"""What a running program waits for: each ``yield`` is a line from the host."""


@dataclass
class _Retained:
    """What RTC memory holds over a restart by software."""

    crashes_left: int = 0
    stored: bool = False


_retained: WeakKeyDictionary[SimChip, _Retained] = WeakKeyDictionary()


class _RestartedError(Exception):
    """This run of the app is over."""


class _ConcludedError(Exception):
    """The case has failed, or was ignored."""

    def __init__(self, result: str, at: str) -> None:
        super().__init__(result)
        self.result = result
        self.line = _line_of(at)


@dataclass(frozen=True)
class _Case:
    name: str
    tags: str
    stages: dict[str, Callable[[TestFirmware], Steps]]

    @property
    def line(self) -> int:
        return _line_of(f'("{self.name}"')


class TestFirmware(SimApp):
    """Plays the test firmware (see README.md beside this file)."""

    __test__ = False  # pytest: it is none

    def start(self) -> None:
        """Print the banner; crash if ``loop`` said so, else listen."""
        self._line = bytearray()
        self._after_return = False
        self._timer: Timer | None = None
        self._memory = _retained.pop(self._chip, None) or _Retained()
        self._tests = self._failures = self._ignored = 0
        slot = self.boot.slot.name if self.boot is not None and self.boot.slot is not None else "ram"
        self._print(f"pytest-esp test firmware {VERSION} on {self._chip.chip}, slot {slot}\n")
        self._program = self._console()
        if self._memory.crashes_left:
            self._memory.crashes_left -= self._memory.crashes_left != _FOREVER
            self._timer = call_later(_LOOP_PERIOD, self._crash_again)
            return
        self._print("ready\n\n\nPress ENTER to see the list of tests.\n")
        next(self._program)

    def receive(self, data: bytes) -> None:
        """Collect lines, and obey each."""
        if self._timer is not None:
            return
        with suppress(_RestartedError):
            for byte in data:
                self._take(byte)

    def stop(self) -> None:
        """Cancel the crash that is to come."""
        if self._timer is not None:
            self._timer.cancel()

    @property
    def _chip(self) -> SimChip:
        """The chip that plays this app: an app is given its methods."""
        return cast(SimChip, getattr(self.restart, "__self__"))  # noqa: B009

    def _take(self, byte: int) -> None:
        after_return, self._after_return = self._after_return, byte == ord("\r")
        if byte == ord("\r") or (byte == ord("\n") and not after_return):
            line, self._line = self._line.decode("latin-1"), bytearray()
            self._program.send(line)
        elif byte in (0x08, 0x7F):
            del self._line[-1:]
        elif byte != ord("\n") and len(self._line) < _LONGEST_LINE:
            self._line.append(byte)

    def _print(self, text: str) -> None:
        self.send(text.replace("\n", "\r\n").encode("latin-1"))

    # -- commands

    def _console(self) -> Steps:
        while True:
            line = yield
            command, _, rest = line.partition(" ")
            if line.startswith("echo "):
                self._print(rest + "\n")
            elif line == "crash":
                self._panic("crash")
            elif line == "abort":
                self._panic("abort")
            elif line.startswith("flood "):
                self.send(flood(_number(rest)))
            elif line == "reboot":
                self._restart()
            elif line == "hang":
                self._print("hanging\n")
                yield from self._hang()
            elif command == "loop":
                self._memory.crashes_left = _number(rest) if line != "loop" else _FOREVER
                self._panic("crash")
            elif line == "mac":
                self._print(self._chip.mac + "\n")
            elif command == "nvs":
                self._print("\n".join(nvs_lines(self._chip.flash.read, rest)) + "\n")
            else:
                yield from self._select(line)

    def _panic(self, how: str) -> None:
        core = "esp32" if self._chip.chip in _XTENSA else "esp32c3"
        self._print(recorded_panic(core, how))
        self._restart()

    def _restart(self) -> None:
        _retained[self._chip] = self._memory
        self.restart("RTC_SW_CPU_RST")
        raise _RestartedError

    def _crash_again(self) -> None:
        with self._chip.wire.lock:
            if self._timer is not None:
                with suppress(_RestartedError):
                    self._panic("crash")

    def _hang(self) -> Steps:
        while True:
            yield

    # -- the test menu

    def _select(self, line: str) -> Steps:
        self._print(line + "\n")
        if not line:
            self._print_menu()
            return
        self._tests = self._failures = self._ignored = 0
        yield from self._run_selected(line)
        self._print(
            f"\n-----------------------\n{self._tests} Tests {self._failures} Failures {self._ignored} Ignored \n"
            f"{'FAIL' if self._failures else 'OK'}\nEnter next test, or 'enter' to see menu\n"
        )

    def _print_menu(self) -> None:
        self._print("\n\nHere's the test menu, pick your combo:\n")
        for number, case in enumerate(CASES, 1):
            self._print(f'({number})\t"{case.name}" {case.tags}\n')
            if len(case.stages) > 1:
                self._print_stages(case)
        self._print("\nEnter test for running.\n")

    def _print_stages(self, case: _Case) -> None:
        for number, name in enumerate(case.stages, 1):
            self._print(f'\t({number})\t"{name}"\n')

    def _run_selected(self, selection: str) -> Steps:
        inverted = selection.startswith("!")
        rest = selection[inverted:]
        if rest.startswith("["):
            self._print(f"Running tests {'NOT ' if inverted else ''}matching '{rest}'...\n")
        if rest.startswith(("*", "[", '"')):
            for case in CASES:
                if _selects(rest, inverted, case):
                    yield from self._run_case(case)
        elif 1 <= (number := _number(rest)) <= len(CASES):
            yield from self._run_case(CASES[number - 1])
            self._print("Test ran in 0ms\n")

    def _run_case(self, case: _Case) -> Steps:
        self._print(f"Running {case.name}...\n")
        stages = list(case.stages.values())
        if len(stages) == 1:
            yield from self._run_stage(case, stages[0])
            return
        line = ""
        while not line:
            self._print(case.name + "\n")
            self._print_stages(case)
            line = yield
            self._print(line + "\n")
        choice = _number(line)
        if 1 <= choice <= len(stages):
            self._print(f"Running stage {choice}...\n")
            yield from self._run_stage(case, stages[choice - 1])
        else:
            self._print(f"Invalid selection, your should input number 1-{len(stages)}\n")

    def _run_stage(self, case: _Case, stage: Callable[[TestFirmware], Steps]) -> Steps:
        self._tests += 1
        try:
            yield from stage(self)
        except _ConcludedError as end:
            self._failures += end.result.startswith("FAIL")
            self._ignored += end.result.startswith("IGNORE")
            self._print(f"{_CASES}:{end.line}:{case.name}:{end.result}\n")
        else:
            self._print(f"{_CASES}:{case.line}:{case.name}:PASS\n")

    def _passes(self) -> Steps:
        yield from ()

    def _one_is_two(self) -> Steps:
        yield from ()
        raise _ConcludedError("FAIL: Expected 1 Was 2", "TEST_ASSERT_EQUAL(1, two)")

    def _not_now(self) -> Steps:
        yield from ()
        raise _ConcludedError("IGNORE: not now", "TEST_IGNORE_MESSAGE")

    def _crashes(self) -> Steps:
        yield from ()
        self._panic("case")

    def _store_and_restart(self) -> Steps:
        yield from ()
        self._memory.stored = True
        self._restart()

    def _find_what_was_stored(self) -> Steps:
        yield from ()
        found, self._memory.stored = self._memory.stored, False
        if not found:
            raise _ConcludedError("FAIL: Expected 1 Was 0", "found == STORED")

    def _speak_first(self) -> Steps:
        self._print("Send signal: [first is up]!\n")
        yield from self._wait_for_signal("second has answered")

    def _answer(self) -> Steps:
        yield from self._wait_for_signal("first is up")
        self._print("Send signal: [second has answered]!\n")

    def _wait_for_signal(self, name: str) -> Steps:
        self._print(f'Waiting for signal: [{name}]!\nPlease press "Enter" key once any board send this signal.\n')
        line = yield
        self._print(line + "\n")


def _case(name: str, tags: str, **stages: Callable[[TestFirmware], Steps]) -> _Case:
    return _Case(name, tags, stages)


CASES = (
    _case("addition holds", "[math]", addition_holds=TestFirmware._passes),
    _case("memory keeps a pattern", "[memory]", memory_keeps_a_pattern=TestFirmware._passes),
    _case("one is two", "[math][wrong]", one_is_two=TestFirmware._one_is_two),
    _case("case is ignored", "[memory]", not_now=TestFirmware._not_now),
    _case("case crashes", "[fatal][timeout=10]", crashes=TestFirmware._crashes),
    _case("case hangs", "[fatal][timeout=5]", hangs=TestFirmware._hang),
    _case(
        "memory survives a restart",
        "[restart][multi_stage]",
        store_and_restart=TestFirmware._store_and_restart,
        find_what_was_stored=TestFirmware._find_what_was_stored,
    ),
    _case(
        "two boards talk",
        "[signals][timeout=30][multi_device]",
        speak_first=TestFirmware._speak_first,
        answer=TestFirmware._answer,
    ),
)


def flood(size: int) -> bytes:
    """Return what ``flood SIZE`` sends: numbered lines of 64 bytes, the last one cut so that it is *size* bytes."""
    lines: list[bytes] = []
    for number, at in enumerate(range(0, size, _FLOOD_LINE)):
        length = min(size - at, _FLOOD_LINE)
        lines.append(f"{number % 10**8:08d} ".ljust(_FLOOD_LINE, "-").encode()[: max(length - 2, 0)])
        lines.append(b"\r\n"[-length:])
    return b"".join(lines)


def recorded_panic(chip: str, how: str) -> str:
    """Return what the real program printed when it panicked, as ``record.py`` recorded it."""
    return (HERE / "panics" / f"{chip}-{how}.txt").read_text(encoding="utf-8")


def _number(text: str) -> int:
    digits = text[: len(text) - len(text.lstrip("0123456789"))]
    return int(digits or "0")


def _selects(selection: str, inverted: bool, case: _Case) -> bool:
    if selection.startswith("["):
        return (selection in case.tags) != inverted
    name, quote, rest = selection[1:].rpartition('"')
    return selection.startswith("*") or case.name == (name if quote else rest)


def _line_of(text: str) -> int:
    """Return the number of the first line of the cases' source that holds *text*."""
    lines = (HERE / _CASES).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)
