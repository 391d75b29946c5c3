"""Operations on files accept the vendor's chip names as well as esptool's."""

import pytest

from pytest_esp.errors import OperationError
from pytest_esp.operations.firmware.bootloader_image import BootloaderConfig, bootloader
from pytest_esp.operations.firmware.elf_image import elf_to_image
from pytest_esp.operations.firmware.image_report import analyze
from pytest_esp.operations.firmware.merging import merge
from pytest_esp.operations.firmware.preparing import prepare
from pytest_esp.operations.firmware.size_analysis import size


@pytest.mark.parametrize("name", ["ESP32-C3", "esp32-c3", "ESP32C3"])
def test_every_function_takes_it(build_of, tmp_path, name):
    build = build_of("esp32c3")
    elf, image = build / "pytest_esp_test.elf", build / "bootloader" / "bootloader.bin"
    assert elf_to_image(elf, name, tmp_path / "a.bin").chip_type == "esp32c3"
    assert prepare(elf, name, tmp_path / "b.bin").chip_type == "esp32c3"
    assert merge(build, tmp_path / "c.bin", chip_type=name).chip_type == "esp32c3"
    assert analyze(build / "pytest_esp_test.bin", name).problems == ()
    assert bootloader(name, BootloaderConfig(image), tmp_path / "d.bin").chip_type == "esp32c3"
    assert size(elf, name).chip_type == "esp32c3"


def test_what_is_no_chip_has_the_nearest_that_are(build_of):
    with pytest.raises(OperationError, match="no chip 'esp32c33'") as caught:
        size(build_of("esp32c3") / "pytest_esp_test.elf", "ESP32-C33")
    assert "esp32c3" in caught.value.hint
