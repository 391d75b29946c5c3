"""The chip's temperature sensor: here a model of it behind the registers of a simulated chip."""

import io
import time

import pytest

from pytest_esp.errors import OperationError
from pytest_esp.sim.bus import Bus

CONTROL = {"esp32c3": 0x60040058, "esp32s3": 0x60008850, "esp32c6": 0x6000E058}
POWER_UP, DUMP_OUT, READY = 1 << 22, 1 << 24, 1 << 8
CLOCK = {"esp32c3": (0x600C0014, 1 << 10), "esp32s3": (0x60008904, 1 << 29), "esp32c6": (0x60096088, 1 << 22)}


@pytest.fixture
def sensor(monkeypatch):
    """Give every simulated chip a sensor that shows a raw value, if it has power, a clock, and was asked."""

    def show(chip, raw):
        control, (clock, enable), reads = CONTROL[chip], CLOCK[chip], []
        plain = Bus.read

        def read(bus, address):
            value = plain(bus, address)
            if address != control or not value & POWER_UP or not plain(bus, clock) & enable:
                return value
            if chip == "esp32s3" and not value & DUMP_OUT:
                return value
            reads.append(raw)
            return value | raw | (READY if chip == "esp32s3" else 0)

        monkeypatch.setattr(Bus, "read", read)
        return reads

    return show


@pytest.mark.in_process
@pytest.mark.parametrize("chip", CONTROL)
def test_the_temperature_by_the_manual_s_formula(esp_of, sensor, chip):
    reads = sensor(chip, 110)
    status = esp_of(chip).diagnostics.thermal_status()
    assert status.celsius == pytest.approx(0.4386 * 110 - 20.52, abs=0.01)
    assert (status.within_range, status.calibration, status.accuracy) == (True, None, None)
    assert set(status.raw) == {110}
    assert len(reads) >= 8


@pytest.mark.in_process
def test_everything_is_left_as_it_was(esp_of, sensor):
    sensor("esp32s3", 90)
    esp = esp_of("esp32s3")
    before = esp.diagnostics.register_dump().registers
    esp.diagnostics.thermal_status()
    assert esp.diagnostics.register_dump().registers == before


@pytest.mark.in_process
def test_a_hot_chip_is_beyond_the_range(esp_of, sensor):
    sensor("esp32c3", 255)
    assert not esp_of("esp32c3").diagnostics.thermal_status().within_range


@pytest.mark.in_process
@pytest.mark.parametrize(("bits", "delta"), [(0x019, 2.5), (0x119, -2.5)])
def test_the_factory_s_calibration(esp_of, sensor, bits, delta):
    sensor("esp32c3", 100)
    esp = esp_of("esp32c3")
    burn_as_the_factory_does(esp, bits)
    status = esp.diagnostics.thermal_status()
    assert (status.calibration, status.accuracy) == (delta, 1.0)
    assert status.celsius == pytest.approx(0.4386 * 100 - 20.52 - delta, abs=0.01)


def burn_as_the_factory_does(esp, bits):
    """Burn block 2 with its version (word 4, bit 0) and TEMP_CALIB (bits 3 to 11)."""
    block = (1 << 128 | bits << 131).to_bytes(32, "little")
    with esp.link.session.use("burning", stub=False) as loader:
        esp.link.session.espefuse(loader).burn_block_data(["BLOCK_SYS_DATA"], [io.BytesIO(block)])
    esp.link.reset(bootloader=True)


@pytest.mark.parametrize(
    ("chip", "error"),
    [
        ("esp32", "removed from the data sheet"),
        ("esp8266", "esp8266 has no known temperature sensor"),
        ("esp32h4", "esp32h4 has no known temperature sensor"),
        ("esp32c3", "returned no value"),
        ("esp32s3", "returned no value"),
        ("locked", "secure download mode"),
    ],
)
def test_what_is_refused(esp_of, chip, error):
    with pytest.raises(OperationError, match=error):
        esp_of(chip).diagnostics.thermal_status()


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("chip", "error"), [("esp32", "removed from the data sheet"), ("esp32c3", "returned no value")]
)
def test_on_qemu(qemu_esp, chip, error):
    esp = qemu_esp(chip)
    with pytest.raises(OperationError, match=error):
        esp.diagnostics.thermal_status()
    assert esp.chip.identify().chip_type == chip


def test_a_sensor_that_is_never_ready_is_asked_once(esp_of):
    """An ESP32-S3 says when its value is there; that takes 0.5 s where no sensor is behind the registers."""
    esp = esp_of("esp32s3")
    esp.chip.identify()
    begun = time.monotonic()
    with pytest.raises(OperationError, match="returned no value"):
        esp.diagnostics.thermal_status()
    assert time.monotonic() - begun < 2.0
