"""The kinds of ports that a simulated chip has: a USB-UART bridge, USB-Serial-JTAG or USB-OTG."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal, Protocol

from pytest_esp.errors import BackendError
from pytest_esp.sim.model import ChipModel
from pytest_esp.wire.reset import AutoResetCircuit, UsbOtg, UsbSerialJtag

UsbKind = Literal["bridge", "serial-jtag", "otg"]
"""``bridge``: the chip's UART behind a CP210x, CH340 or the like, with the auto-reset circuit of a devkit."""

ENUMERATION = 0.3
"""Seconds for which a chip's own USB port is gone. esptool waits 0.5 s before it opens a port again."""
FIFO_SIZE = 64
"""Bytes that a chip's own USB port keeps while no host reads them: one packet of USB at full speed."""

# A system reset also resets the chip's USB device; a reset by RTS or by software does not (esptool's documentation:
# "watchdog-reset ... may cause the port to re-enumerate").
_SYSTEM_RESETS = ("RTCWDT_RTC_RST", "BROWNOUT")


class ControlLogic(Protocol):
    """What resets the chip by the host's control lines."""

    def set_lines(self, dtr: bool, rts: bool) -> None:
        """Handle a change of the host's lines (True is asserted)."""
        ...

    def cancel(self) -> None:
        """Cancel a pending start."""
        ...


class UsbPort:
    """The port of *model*.

    Args:
        model: the chip.
        kind: the kind of its port.

    Raises:
        BackendError: if the chip has no such port.
    """

    def __init__(self, model: ChipModel, kind: UsbKind) -> None:
        if kind == "serial-jtag" and not model.has_usb_serial_jtag:
            raise BackendError(
                f"the {model.name} has no USB-Serial-JTAG", hint="use an ESP32-C3, a newer chip, or --usb bridge"
            )
        if kind == "otg" and not model.has_usb_otg:
            raise BackendError(
                f"the {model.name} cannot be flashed over USB-OTG",
                hint="use an ESP32-S2, ESP32-S3 or ESP32-P4, or --usb bridge",
            )
        self.kind = kind
        self._model = model

    @property
    def is_uart(self) -> bool:
        """Whether the port is a UART, which has a baud rate and never vanishes by a reset."""
        return self.kind == "bridge"

    @property
    def carries_boot_log(self) -> bool:
        """Whether the boot log of ROM and bootloader is printed on this port; with USB-OTG it is on UART 0."""
        return self.kind != "otg"

    @property
    def fifo_size(self) -> int:
        """See `wire.Wire`."""
        return 0 if self.is_uart else FIFO_SIZE

    def logic(
        self,
        hold: Callable[[], None],
        reset: Callable[[bool], None],
        is_in_loader: Callable[[], bool],
        rise_time: float,
        lock: threading.RLock,
        *,
        is_strict: bool,
    ) -> ControlLogic:
        """Return what resets the chip by the control lines; see the classes for the arguments."""
        if self.kind == "serial-jtag":
            return UsbSerialJtag(hold, reset)
        if self.kind == "otg":
            return UsbOtg(reset, is_in_loader, rise_time, lock)
        return AutoResetCircuit(hold, reset, rise_time, lock, is_strict=is_strict)

    @property
    def line_reset_reason(self) -> str:
        """The reset reason that the ROM prints after a reset by the control lines."""
        if self.kind == "serial-jtag":
            return "USB_UART_CHIP_RESET" if self._model.chip in ("esp32c3", "esp32s3") else "USB_UART_HPSYS"
        return "RTC_SW_SYS_RST" if self.kind == "otg" else "POWERON"

    def vanishes(self, reason: str, *, software_ends: bool) -> bool:
        """Return whether the port is gone for a moment at a reset.

        Args:
            reason: the reset reason.
            software_ends: whether the software behind a USB-OTG port ends: an app, or the loader before an app.
        """
        return not self.is_uart and (reason in _SYSTEM_RESETS or (self.kind == "otg" and software_ends))
