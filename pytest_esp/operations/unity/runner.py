"""Runs the cases of one board's app in turn, whatever they do to it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from pytest_esp.link.console import ConsoleError, CrashError
from pytest_esp.link.crash import Crash
from pytest_esp.link.detector import CrashDetector
from pytest_esp.link.panic import decode
from pytest_esp.operations.unity.dialogue import Dialogue
from pytest_esp.operations.unity.menu import Case, Part
from pytest_esp.operations.unity.result import CaseResult, Verdict, unexpected_resets, verdict


@dataclass
class Run:
    """A case in progress.

    Attributes:
        mark: where its log begins.
        begun: start time by `time.monotonic`.
    """

    dialogue: Dialogue
    case: Case
    mark: int = field(init=False)
    begun: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.mark = self.dialogue.console.mark()

    @property
    def log(self) -> str:
        """The app's output since the case began."""
        return self.dialogue.console.text_since(self.mark)

    def ended(self, end: Verdict, crash: Crash | None = None, name: str | None = None) -> CaseResult:
        """Return the result; *name* is that of a role, if any."""
        where = next((frame for frame in crash.backtrace if frame.file), None) if crash is not None else None
        return CaseResult(
            name=name or self.case.name,
            status=end.status,
            message=end.message,
            file=where.file if where else end.file,
            line=where.line if where else end.line,
            seconds=round(time.monotonic() - self.begun, 3),
            log=self.log.replace("\r\n", "\n"),
            crash=crash,
            board=self.dialogue.board,
            tags=self.case.tags,
        )

    def crashed(self, error: CrashError, where: str = "", name: str | None = None) -> CaseResult:
        """Return the result of a crashed case."""
        return self.ended(Verdict("crashed", error.crash.describe().partition("\n")[0] + where), error.crash, name)


def run_on_board(dialogue: Dialogue, case: Case, timeout: float) -> CaseResult:
    """Run a case of one board.

    Args:
        dialogue: with the board's app.
        case: of its menu.
        timeout: in seconds, for a case without its own; each stage has it.

    Raises:
        OperationError: if the app does not offer its menu after a reset.
        PortError: if the connection to the board is lost.
    """
    dialogue.make_ready()
    going = Run(dialogue, case)
    seconds = case.timeout or timeout
    result = _run_stages(going, seconds) if case.parts else _run_whole(going, seconds)
    await_restart(going)
    return result


def await_restart(going: Run) -> None:
    """Wait for the restart that ESP-IDF's runner makes after some cases; after others it prints a last line instead."""
    if going.case.restarts and going.dialogue.is_ready and "Test ran in" not in going.log:
        going.dialogue.await_restart()


def _run_whole(going: Run, timeout: float) -> CaseResult:
    """Run a case that is one function."""
    case = going.case
    try:
        if not going.dialogue.start(case):
            return going.ended(Verdict("timeout", "the app did not start it"))
        if going.dialogue.finish(timeout, ignore_crashes=bool(case.resets)):
            return going.ended(_with_resets(going, verdict(case, going.log)))
    except CrashError as error:
        return going.crashed(error)
    except ConsoleError:
        return _late(going, timeout, going.log)
    if case.resets:
        return going.ended(_with_resets(going, Verdict("passed")))
    return going.ended(Verdict("crashed", "the chip restarted during the case"))


def _run_stages(going: Run, timeout: float) -> CaseResult:
    """Run a multi-stage case: every stage but the last ends with a restart."""
    case, dialogue = going.case, going.dialogue
    for stage in case.parts:
        is_last = stage == case.parts[-1]
        where = f" in stage {stage.index} ({stage.name})"
        mark = dialogue.console.mark()
        try:
            if not dialogue.start(case):
                return going.ended(Verdict("timeout", f"the app did not start it{where}"))
            dialogue.choose(case, stage)
            has_ended = dialogue.finish(timeout, ignore_crashes=not is_last)
        except CrashError as error:
            return going.crashed(error, where)
        except ConsoleError:
            return _late(going, timeout, dialogue.console.text_since(mark), where)
        if has_ended or is_last:
            return going.ended(_last_word(going, stage, has_ended, is_last))
    raise AssertionError("a multi-stage case has stages")


def _last_word(going: Run, stage: Part, has_ended: bool, is_last: bool) -> Verdict:
    """Return the result of a multi-stage case whose *stage* was its last, or should not have been."""
    said = verdict(going.case, going.log)
    if not has_ended:
        return Verdict("crashed", f"the chip restarted during its last stage, {stage.name}")
    if is_last:
        return _with_resets(going, said)
    if said.status == "passed":
        return Verdict("failed", f"stage {stage.index} ({stage.name}) ended without a restart", said.file, said.line)
    return said


def _with_resets(going: Run, end: Verdict) -> Verdict:
    """Make a case fail if it did not cause the resets that it must cause."""
    if end.status != "passed" or not going.case.resets:
        return end
    wrong = unexpected_resets(going.case, going.log)
    return Verdict("failed", wrong, end.file, end.line) if wrong else end


def _late(going: Run, timeout: float, log: str, where: str = "") -> CaseResult:
    """Return the result of a case that timed out; the last crash in *log*, if any, is the reason."""
    found = CrashDetector(boot_limit=None)
    found.feed(log.encode())
    found.quiet()
    crash = None
    while (text := found.take()) is not None:
        crash = decode(text.text, going.dialogue.console.elf)
    if crash is not None:
        reason = crash.describe().partition("\n")[0]
        return going.ended(Verdict("crashed", f"the app did not come back{where} after {reason}"), crash)
    return going.ended(Verdict("timeout", f"timed out after {timeout:g} s{where}"))
