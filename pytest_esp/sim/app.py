"""Python classes that replace the app on a simulated chip, which does not run machine code."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from pytest_esp.errors import BackendError
from pytest_esp.wire.wire import ROM_BAUDRATE

if TYPE_CHECKING:
    from pytest_esp.sim.boot import BootResult


class SimApp:
    """Base class of simulated apps. Subclass it and set ``app = "module:Class"`` in boards.toml.

    `console_baud` is the baud rate of the console, as the app and its bootloader are built; a board's may override it.

    Args:
        send: sends bytes to the UART.
        restart: restarts the chip, like ``esp_restart``; takes the reset reason that the ROM prints.
        boot: the result of the boot (the app descriptor is ``boot.app``); None for a program that was loaded into RAM.
    """

    console_baud: ClassVar[int] = ROM_BAUDRATE

    def __init__(self, send: Callable[[bytes], None], restart: Callable[..., None], boot: BootResult | None) -> None:
        self.send = send
        self.restart = restart
        self.boot = boot

    def start(self) -> None:
        """Run ``app_main``. It must return at once; use `pytest_esp.call_later` for later actions."""

    def receive(self, data: bytes) -> None:
        """Receive *data* from a host."""

    def stop(self) -> None:
        """Cancel pending actions; called when the chip is reset or loses its power."""


class SilentApp(SimApp):
    """The default app: prints a note, and nothing else."""

    def start(self) -> None:
        """Print that the machine code is not run."""
        if self.boot is not None and self.boot.is_foreign:
            self.send(
                b"[sim] the bootloader is not ESP-IDF's, and its machine code is not run: what it does is unknown; "
                b"give the chip an app class, or use QEMU\r\n"
            )
            return
        self.send(b"[sim] the app's machine code is not run; give the chip an app class, or use QEMU\r\n")


class HelloApp(SimApp):
    """Prints the first line of ESP-IDF's hello_world."""

    def start(self) -> None:
        """Print the greeting."""
        self.send(b"Hello world!\r\n")


class EchoApp(SimApp):
    """Prints ``ready``, and then echoes its input."""

    def start(self) -> None:
        """Print ``ready``."""
        self.send(b"ready\r\n")

    def receive(self, data: bytes) -> None:
        """Send *data* back."""
        self.send(data)


class CrashApp(SimApp):
    """Panics at the first byte of input, and restarts."""

    def start(self) -> None:
        """Print ``ready to crash``."""
        self.send(b"ready to crash\r\n")

    def receive(self, data: bytes) -> None:
        """Print the panic of a store to address 0 on a RISC-V chip, and restart."""
        self.send(
            b"Guru Meditation Error: Core  0 panic'ed (Store access fault). Exception was unhandled.\r\n"
            b"Core  0 register dump:\r\n"
            b"MEPC    : 0x42007a1e  RA      : 0x42007a1e  SP      : 0x3fc91f60  GP      : 0x3fc8b400\r\n"
            b"Rebooting...\r\n"
        )
        self.restart("RTC_SW_CPU_RST")


_BUILT_IN: dict[str, type[SimApp]] = {"silent": SilentApp, "hello": HelloApp, "echo": EchoApp, "crash": CrashApp}


def load_app(name: str) -> type[SimApp]:
    """Return the class for *name*: ``module:Class``, or one of the built-in ``silent hello echo crash``.

    Raises:
        BackendError: if it cannot be loaded, or is not a `SimApp`.
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
