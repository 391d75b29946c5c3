"""The programs that esptool's tests load into a simulated chip, which runs no machine code."""

from __future__ import annotations

from pytest_esp import SimApp
from pytest_esp.wire.loop import Timer, call_later

_PERIOD = 0.2  # seconds


class RamHelloWorld(SimApp):
    """Stands in for esptool's ``images/ram_helloworld``: greets again and again. Says nothing if booted from flash."""

    _timer: Timer | None = None

    def start(self) -> None:
        """Greet, if this is a program in RAM."""
        if self.boot is None:
            self.send(b"Hello world!\n")
            self._timer = call_later(_PERIOD, self.start)

    def stop(self) -> None:
        """Fall silent."""
        if self._timer is not None:
            self._timer.cancel()
