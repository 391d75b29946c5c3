"""Reads the chip's temperature sensor through its registers.

Source: for the formula, the chapters on the sensor in Espressif's technical reference manuals (T = 0.4386 * value -
27.88 * offset - 20.52); for enabling it, and its calibration in eFuses, esp_hal_ana_conv of ESP-IDF.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

from pytest_esp.errors import OperationError
from pytest_esp.link.link import Link
from pytest_esp.operations.diagnostics.memory import known_soc
from pytest_esp.operations.diagnostics.soc import Field, Register, Soc
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.operations.security import efuse

_PER_STEP, _ZERO = 0.4386, 20.52  # degrees Celsius
_SETTLE = 0.001  # seconds; the sensor needs 300 us
_READY_TIMEOUT = 0.5
_SAMPLES = 8
_MIN, _MAX, _ACCURACY = -10.0, 80.0, 1.0  # degrees Celsius, of the third of its five ranges
_DELTA = ("TEMP_CALIB", "TEMPERATURE_SENSOR")  # eFuse: sign and 8 bits, tenths of a degree

# Name endings of the fields that enable the sensor, in this order: its bus, its clock (the crystal), the sensor.
# Each chip has some of them.
_SWITCHES = (
    "APB_SARADC_CLK_EN", "PCR_SARADC_CLK_EN", "PCR_SARADC_REG_CLK_EN", "CK_EN_LP_TSENS",
    "TSENS_CLK_EN", "TSENS_CLKGATE_EN", "TSENS_CLK_SEL", "TSENS_POWER_UP_FORCE", "TSENS_POWER_UP", "TSENS_PU",
)  # fmt: skip
_FORCE = "SENS_TSENS_XPD_FORCE"  # ESP32-S2 and -S3: give control of its power to the field above


@dataclass(frozen=True)
class ThermalStatus:
    """The temperature of a chip in its loader.

    Attributes:
        celsius: of the die, mean of the samples.
        raw: raw values of the sensor.
        calibration: degrees subtracted according to eFuse; None if the chip is not calibrated.
        accuracy: in degrees, for a calibrated chip by Espressif's table; None for others.
        within_range: whether it is in the range of the sensor's setting after a reset.
        range_min, range_max: that range, in degrees Celsius; the setting is assumed, not read.
        source: reference for the registers.
    """

    chip_type: str
    celsius: float
    raw: tuple[int, ...]
    calibration: float | None
    accuracy: float | None
    within_range: bool
    range_min: float
    range_max: float
    source: str


@operation(Effect.READ, group="diagnostics")
def thermal_status(link: Link) -> ThermalStatus:
    """Read the chip's temperature with its own sensor; not supported on ESP32 and ESP8266, which have none.

    The chip is in its loader meanwhile, and cooler than while an app is working.

    Raises:
        OperationError: if the chip has no sensor, or the sensor returns no value (a virtual chip's).
    """
    with link.session.use("reading the temperature", stub=False) as esp:
        soc = known_soc(link, esp)
        register, value = _sensor(soc)
        with _switched_on(esp, soc):
            time.sleep(_SETTLE)
            raw = tuple(_samples(esp, register, value))
    if not any(raw):
        raise OperationError(
            "the temperature sensor returned no value",
            hint="use a real board: QEMU and simulated chips have the registers, but no sensor"
            if link.board.virtual
            else "reset the chip and try again; the sensor may be disabled by the supply's settings",
        )
    delta = _calibration(link)
    celsius = _PER_STEP * sum(raw) / len(raw) - _ZERO - (delta or 0.0)
    return ThermalStatus(
        chip_type=soc.chip,
        celsius=round(celsius, 2),
        raw=raw,
        calibration=delta,
        accuracy=None if delta is None else _ACCURACY,
        within_range=_MIN <= celsius <= _MAX,
        range_min=_MIN,
        range_max=_MAX,
        source=soc.source,
    )


def _sensor(soc: Soc) -> tuple[Register, Field]:
    """Return the register with the sensor's value, and its field."""
    for register in soc.registers:
        value = register.field("TSENS_OUT")
        if value is not None:
            return register, value
    if soc.chip == "esp32":
        raise OperationError(
            "the ESP32's sensor is not supported: it was removed from the data sheet, and ESP-IDF has no driver for it",
            hint="measure from outside; values of this sensor differ by tens of degrees from chip to chip",
        )
    raise OperationError(f"the {soc.chip} has no known temperature sensor", hint="measure from outside, or in the app")


@contextlib.contextmanager
def _switched_on(esp: Any, soc: Soc) -> Generator[None]:
    """Enable the sensor, and restore every register afterwards."""
    before: list[tuple[int, int]] = []
    try:
        for ending in (*_SWITCHES, _FORCE):
            for register in soc.registers:
                field = register.field(ending)
                if field is not None:
                    value = int(esp.read_reg(register.address))
                    before.append((register.address, value))
                    esp.write_reg(register.address, value & ~field.mask | 1 << field.lsb)
        yield
    finally:
        for address, value in reversed(before):
            esp.write_reg(address, value)


def _samples(esp: Any, register: Register, value: Field) -> Iterator[int]:
    for _ in range(_SAMPLES):
        raw = _sample(esp, register, value)
        if raw is None:
            return  # it would not answer the next time either
        yield raw


def _sample(esp: Any, register: Register, value: Field) -> int | None:
    """Return one value, None if there is none; on an ESP32-S2 or -S3 request it, and wait until it is ready."""
    ask, ready = register.field("TSENS_DUMP_OUT"), register.field("TSENS_READY")
    if ask is None or ready is None:
        return value.of(int(esp.read_reg(register.address)))
    state = int(esp.read_reg(register.address))
    esp.write_reg(register.address, state | ask.mask)
    deadline = time.monotonic() + _READY_TIMEOUT
    while not ready.of(state := int(esp.read_reg(register.address))):
        if time.monotonic() > deadline:
            return None
    esp.write_reg(register.address, state & ~ask.mask)
    return value.of(state)


def _calibration(link: Link) -> float | None:
    fields = efuse.read_all(link).fields
    for name in _DELTA:
        if name in fields and fields[name].bits:
            bits = int(fields[name].bits or "0", 2)
            return -(bits & 0xFF) / 10 if bits & 0x100 else (bits & 0xFF) / 10
    return None
