"""Driver for Nordic Semiconductor's Power Profiler Kit II, using the library ppk2-api (the extra "ppk2")."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import serial

from pytest_esp.boards.power_meter import Current, PowerMeter
from pytest_esp.errors import BackendError, PortError

_POLL = 0.01  # seconds
_SETTLE = 0.1  # seconds after the mode was set


class Ppk2(PowerMeter):
    """A PPK2, as an ampere meter in the supply line, or as the supply (``mode = "source"``).

    As the supply it switches the board on, and leaves it on. It takes 100,000 samples per second. The library filters
    short peaks.
    """

    _device: Any = None

    def open(self) -> None:
        """Open the meter, read its calibration, and set its mode and voltage.

        Raises:
            PortError: if its port cannot be opened.
            BackendError: if the library is not installed, or no PPK2 responds.
        """
        try:
            from ppk2_api.ppk2_api import PPK2_API  # type: ignore[reportMissingTypeStubs]
        except ImportError as error:
            raise BackendError(
                "the PPK2 library is not installed", board=self.board, hint="pip install pytest-esp[ppk2]"
            ) from error
        if self.spec.port is None:
            raise BackendError(
                "the PPK2 power meter needs a port",
                board=self.board,
                hint='power_meter = { driver = "ppk2", port = "/dev/serial/by-id/..." }',
            )
        try:
            device: Any = PPK2_API(self.spec.port, timeout=1, exclusive=True)
        except (serial.SerialException, OSError, ValueError) as error:
            raise PortError(
                f"cannot open the power meter's port {self.spec.port}: {error}",
                board=self.board,
                hint="check that the meter is plugged in and not used by another program",
            ) from error
        self._device = device
        device.stop_measuring()  # it may still be measuring for an earlier user
        device.ser.reset_input_buffer()
        if not self._has_calibration(device):
            self.close()
            raise BackendError(
                f"no response from a PPK2 at {self.spec.port}",
                board=self.board,
                hint="a PPK2 has two ports; use the other one",
            )
        if self.spec.mode == "source":
            device.use_source_meter()
        else:
            device.use_ampere_meter()
        device.set_source_voltage(self.spec.voltage_mv)
        device.toggle_DUT_power("ON")
        time.sleep(_SETTLE)

    @staticmethod
    def _has_calibration(device: Any) -> bool:
        try:
            return bool(device.get_modifiers()) and device.modifiers["Calibrated"] is not None
        except (UnicodeDecodeError, serial.SerialException, OSError):
            return False

    def close(self) -> None:
        """Stop measuring and close the port."""
        device, self._device = self._device, None
        if device is not None:
            device.stop_measuring()
            device.ser.close()

    def measure(self, seconds: float, tick: Callable[[], None] | None = None) -> Current:
        """Return the current over the next *seconds*; *tick* is called regularly.

        Raises:
            PortError: if the meter was disconnected, or does not send samples.
        """
        self._device.ser.reset_input_buffer()
        begun = time.monotonic()
        self._device.start_measuring()
        try:
            microamperes = list(self._samples(begun + seconds, tick))
        except (serial.SerialException, OSError) as error:
            raise PortError(f"the power meter failed: {error}", board=self.board) from error
        finally:
            self._device.stop_measuring()
        if not microamperes:
            raise PortError("no samples from the power meter", board=self.board, hint="unplug it and plug it in again")
        return Current([value / 1e6 for value in microamperes], time.monotonic() - begun)

    def _samples(self, end: float, tick: Callable[[], None] | None) -> Iterator[float]:
        while time.monotonic() < end:
            time.sleep(_POLL)
            if tick is not None:
                tick()
            data = self._device.get_data()
            if data:
                values, _ = self._device.get_samples(data)
                yield from values
