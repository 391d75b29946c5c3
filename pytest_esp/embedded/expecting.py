"""pexpect's way to wait for output, on the console of a board."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Any, cast

from pytest_esp.errors import PortError
from pytest_esp.link.console import Console, ConsoleError, CrashError
from pytest_esp.link.link import Link

_FOREVER = 1e6  # seconds


def pexpect() -> Any:
    """Return the module pexpect, or what stands in for it."""
    return importlib.import_module("pexpect")


class Expecter:
    """Waits for output and keeps what came before and after, as an object of pexpect does. All text is bytes.

    Args:
        link: to the board.

    Attributes:
        before: the output before the last match, or all output that was not matched yet after a timeout.
        after: the text of the last match, or what ended the wait.
        match: the match; for exact strings, the string; or what ended the wait.
        timeout: seconds to wait if a call gives none.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self.before = b""
        self.after: Any = b""
        self.match: Any = None
        self.timeout: float = 30

    @property
    def _console(self) -> Console:
        return self._link.console

    @property
    def buffer(self) -> bytes:
        """The output that was not matched yet."""
        return self._console.bytes_since(self._console.position)

    @property
    def buffer_debug_str(self) -> str:
        """The output that was not matched yet, as text."""
        return self.buffer.decode("utf-8", "replace")

    def expect(self, pattern: Any, timeout: float | None = -1, **_: Any) -> int:
        """Wait for a regular expression, or the first of several, and return its number; ``.`` matches line ends.

        Raises:
            pexpect.TIMEOUT: if none matches in time, and it is not in the list.
            PortError: if the board is gone, and pexpect.EOF is not in the list.
        """
        return self._wait(_several(pattern), timeout, exact=False)

    def expect_exact(self, pattern: Any, timeout: float | None = -1, **_: Any) -> int:
        """Wait for a string, or the first of several, and return its number; see `expect`."""
        return self._wait(_several(pattern), timeout, exact=True)

    def _wait(self, patterns: Sequence[Any], timeout: float | None, *, exact: bool) -> int:
        timeout = _FOREVER if timeout is None else self.timeout if timeout < 0 else timeout
        wanted = [(number, _compiled(one, exact)) for number, one in enumerate(patterns) if not _is_ending(one)]
        console, begin = self._console, self._console.position
        try:
            if not wanted:
                console.listen(timeout, ignore_crashes=True)
                raise ConsoleError(f"waited for {timeout:g} s")
            found = console.expect([one for _, one in wanted], timeout, ignore_crashes=True)
        except PortError:
            return self._end("EOF", patterns, None)
        except ConsoleError as error:
            crash = self._crash([one for _, one in wanted])
            return self._end("TIMEOUT", patterns, f"{crash}{error}")
        number, regex = wanted[found.index]
        self._keep(begin, regex, exact=exact)
        return number

    def _keep(self, begin: int, regex: re.Pattern[bytes], *, exact: bool) -> None:
        """Keep the match, whose positions are those in the output since the match before."""
        output = self._console.bytes_since(begin)
        match = regex.search(output, 0, self._console.position - begin) or regex.search(output)
        assert match is not None
        self._console.rewind(begin + match.end())
        self.before, self.after = output[: match.start()], match.group()
        self.match = match.group() if exact else match

    def _end(self, name: str, patterns: Sequence[Any], message: str | None) -> int:
        """End a wait without a match; return the number of that end in *patterns*, or raise it."""
        ending = getattr(pexpect(), name)
        self.before, self.after = self.buffer, ending
        for number, pattern in enumerate(patterns):
            if pattern is ending:
                self.match = ending
                return number
        self.match = None
        if message is None:
            raise  # noqa: PLE0704 - the port's error
        raise ending(message) from None

    def _crash(self, wanted: list[re.Pattern[bytes]]) -> str:
        """Return the description of a crash of the app that may be why nothing matched; empty if there was none."""
        position = self._console.position
        try:
            if wanted:
                self._console.expect([*wanted], 0)
        except CrashError as error:
            return f"{error.crash.describe()}\n"
        except ConsoleError:
            pass
        finally:
            self._console.rewind(position)
        return ""


def _several(pattern: Any) -> list[Any]:
    return [*cast("Sequence[Any]", pattern)] if isinstance(pattern, (list, tuple)) else [pattern]


def _is_ending(pattern: Any) -> bool:
    return isinstance(pattern, type)


def _compiled(pattern: Any, exact: bool) -> re.Pattern[bytes]:
    if isinstance(pattern, re.Pattern):
        compiled = cast("re.Pattern[Any]", pattern)
        if isinstance(compiled.pattern, bytes):
            return compiled
        return re.compile(compiled.pattern.encode(), compiled.flags & ~re.UNICODE)
    text: bytes = pattern.encode() if isinstance(pattern, str) else pattern
    return re.compile(re.escape(text)) if exact else re.compile(text, re.DOTALL)
