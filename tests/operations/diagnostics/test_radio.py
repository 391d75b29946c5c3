"""The radio's calibration: on flash with and without it, with that of another chip, and with damage."""

import pytest

from pytest_esp.errors import OperationError
from pytest_esp.operations.partitions import nvs

TABLE = [
    {"name": "nvs", "type": "data", "subtype": "nvs", "offset": 0x9000, "size": 0x6000},
    {"name": "phy_init", "type": "data", "subtype": "phy", "offset": 0xF000, "size": 0x1000},
]
INIT = b"PHYINIT\0" + bytes(range(125)) + b"\1\2\0" + b"PHYINIT\0"
VERSION = 4670


def calibration(mac, size=1904, **changes):
    """The NVS partition of an app that has calibrated the radio of the chip with *mac*."""
    address = bytes.fromhex(mac.replace(":", ""))
    data = (VERSION.to_bytes(4, "little") + address).ljust(size, b"\x5a")
    phy = {"cal_version": {"type": "u32", "value": VERSION}, "cal_mac": address, "cal_data": data} | changes
    values = {"phy": {key: value for key, value in phy.items() if value is not None}, "app": {"name": "x"}}
    return nvs.make(values, 0x6000).data


@pytest.fixture
def board(esp_of):
    """An ESP32-C3 with a partition table."""
    esp = esp_of("esp32c3")
    esp.partitions.write(TABLE)
    return esp


def test_a_board_that_has_never_started_its_radio(board):
    found = board.diagnostics.rf_calibration_check()
    assert (found.phy_init.state, found.stored.state, found.usable) == ("blank", "absent", False)
    assert found.findings == (
        "the init data in 'phy_init' is blank: an app that uses it does not start the radio",
        "no calibration is stored: the app calibrates the radio fully at its first start",
        "the eFuses have no factory calibration",
    )


def test_a_calibrated_board(board):
    mac = board.chip.identify().mac_address
    board.flash.write([(0x9000, calibration(mac)), (0xF000, INIT)])
    found = board.diagnostics.rf_calibration_check()
    assert (found.phy_init.state, found.phy_init.size, found.phy_init.multiple) == ("valid", 128, True)
    stored = found.stored
    assert (stored.state, stored.version, stored.data_version, stored.data_size) == ("valid", VERSION, VERSION, 1904)
    assert (stored.mac_address, stored.data_mac_address, stored.mac_matches, found.usable) == (mac, mac, True, True)
    assert found.findings == ("the eFuses have no factory calibration",)


def test_flash_that_was_copied_from_another_board(board):
    board.flash.write([(0x9000, calibration("7c:df:a1:ff:ff:ff")), (0xF000, INIT)])
    found = board.diagnostics.rf_calibration_check()
    assert (found.stored.mac_matches, found.usable) == (False, False)
    assert "that of 7c:df:a1:ff:ff:ff" in found.findings[0]
    assert "flash was copied" in found.findings[0]


@pytest.mark.parametrize(
    "changes", [{"size": 100}, {"cal_data": None}, {"cal_mac": b"\1\2"}, {"cal_version": None}, {"cal_mac": "text"}]
)
def test_calibration_that_is_not_whole(board, changes):
    mac = board.chip.identify().mac_address
    board.flash.write([(0x9000, calibration(mac, **changes))])
    found = board.diagnostics.rf_calibration_check()
    assert (found.stored.state, found.usable) == ("damaged", False)
    assert "the stored calibration is incomplete: the app calibrates again" in found.findings


def test_damaged_init_data(board):
    board.flash.write([(0xF000, INIT[:-8])])
    assert board.diagnostics.rf_calibration_check().phy_init.state == "damaged"


def test_what_the_factory_has_burnt(board):
    board.efuse.burn("BLK_VERSION_MAJOR", 1)
    board.link.reset(bootloader=True)  # espefuse asks a chip once whether it has calibration
    found = board.diagnostics.rf_calibration_check()
    assert found.efuse_version == "1.0"
    assert {"OCODE", "TEMP_CALIB", "ADC1_INIT_CODE_ATTEN0"} <= found.efuses.keys()
    assert "the eFuses have no factory calibration" not in found.findings


def test_other_tables(esp_of):
    esp = esp_of("esp32")
    esp.partitions.write([{**TABLE[0], "name": "settings"}])
    found = esp.diagnostics.rf_calibration_check()
    assert (found.phy_init.state, found.stored.partition) == ("absent", "settings")
    assert found.findings[0] == "there is no partition for init data: the app contains its own"
    with pytest.raises(OperationError, match="no partition 'nvs'"):
        esp.diagnostics.rf_calibration_check("nvs")


@pytest.mark.parametrize(
    ("name", "error"),
    [("esp32p4", "has no radio"), ("esp32s3", "no partition table"), ("locked", "secure download mode")],
)
def test_what_is_refused(esp_of, name, error):
    with pytest.raises(OperationError, match=error):
        esp_of(name).diagnostics.rf_calibration_check()
