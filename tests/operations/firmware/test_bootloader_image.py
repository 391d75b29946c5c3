"""Bootloaders: a given image with other flash settings, and one that ESP-IDF builds."""

import json
import os
import sys

import pytest

from pytest_esp.errors import FirmwareError, OperationError, StoppedError
from pytest_esp.operations.firmware.bootloader_image import BootloaderConfig, bootloader
from pytest_esp.operations.firmware.image_report import analyze
from pytest_esp.operations.firmware.merging import merge


@pytest.fixture
def no_idf(monkeypatch, tmp_path):
    for name in ("IDF_PATH", "ESP_IDF_PATH", "IDF_PYTHON_ENV_PATH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def image(build_of, chip):
    return build_of(chip) / "bootloader" / "bootloader.bin"


def test_a_given_image_gets_other_settings_and_a_new_hash(image, chip, tmp_path, no_idf):
    result = bootloader(chip, BootloaderConfig(image, "dout", "80m", "16MB"), tmp_path / "b.bin")
    now = analyze(tmp_path / "b.bin").images[0]
    assert (now.flash_mode, now.flash_freq, now.flash_size) == ("dout", "80m", "16MB")
    assert (now.hash_valid, now.problem, now) == (True, None, result.image)
    before, after = image.read_bytes(), (tmp_path / "b.bin").read_bytes()
    assert [place for place in range(len(before) - 32) if before[place] != after[place]] == [2, 3]
    assert result.how == "adapted"
    for words in ("not built", "dio, 40m, 2MB changed to dout, 80m, 16MB", "SHA-256 was updated"):
        assert words in result.done
    assert result.offset == {"esp32": 0x1000, "esp32c3": 0}[chip]
    assert result.done.endswith(f"It belongs at {result.offset:#x}.")
    assert (result.fit.fits, result.idf_version, result.warnings) == (True, None, ())


def test_it_boots(esp_of, build_of, tmp_path):
    """A simulated chip checks header and hash as a real one does."""
    config = BootloaderConfig(build_of("esp32c3") / "bootloader" / "bootloader.bin", flash_size="4MB")
    result = bootloader("esp32c3", config, tmp_path / "b.bin")
    esp = esp_of("esp32c3")
    esp.flash.write(build_of("esp32c3"))
    esp.flash.write(result.output_file, result.offset)
    assert "Loaded app from partition" in esp.chip.reset("app").output


def test_without_settings_it_is_a_copy(image, chip, tmp_path):
    result = bootloader(chip, BootloaderConfig(image), tmp_path / "b.bin")
    assert result.output_file.read_bytes() == image.read_bytes()
    assert "used unchanged; its flash settings: dio, 40m, 2MB" in result.done


def test_four_lines_need_more_than_a_header(image, chip, tmp_path):
    (words,) = bootloader(chip, BootloaderConfig(image, "qio"), tmp_path / "b.bin").warnings
    assert "only if it was built for it" in words


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"chip": "esp32"}, FirmwareError, "is for the esp32c3, not for the esp32"),
        ({"chip": "esp33"}, OperationError, "no chip 'esp33'"),
        ({"image": "pytest_esp_test.bin"}, FirmwareError, "is an app, not a bootloader"),
        ({"image": "partition_table/partition-table.bin"}, FirmwareError, "is not an image"),
        ({"image": "none.bin"}, FirmwareError, "cannot be read"),
        ({"flash_size": "5MB"}, OperationError, "no flash size '5MB'"),
        ({"flash_freq": "5m"}, OperationError, "no flash frequency '5m'"),
        ({"flash_mode": "quad"}, OperationError, "no flash mode 'quad'"),
        ({"options": {"CONFIG_X": True}}, OperationError, "have no effect on an existing image"),
    ],
)
def test_what_cannot_be_adapted(build_of, tmp_path, arguments, error, words):
    given = {"chip": "esp32c3", "image": "bootloader/bootloader.bin"} | arguments
    given["image"] = build_of("esp32c3") / given["image"]
    chip = given.pop("chip")
    with pytest.raises(error, match=words):
        bootloader(chip, BootloaderConfig(**given), tmp_path / "b.bin")
    assert not (tmp_path / "b.bin").exists()


def test_a_damaged_image(build_of, tmp_path):
    data = bytearray((build_of("esp32c3") / "bootloader" / "bootloader.bin").read_bytes())
    data[0x300] ^= 4
    (tmp_path / "x.bin").write_bytes(data)
    with pytest.raises(FirmwareError, match="is damaged: Checksum failed"):
        bootloader("esp32c3", BootloaderConfig(tmp_path / "x.bin", flash_size="4MB"), tmp_path / "b.bin")


def test_a_merged_image_is_no_bootloader(build_of, tmp_path):
    """Written at the bootloader's place it would lie over the partition table."""
    merged = merge(build_of("esp32c3"), tmp_path / "merged.bin").output_file
    with pytest.raises(FirmwareError, match="bytes after its bootloader") as caught:
        bootloader("esp32c3", BootloaderConfig(merged), tmp_path / "b.bin")
    assert "bootloader.bin" in caught.value.hint
    assert not (tmp_path / "b.bin").exists()


def test_neither_image_nor_esp_idf(tmp_path, no_idf):
    with pytest.raises(OperationError, match="building a bootloader requires ESP-IDF") as caught:
        bootloader("esp32c3", output_file=tmp_path / "b.bin")
    assert "give an image" in caught.value.hint
    with pytest.raises(OperationError, match="invalid ESP-IDF option"):
        bootloader("esp32c3", BootloaderConfig(options={"config x": True}), tmp_path / "b.bin")
    with pytest.raises(OperationError, match="invalid value"):
        bootloader("esp32c3", BootloaderConfig(options={"CONFIG_X": "a\nCONFIG_Y=y"}), tmp_path / "b.bin")


# -- with an ESP-IDF: a small tree that has the programs which are called, and records how

_IDF_PY = """
import json, os, pathlib, sys
arguments = sys.argv[1:]
project, build = pathlib.Path(arguments[1]), pathlib.Path(arguments[3])
defaults = (project / "sdkconfig.defaults").read_text()
record = {"arguments": arguments, "defaults": defaults.split("\\n"), "variable": os.environ.get("FROM_EXPORT"),
          "lists": (project / "CMakeLists.txt").read_text(), "idf": os.environ["IDF_PATH"]}
pathlib.Path(os.environ["RECORD"]).write_text(json.dumps(record))
if "FAIL" in defaults:
    print("bootloader_start.c:12:3: error: 'x' undeclared")
    sys.exit(2)
for step in range(1, 4):
    print(f"[{step}/3] Building C object bootloader_start.c.obj", flush=True)
ignored = ("MISSPELT", os.environ.get("IGNORED", "MISSPELT"))
known = [line for line in defaults.splitlines() if not any(name in line for name in ignored)]
(project / "sdkconfig").write_text("\\n".join(known).replace("CONFIG_OFF=n", "# CONFIG_OFF is not set"))
(build / "bootloader").mkdir(parents=True)
(build / "bootloader" / "bootloader.bin").write_bytes(pathlib.Path(os.environ["BUILT"]).read_bytes())
"""


@pytest.fixture
def idf(monkeypatch, tmp_path, build_of):
    """A stand-in for an ESP-IDF folder; returns a function that returns how idf.py was called."""
    tools, python = tmp_path / "idf" / "tools", tmp_path / "python"
    tools.mkdir(parents=True)
    (python / "bin").mkdir(parents=True)
    os.symlink(sys.executable, python / "bin" / "python")
    (tools.parent / "version.txt").write_text("v5.5.1\n")
    (tools / "tools.json").write_text('{"tools": [], "version": 2}')
    (tools / "idf.py").write_text(_IDF_PY)
    (tools / "idf_tools.py").write_text('print("FROM_EXPORT=exported")')
    monkeypatch.setenv("IDF_PATH", str(tools.parent))
    monkeypatch.setenv("IDF_PYTHON_ENV_PATH", str(python))
    monkeypatch.setenv("RECORD", str(tmp_path / "record.json"))
    monkeypatch.setenv("BUILT", str(build_of("esp32c3") / "bootloader" / "bootloader.bin"))
    return lambda: json.loads((tmp_path / "record.json").read_text())


def test_esp_idf_builds_it(idf, tmp_path, build_of):
    steps = []
    options = {"CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE": True, "CONFIG_OFF": False, "CONFIG_WDT_TIME_MS": 9000}
    result = bootloader(
        "esp32c3",
        BootloaderConfig(None, "dio", "40m", "2MB", options),
        tmp_path / "b.bin",
        progress=lambda done, total: steps.append((done, total)),
    )
    record = idf()
    assert record["arguments"][0::2][:2] == ["-C", "-B"]
    assert record["arguments"][4:] == ["set-target", "esp32c3", "bootloader"]
    assert record["defaults"] == [
        "CONFIG_ESPTOOLPY_FLASHMODE_DIO=y",
        "CONFIG_ESPTOOLPY_FLASHFREQ_40M=y",
        "CONFIG_ESPTOOLPY_FLASHSIZE_2MB=y",
        "CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE=y",
        "CONFIG_OFF=n",
        "CONFIG_WDT_TIME_MS=9000",
        "",
    ]
    assert (record["variable"], record["idf"]) == ("exported", os.environ["IDF_PATH"])
    assert "tools/cmake/project.cmake" in record["lists"]
    assert result.output_file.read_bytes() == (build_of("esp32c3") / "bootloader" / "bootloader.bin").read_bytes()
    assert (result.how, result.idf_version, result.warnings) == ("built", "5.5.1", ())
    assert (
        result.done == "built by ESP-IDF 5.5.1 for the esp32c3 with flash mode dio, flash frequency 40m, flash size 2MB"
    )
    assert steps[-1] == (3, 3)


def test_a_build_that_fails_or_ignores_an_option(idf, tmp_path):
    with pytest.raises(OperationError, match=r"exit code 2\): 'x' undeclared") as caught:
        bootloader("esp32c3", BootloaderConfig(options={"CONFIG_FAIL": True}), tmp_path / "b.bin")
    assert caught.value.details["errors"][0]["line"] == 12
    result = bootloader("esp32c3", BootloaderConfig(options={"MISSPELT": True}), tmp_path / "b.bin")
    assert result.warnings == ("ESP-IDF did not accept CONFIG_MISSPELT=y",)


def test_what_esp_idf_did_not_take_is_not_said_to_be_done(idf, tmp_path, monkeypatch):
    monkeypatch.setenv("IGNORED", "FLASHSIZE")
    result = bootloader("esp32c3", BootloaderConfig(flash_freq="40m", flash_size="8MB"), tmp_path / "b.bin")
    assert result.done == "built by ESP-IDF 5.5.1 for the esp32c3 with flash frequency 40m"
    assert result.warnings == ("ESP-IDF did not accept CONFIG_ESPTOOLPY_FLASHSIZE_8MB=y",)


def test_a_build_for_another_chip_is_found_out(idf, tmp_path):
    with pytest.raises(FirmwareError, match="is for the esp32c3, not for the esp32c6"):
        bootloader("esp32c6", output_file=tmp_path / "b.bin")
    assert not (tmp_path / "b.bin").exists()


def test_a_build_can_be_stopped(idf, tmp_path):
    def stop(done, total):
        raise StoppedError("stopped")

    with pytest.raises(StoppedError):
        bootloader("esp32c3", output_file=tmp_path / "b.bin", progress=stop)
