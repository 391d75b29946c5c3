"""Questions to the catalogue."""

import re

import pytest
from esptool.targets import CHIP_DEFS

from pytest_esp.errors import OperationError
from pytest_esp.operations.catalogue.products import catalogue
from pytest_esp.operations.catalogue.queries import availability, compare, info, recommend, search

MB = 1024 * 1024


@pytest.fixture(autouse=True)
def no_refresh(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


# -- the data file


def test_every_chip_of_esptool_is_there():
    chips = {product.chip_type: product.name for product in catalogue().products.values() if product.kind == "chip"}
    assert chips == {chip: rom.CHIP_NAME for chip, rom in CHIP_DEFS.items()}


def test_modules_are_of_a_known_chip_and_name_their_sources():
    modules = [product for product in catalogue().products.values() if product.kind == "module"]
    assert len(modules) >= 40
    for module in modules:
        assert module.chip_type in CHIP_DEFS
        assert "selector" in module.sources
        assert module.parts


def test_sizes_are_those_of_the_part_numbers():
    letters = re.compile(r"-([NH])(\d+)(?:R(\d+))?")
    for module in catalogue().products.values():
        for part in module.parts if module.kind == "module" else ():
            assert part.part.startswith(f"{module.name}-")
            if match := letters.match(part.part.removeprefix(module.name)):
                assert part.flash == int(match[2]) * MB
                assert part.psram == (int(match[3]) * MB if match[3] else None)


def test_a_part_number_is_there_once_and_is_not_its_own_replacement():
    parts = [part for product in catalogue().products.values() for part in product.parts]
    assert len({part.part for part in parts}) == len(parts)
    assert all(part.replaced_by != part.part for part in parts)
    assert {part.status for part in parts} == {"active", "sample", "nrnd", "replaced", "eol"}


# -- search


def test_search_by_words():
    found = search("wi-fi 6 thread module")
    assert {product.chip_type for product in found.products} == {"esp32c5", "esp32c6", "esp32s31"}
    assert {product.kind for product in found.products} == {"module"}
    assert search("ESP32-C6-MINI-1U-H4").products[0].parts == ("ESP32-C6-MINI-1U-H4",)
    assert search("no such thing").count == 0


@pytest.mark.parametrize(
    ("text", "chips"),
    [
        ("wifi thread chip", {"esp32c5", "esp32c6", "esp32s31"}),
        ("5ghz", {"esp32c5", "esp32e22"}),
        ("wroom 8mb psram wrover", set()),
        ("wroom-1 psram c61", {"esp32c61"}),
        ("dual core riscv ethernet chip", {"esp32p4", "esp32s31"}),
        ("single-core xtensa bluetooth", {"esp32"}),
        ("ble can c3 mini", {"esp32c3"}),
    ],
)
def test_words_as_people_write_them(text, chips):
    assert {product.chip_type for product in search(text).products} == chips


def test_a_chip_by_the_vendors_name():
    assert search(chip_type="ESP32-C6") == search(chip_type="esp32c6")
    assert search(chip_type="ESP32-C6").count == 5
    with pytest.raises(OperationError, match="no chip 'esp32c99'") as caught:
        search(chip_type="esp32c99")
    assert "esp32c" in caught.value.hint


def test_parts_with_one_core_of_a_family_with_two():
    """The ESP32-S0WD and the module with it, ESP32-SOLO-1."""
    found = recommend(min_cores=2, active_only=False, count=99).products
    assert "ESP32-SOLO-1" not in {product.name for product in found}
    assert info("ESP32-SOLO-1").product.cores == 1
    (esp32,) = (product for product in recommend(kind="chip", min_cores=2, active_only=False, count=99).products
                if product.chip_type == "esp32")  # fmt: skip
    assert "ESP32-D0WD-V3" in esp32.parts
    assert "ESP32-S0WD" not in esp32.parts


@pytest.mark.parametrize("count", [0, -1])
def test_no_recommendation_is_asked_for(count):
    with pytest.raises(OperationError, match="count must be at least 1"):
        recommend(count=count)


def test_search_by_what_a_part_has():
    found = search(kind="module", chip_type="esp32s3", min_flash="16MB", min_psram="8MB", status="active")
    parts = {part for product in found.products for part in product.parts}
    assert parts == {
        "ESP32-S3-WROOM-1-N16R8",
        "ESP32-S3-WROOM-1-N16R16VA",
        "ESP32-S3-WROOM-1U-N16R8",
        "ESP32-S3-WROOM-2-N32R16V",
    }
    with pytest.raises(OperationError, match="flash"):
        search(min_flash="much")


# -- one product


@pytest.mark.parametrize("name", ["ESP32-C6", "esp32c6", " Esp32-C6fh4 "])
def test_a_chip_by_any_of_its_names(name):
    found = info(name)
    assert found.product.name == "ESP32-C6"
    assert (found.product.sram, found.product.cores, found.product.max_mhz) == (512 * 1024, 1, 160)
    assert "ESP32-C6-MINI-1" in found.modules
    assert (found.asked_part is None) == ("4" not in name)


def test_a_module_has_the_features_of_its_chip_and_its_own_gpio():
    module = info("ESP32-C6-MINI-1").product
    assert (module.wifi, module.gpio, module.antenna) == ("6", 22, "PCB")
    assert info("ESP32-C6").product.gpio == 30


def test_what_is_not_known_is_said():
    assert "gpio" in info("ESP32-C5-MINI-1").not_known
    assert info("ESP32-C3").not_known == ()
    assert "bluetooth_version" not in info("ESP32-S2").not_known


def test_a_name_that_is_not_there():
    with pytest.raises(OperationError, match="no 'ESP32-C7'") as caught:
        info("ESP32-C7")
    assert "ESP32-C" in caught.value.hint


# -- comparing


def test_chips_side_by_side():
    result = compare(["esp32c3", "ESP32-C6"])
    assert result.names == ("ESP32-C3", "ESP32-C6")
    assert result.rows["sram"] == (400 * 1024, 512 * 1024)
    assert result.rows["ieee802154"] == (False, True)
    assert {"sram", "wifi", "ieee802154"} <= set(result.differences)
    assert "max_mhz" not in result.differences


@pytest.mark.parametrize("names", [[], ["esp32"], ["esp32", "ESP32"]])
def test_one_alone_is_not_compared(names):
    with pytest.raises(OperationError, match="requires two or more names"):
        compare(names)


# -- recommending


def test_a_recommendation_meets_all_needs_and_says_by_what():
    best, *_ = recommend(wifi_6=True, thread_or_zigbee=True, min_flash="8MB", max_temperature=105).products
    assert (best.name, best.parts[0]) == ("ESP32-C6-MINI-1U", "ESP32-C6-MINI-1U-H8")
    assert "flash of at least 8MB: 8MB" in best.reasons
    assert "highest temperature of at least 105 °C: 105 °C" in best.reasons
    assert best.not_known == ()


@pytest.mark.parametrize(
    ("needs", "chips"),
    [
        ({"bluetooth": "classic", "ethernet": True, "wifi": True}, {"esp32", "esp32s31"}),
        ({"band_5ghz": True}, {"esp32c5"}),
        ({"wifi": False, "bluetooth": "le", "thread_or_zigbee": True}, {"esp32h2"}),
        ({"usb": "otg", "min_psram": "8MB"}, {"esp32s3", "esp32s31"}),
        ({"kind": "chip", "wifi": False, "min_psram": "16MB"}, {"esp32p4"}),
    ],
)
def test_needs_lead_to_chips(needs, chips):
    found = recommend(**needs, count=100).products
    assert {product.chip_type for product in found} == chips


def test_needs_that_nothing_meets():
    result = recommend(band_5ghz=True, ethernet=True)
    assert result.products == ()
    assert result.rejected["Wi-Fi at 5 GHz"] > result.rejected["Ethernet"] > 0


def test_the_smallest_that_does_it_comes_first():
    first, *_ = recommend(wifi=True, min_flash="2MB").products
    assert first.chip_type == "esp32c2"


def test_what_is_not_known_comes_after_what_is():
    products = recommend(thread_or_zigbee=True, min_gpio=15, count=100).products
    unknown = [bool(product.not_known) for product in products]
    assert unknown == sorted(unknown)
    assert True in unknown


# -- lifecycle


def test_the_life_of_a_part():
    old = availability("ESP32-WROOM-32-N4")
    assert (old.status, old.parts[0].replaced_by) == ("nrnd", "ESP32-WROOM-32E-N4")
    assert old.as_of == "2026-08-28"
    assert "stock" in old.stock
    family = availability("ESP32-C3-MINI-1")
    assert (family.status, len(family.parts)) == ("active", 5)
