"""Measures a board's current with a power meter, and reads what the chip reports about its supply.

Source: for the brown-out detector's levels, Kconfig.power of ESP-IDF for the ESP32 (esp_hw_support/power_supply); for
the rest, the registers' and eFuses' descriptions in Espressif's technical reference manuals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_esp.boards.power_meter import Current, meter_of
from pytest_esp.errors import EspError, OperationError
from pytest_esp.link.link import Link
from pytest_esp.link.logs import Progress
from pytest_esp.operations.chip.running import ticks
from pytest_esp.operations.diagnostics.memory import known_soc
from pytest_esp.operations.diagnostics.soc import Soc
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.operations.security import efuse
from pytest_esp.operations.security.efuse import Efuse

_LONGEST = 3600.0  # seconds
_SLEEP = 0.001  # amperes; a chip of this family that draws less is asleep
# Reset voltage of an ESP32 by its three bits; later chips have them on an internal bus.
_ESP32_LEVELS = (2.43, 2.48, 2.58, 2.62, 2.67, 2.70, 2.77, 2.80)

_DETECTOR = ("RTC_CNTL_BROWN_OUT", "BOD_MODE0_CNTL")
_REGULATORS = (
    "RTC_CNTL", "RTC_CNTL_BIAS_CONF", "RTC_CNTL_SDIO_CONF", "HP_ACTIVE_HP_REGULATOR0", "HP_SLEEP_LP_REGULATOR0",
    "HP_ACTIVE_BIAS",
)  # fmt: skip
_FLASH_SUPPLY = (
    ("XPD_SDIO_FORCE", "XPD_SDIO_REG", "XPD_SDIO_TIEH"),
    ("VDD_SPI_FORCE", "VDD_SPI_XPD", "VDD_SPI_TIEH"),
)
_SUPPLY_MARKS = ("XPD_SDIO", "VDD_SPI", "LDO", "DBIAS", "DCDC")


@dataclass(frozen=True)
class Measurement:
    """The measurement of the meter.

    Attributes:
        meter: kind of meter.
        volts: supply voltage, from boards.toml.
        seconds, samples: duration, and number of samples.
        mean, minimum, maximum: amperes.
        percentile_99: amperes exceeded by one sample in a hundred.
        charge: ampere seconds; energy: joules.
        asleep: share of the time below 1 mA, 0 to 1.
    """

    meter: str
    volts: float
    seconds: float
    samples: int
    mean: float
    minimum: float
    maximum: float
    percentile_99: float
    charge: float
    energy: float
    asleep: float


@dataclass(frozen=True)
class BrownOut:
    """The brown-out detector, as found in the loader: an app sets its own level and enables it itself.

    Attributes:
        enabled, resets: whether it is enabled, and whether it resets the chip; None if the chip does not report it.
        detected: whether the supply is below its level now.
        volts: its level (ESP32); None if it is on an internal bus.
    """

    register: str
    enabled: bool | None
    resets: bool | None
    detected: bool | None
    volts: float | None


@dataclass(frozen=True)
class Supply:
    """What the chip reports about its supply.

    Attributes:
        flash_supply: voltage of the flash by eFuse: e.g. ``"1.8 V, by eFuse"``, ``"by the strapping pin"``; None if the
            chip has no such setting.
        efuses: eFuses related to regulators, by name.
        regulators: fields of their registers, by register.
    """

    chip_type: str
    brown_out: BrownOut | None
    flash_supply: str | None
    efuses: Mapping[str, str]
    regulators: Mapping[str, Mapping[str, int]]
    source: str


@dataclass(frozen=True)
class PowerAnalysis:
    """The current of a board, and what the chip reports about its supply.

    Attributes:
        measurement: None without a meter.
        not_measured: why there is no measurement; None if there is one.
        supply: None in secure download mode, where it cannot be read.
    """

    measurement: Measurement | None
    not_measured: str | None
    supply: Supply | None


@operation(Effect.READ, group="diagnostics")
def power_analysis(
    link: Link, duration: float = 5.0, *, boot: bool = True, progress: Progress | None = None
) -> PowerAnalysis:
    """Measure the current of the board while its app runs, and read what the chip reports about its supply.

    Measuring requires a power meter configured in boards.toml; without one, *not_measured* says so. *supply* contains
    the brown-out detector, the regulators and the supply of the flash.

    Args:
        duration: seconds to measure, at most 3600.
        boot: restart the app first; otherwise the current state is measured.
        progress: called with seconds done and total.

    Raises:
        OperationError: if the duration is invalid.
        PortError, BackendError: if there is a meter, but it cannot be used.
    """
    if not 0 < duration <= _LONGEST:
        raise OperationError(f"invalid duration: {duration:g} s", hint=f"use more than 0 and at most {_LONGEST:g} s")
    spec = link.board.spec.power_meter
    if spec is None:
        return PowerAnalysis(None, _without_meter(link), _supply_or_none(link))
    with meter_of(spec, link.board.name) as meter:
        if boot:
            link.reset(bootloader=False)
        current = meter.measure(duration, ticks(progress, duration))
        measured = _measurement(spec.driver, meter.volts, current)
    return PowerAnalysis(measured, None, _supply_or_none(link))


def _without_meter(link: Link) -> str:
    return (
        "no current was measured: boards.toml has no power meter for this board. Add "
        f'`power_meter = {{ driver = "ppk2", port = "..." }}` to [boards.{link.board.spec.name}]'
    )


def _measurement(driver: str, volts: float, current: Current) -> Measurement:
    samples = sorted(current.amperes)
    mean = sum(samples) / len(samples)
    charge = mean * current.seconds
    return Measurement(
        meter=driver,
        volts=volts,
        seconds=current.seconds,
        samples=len(samples),
        mean=mean,
        minimum=samples[0],
        maximum=samples[-1],
        percentile_99=samples[min(int(len(samples) * 0.99), len(samples) - 1)],
        charge=charge,
        energy=charge * volts,
        asleep=_share_below(samples, _SLEEP),
    )


def _share_below(samples: Sequence[float], level: float) -> float:
    return sum(1 for sample in samples if sample < level) / len(samples)


def _supply_or_none(link: Link) -> Supply | None:
    with link.session.use("reading the supply of the chip", stub=False) as esp:
        if esp.secure_download_mode:
            return None
        soc = known_soc(link, esp)
        brown_out = _brown_out(esp, soc)
        regulators = _regulators(esp, soc)
    fields = _efuses(link)
    return Supply(
        chip_type=soc.chip,
        brown_out=brown_out,
        flash_supply=_flash_supply(fields),
        efuses={
            name: str(field.value) for name, field in fields.items() if any(mark in name for mark in _SUPPLY_MARKS)
        },
        regulators=regulators,
        source=soc.source,
    )


def _brown_out(esp: Any, soc: Soc) -> BrownOut | None:
    register = soc.register(*_DETECTOR)
    if register is None:
        return None
    value = int(esp.read_reg(register.address))

    def flag(*endings: str) -> bool | None:
        field = register.field(*endings)
        return bool(field.of(value)) if field is not None else None

    level = register.field("DBROWN_OUT_THRES") if soc.chip == "esp32" else None
    return BrownOut(
        register=register.name,
        enabled=flag("BROWN_OUT_ENA", "INTR_ENA"),
        resets=flag("BROWN_OUT_RST_ENA", "RESET_ENA"),
        detected=flag("BROWN_OUT_DET"),
        volts=_ESP32_LEVELS[level.of(value)] if level is not None else None,
    )


def _regulators(esp: Any, soc: Soc) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for register in soc.registers:
        if register.name in _REGULATORS or register.name.removeprefix("PMU_") in _REGULATORS:
            value = int(esp.read_reg(register.address))
            found[register.name] = {field.name: field.of(value) for field in register.fields}
    return found


def _efuses(link: Link) -> Mapping[str, Efuse]:
    try:
        return efuse.read_all(link).fields
    except EspError:  # espefuse does not support the ESP8266
        return {}


def _flash_supply(fields: Mapping[str, Efuse]) -> str | None:
    """Return the voltage at VDD_SDIO or VDD_SPI according to the eFuses of an ESP32, -S2 or -S3."""
    names = next((names for names in _FLASH_SUPPLY if names[0] in fields), None)
    if names is None:
        return None
    forced, powered, tied_high = ((fields[name].bits or "0") == "1" for name in names)
    if not forced:
        return "by the strapping pin"
    if not powered:
        return "off, by eFuse: the flash is supplied from outside"
    return "3.3 V, by eFuse" if tied_high else "1.8 V, by eFuse"
