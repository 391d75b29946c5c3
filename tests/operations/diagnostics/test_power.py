"""The current of a board, with a simulated meter; and what chips report about their supply."""

import time

import pytest

from pytest_esp.errors import BackendError, OperationError, RackError, StoppedError


@pytest.fixture
def metered(make_esp):
    """Make a board with a meter: a function from its backend and the meter's entry to the operations on it."""
    return lambda meter, backend="sim": make_esp(backend=backend, chip="esp32c3", power_meter=meter)


def test_a_measurement_can_be_stopped(metered):
    esp, told = metered(SLEEPER), []

    def stop(done, total):
        told.append(total)
        raise StoppedError("enough")

    begun = time.monotonic()
    with pytest.raises(StoppedError):
        esp.diagnostics.power_analysis(3600, progress=stop)
    assert time.monotonic() - begun < 20
    assert told == [3600]


SLEEPER = {
    "driver": "sim",
    "voltage_mv": 3000,
    "options": {"levels_ma": [50, 0.005, 0.005, 0.005], "level_seconds": 0.02},
}


def test_a_board_that_sleeps_most_of_the_time(metered):
    found = metered(SLEEPER).diagnostics.power_analysis(0.4)
    measured = found.measurement
    assert (measured.meter, measured.volts, measured.samples) == ("sim", 3.0, 400)
    assert measured.mean == pytest.approx((0.050 + 3 * 0.000005) / 4)
    assert (measured.minimum, measured.maximum, measured.percentile_99) == (0.000005, 0.05, 0.05)
    assert measured.asleep == 0.75
    assert measured.charge == pytest.approx(measured.mean * 0.4)
    assert measured.energy == pytest.approx(measured.charge * 3.0)
    assert found.not_measured is None


def test_the_app_is_started_for_it(metered):
    esp = metered(SLEEPER)
    esp.chip.identify()  # into the loader
    boots = esp.link.boots
    esp.diagnostics.power_analysis(0.05)
    assert esp.link.boots == boots + 1
    esp.diagnostics.power_analysis(0.05, boot=False)
    assert esp.link.boots == boots + 1


def test_without_a_meter_it_says_so_and_what_the_chip_tells(esp):
    found = esp.diagnostics.power_analysis()
    assert found.measurement is None
    assert "has no power meter" in found.not_measured
    assert f"[boards.{esp.link.board.name}]" in found.not_measured
    assert found.supply.chip_type == esp.link.board.chip
    assert found.supply.brown_out is not None
    assert found.supply.regulators


@pytest.mark.parametrize(("bits", "volts"), [(0, 2.43), (2, 2.58), (7, 2.80)])
def test_the_brown_out_detector_of_an_esp32(esp_of, bits, volts):
    esp = esp_of("esp32")
    with esp.link.session.use("setting a register", stub=False) as loader:
        loader.write_reg(0x3FF480D4, 1 << 30 | 1 << 26 | bits << 27)
    found = esp.diagnostics.power_analysis().supply.brown_out
    assert (found.enabled, found.resets, found.detected, found.volts) == (True, True, False, volts)


def test_the_brown_out_detector_of_an_esp32c6(esp_of):
    esp = esp_of("esp32c6")
    with esp.link.session.use("setting a register", stub=False) as loader:
        loader.write_reg(0x600B2C00, 1 << 31)
    found = esp.diagnostics.power_analysis().supply.brown_out
    assert (found.enabled, found.resets, found.volts) == (False, True, None)


@pytest.mark.parametrize(
    ("chip", "burnt", "said"),
    [
        ("esp32", [], "by the strapping pin"),
        ("esp32", ["XPD_SDIO_FORCE"], "off, by eFuse: the flash is supplied from outside"),
        ("esp32", ["XPD_SDIO_FORCE", "XPD_SDIO_REG"], "1.8 V, by eFuse"),
        ("esp32s3", ["VDD_SPI_FORCE", "VDD_SPI_XPD", "VDD_SPI_TIEH"], "3.3 V, by eFuse"),
        ("esp32c3", [], None),
    ],
)
def test_the_supply_of_the_flash(esp_of, chip, burnt, said):
    esp = esp_of(chip)
    for name in burnt:
        esp.efuse.burn(name, 1)
    assert esp.diagnostics.power_analysis().supply.flash_supply == said


def test_a_locked_chip_and_an_esp8266(esp_of):
    assert esp_of("locked").diagnostics.power_analysis().supply is None
    assert esp_of("esp8266").diagnostics.power_analysis().supply.brown_out is None


def test_what_is_refused(metered, esp_of):
    with pytest.raises(OperationError, match="invalid duration: 0 s"):
        esp_of("esp32").diagnostics.power_analysis(0)
    with pytest.raises(BackendError, match="unknown power meter driver 'multimeter'"):
        metered({"driver": "multimeter"}).diagnostics.power_analysis()
    with pytest.raises(RackError, match=r"drivr.*driver"):
        metered({"drivr": "sim"})


@pytest.mark.qemu
@pytest.mark.parametrize("chip", ["esp32", "esp32c3"])
def test_on_qemu(qemu_esp, chip):
    found = qemu_esp(chip).diagnostics.power_analysis()
    assert found.measurement is None
    assert found.supply.brown_out.register == "RTC_CNTL_BROWN_OUT"
