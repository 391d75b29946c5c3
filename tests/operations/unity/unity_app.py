"""An app for simulated chips with a menu like that of ESP-IDF's runner, whose cases and troubles a test chooses.

The test firmware's own app (tests/firmware/app.py) has the cases of a sound program; here are those that no program
should have: lines lost or cut in two, restarts at the wrong time.
"""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import dataclass, field

from pytest_esp import SimApp

PANIC = (
    "Guru Meditation Error: Core  0 panic'ed (LoadProhibited). Exception was unhandled.\n\n"
    "Core  0 register dump:\n"
    "PC      : 0x400d5acc  PS      : 0x00060430  A0      : 0x800d5f4d  A1      : 0x3ffb4660\n\n"
    "Backtrace: 0x400d5ac9:0x3ffb4660 0x400d5f4a:0x3ffb4680\n\n"
    "ELF file SHA256: b43d1e6ea\n\nRebooting...\n"
)


class RestartedError(Exception):
    """This run of the app is over."""


@dataclass
class Program:
    """What the app does; a test changes it.

    Attributes:
        cases: by name, tags and bodies. A body is called with the app and may be a generator, whose ``yield`` waits
            for a line; what it returns is the result (``"FAIL: why"``), None is ``"PASS"``.
        prints: what is printed instead of the menu, one after the other, each in its pieces.
        lost_inputs: so many lines are not heard.
        heard: all lines that were.
        noise: printed in front of the line of a result, behind its first word.
    """

    cases: dict[str, tuple] = field(default_factory=dict)
    prints: list[list[str]] = field(default_factory=list)
    lost_inputs: int = 0
    heard: list[str] = field(default_factory=list)
    greeting: str = "\n\nPress ENTER to see the list of tests.\n"
    result_line: str = "./main/test_it.c:{line}:{name}:{result}\n"
    summary: str = "\n-----------------------\n{0} Tests {1} Failures {2} Ignored \n{3}\n"
    goodbye: str = "Enter next test, or 'enter' to see menu\n"
    restarts_after_leaks: bool = True


class UnityApp(SimApp):
    """Plays its `program`."""

    program = Program()

    def start(self):
        self._line = bytearray()
        self.say(self.program.greeting)
        self._steps = self._listen()
        next(self._steps)

    def receive(self, data):
        with contextlib.suppress(RestartedError):
            for byte in data:
                if byte != ord("\n"):
                    self._line.append(byte)
                    continue
                line, self._line = self._line.decode(), bytearray()
                if self.program.lost_inputs:
                    self.program.lost_inputs -= 1
                else:
                    self.program.heard.append(line)
                    self._steps.send(line)

    def say(self, text):
        self.send(text.replace("\n", "\r\n").encode())

    def reset(self, reason="RTC_SW_CPU_RST"):
        """Restart the chip."""
        self.restart(reason)
        raise RestartedError

    def panic(self):
        self.say(PANIC)
        self.reset()

    def _listen(self):
        while True:
            line = yield
            self.say(line + "\n")
            if not line:
                self._print_menu()
            else:
                yield from self._obey(int(line))

    def _print_menu(self):
        for piece in self.program.prints.pop(0) if self.program.prints else [menu_of(self.program.cases)]:
            self.say(piece)

    def _obey(self, number):
        counts = [0, 0, 0]
        if 1 <= number <= len(self.program.cases):
            name, (tags, *bodies) = list(self.program.cases.items())[number - 1]
            self.say(f"Running {name}...\n")
            body = bodies[0]
            if len(bodies) > 1:
                self.say(name + "\n" + parts_of(bodies))
                choice = yield
                self.say(choice + "\n")
                body = bodies[int(choice) - 1]
            result = yield from self._run(name, number, body)
            counts = [1, result.startswith("FAIL"), result.startswith("IGNORE")]
            if "[leaks" in tags and self.program.restarts_after_leaks:
                self._end(counts)
                self.reset()
            self.say("Test ran in 1ms\n")
        self._end(counts)

    def _run(self, name, number, body):
        result = body(self)
        if inspect.isgenerator(result):
            result = yield from result
        result = result or "PASS"
        self.say(self.program.result_line.format(name=name, result=result, line=10 * number))
        return result

    def _end(self, counts):
        tests, failures, ignored = counts
        self.say(self.program.summary.format(tests, int(failures), int(ignored), "FAIL" if failures else "OK"))
        self.say(self.program.goodbye)


def parts_of(bodies):
    return "".join(f'\t({number})\t"{body.__name__}"\n' for number, body in enumerate(bodies, 1))


def menu_of(cases):
    """Return the menu as ESP-IDF's runner prints it."""
    lines = ["\n\nHere's the test menu, pick your combo:\n"]
    for number, (name, (tags, *bodies)) in enumerate(cases.items(), 1):
        lines.append(f'({number})\t"{name}" {tags}\n')
        lines.append(parts_of(bodies) if len(bodies) > 1 else "")
    return "".join(lines) + "\nEnter test for running.\n"
