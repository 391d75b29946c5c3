"""What stands in for the app on a simulated chip, which runs no machine code."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_esp.errors import BackendError

if TYPE_CHECKING:
    from pytest_esp.sim.boot import BootResult


class SimApp:
    """Base of the Python classes that play an app. Subclass it and name it in boards.toml (``app = "module:Class"``).

    Args:
        send: sends bytes on the UART.
        restart: restarts the chip, as ``esp_restart`` does; takes the reset reason that the ROM prints.
        boot: how the boot went (the app descriptor is ``boot.app``); None for a program that was loaded into RAM.
    """

    def __init__(self, send: Callable[[bytes], None], restart: Callable[..., None], boot: BootResult | None) -> None:
        self.send = send
        self.restart = restart
        self.boot = boot

    def start(self) -> None:
        """Run ``app_main``. It must return at once; use `pytest_esp.call_later` for what comes later."""

    def receive(self, data: bytes) -> None:
        """Take what a host sends."""

    def stop(self) -> None:
        """The chip was reset or lost its power: cancel what is under way."""


class SilentApp(SimApp):
    """The default: says what it is, and nothing else."""

    def start(self) -> None:
        """Say that no machine code runs."""
        self.send(b"[sim] the app's machine code is not run; give the chip an app class, or use QEMU\r\n")


class HelloApp(SimApp):
    """Prints what ESP-IDF's hello_world begins with."""

    def start(self) -> None:
        """Print the greeting."""
        self.send(b"Hello world!\r\n")


class EchoApp(SimApp):
    """Sends back what it gets, after the line ``ready``."""

    def start(self) -> None:
        """Say that it listens."""
        self.send(b"ready\r\n")

    def receive(self, data: bytes) -> None:
        """Send it back."""
        self.send(data)


class CrashApp(SimApp):
    """Panics at the first byte it gets, and restarts."""

    def start(self) -> None:
        """Say that it waits."""
        self.send(b"ready to crash\r\n")

    def receive(self, data: bytes) -> None:
        """Panic as a store to address 0 does on a RISC-V chip."""
        self.send(
            b"Guru Meditation Error: Core  0 panic'ed (Store access fault). Exception was unhandled.\r\n"
            b"Core  0 register dump:\r\n"
            b"MEPC    : 0x42007a1e  RA      : 0x42007a1e  SP      : 0x3fc91f60  GP      : 0x3fc8b400\r\n"
            b"Rebooting...\r\n"
        )
        self.restart("RTC_SW_CPU_RST")


_BUILT_IN: dict[str, type[SimApp]] = {"silent": SilentApp, "hello": HelloApp, "echo": EchoApp, "crash": CrashApp}


def load_app(name: str) -> type[SimApp]:
    """Return the class that *name* means: ``module:Class``, or one of the built-in ``silent hello echo crash``.

    Raises:
        BackendError: if there is none.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    module, _, attribute = name.partition(":")
    hint = f"expected module:Class, with the module on sys.path, or one of {', '.join(_BUILT_IN)}"
    try:
        found: object = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise BackendError(f"cannot load the app {name!r}: {error}", hint=hint) from error
    if not (isinstance(found, type) and issubclass(found, SimApp)):
        raise BackendError(f"{name!r} is not a subclass of pytest_esp.SimApp", hint=hint)
    return found
