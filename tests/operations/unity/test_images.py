"""Real programs on QEMU: ESP-IDF's own runner in images that are not part of this repository, and the test firmware."""

import pytest

from pytest_esp.operations import unity

CHIPS = ("esp32c3", "esp32")
PANIC = {"esp32c3": "Store access fault", "esp32": "StoreProhibited"}


@pytest.fixture
def idf_links(links, firmware_folder, need_qemu):
    """A function that makes QEMU machines of *chips* with ESP-IDF's unit test app."""

    def make(*chips):
        for chip in chips:
            need_qemu(chip)
            if not (firmware_folder / f"unit_test_{chip}" / "flasher_args.json").is_file():
                pytest.skip(f"no unit_test_{chip} in {firmware_folder}")
        return links(*chips, build=lambda chip: firmware_folder / f"unit_test_{chip}", backend="qemu")

    return make


@pytest.fixture
def firmware_link(links, build_of, need_qemu):
    """A function that makes a QEMU machine with the test firmware."""

    def make(chip):
        need_qemu(chip)
        return links(chip, build=build_of, backend="qemu")[0]

    return make


@pytest.mark.parametrize("chip", CHIPS)
def test_passes_crashes_and_stages_of_esp_idf_s_runner(idf_links, chip):
    (link,) = idf_links(chip)
    assert [case.kind for case in unity.menu(link)] == [*4 * ["normal"], "multi_stage", "multi_device"]
    report = unity.run_all(link, names=["normal_case_stuck", "multiple_devices_test"], invert=True)
    assert {result.name: result.status for result in report} == {
        "normal_case_pass": "passed",
        "normal_case_crash": "crashed",
        "normal_case_pass_auto_reset": "passed",
        "multiple_stages_test": "passed",
    }
    passed, crashed, _, stages = report
    assert (passed.file, passed.line) == ("./main/case_tester_example.c", 30)
    assert crashed.message.startswith(f"panic: {PANIC[chip]}")
    assert crashed.crash.backtrace[0].pc
    assert "assert failed: test_stage2" in stages.log  # which is what that stage is for


def test_a_case_that_is_stuck_is_a_time_out_and_the_rest_goes_on(idf_links):
    (link,) = idf_links("esp32c3")
    stuck, after = unity.run_all(link, names="normal_case_[sp]*[kt]")
    assert (stuck.status, stuck.message) == ("timeout", "timed out after 10 s")
    assert stuck.log.endswith("normal case stuck: infinite loop\n")
    assert (after.name, after.status) == ("normal_case_pass_auto_reset", "passed")


def test_two_machines_play_a_case_of_esp_idf_s_runner(idf_links):
    result = unity.run_multi_device(idf_links("esp32c3", "esp32c3"), "multiple_devices_test")
    assert result.status == "passed", result.describe()
    assert result.log.count("Send signal: [continuous signal]!") == 10


@pytest.mark.parametrize("chip", CHIPS)
def test_every_way_to_end_in_the_test_firmware(firmware_link, build_of, chip):
    report = unity.run_all(firmware_link(chip), elf=build_of(chip) / "pytest_esp_test.elf")
    assert [result.status for result in report] == [
        "passed",
        "passed",
        "failed",
        "ignored",
        "crashed",
        "timeout",
        "passed",
        "ignored",
    ]
    crashed = report.results[4]
    assert [frame.function for frame in crashed.crash.backtrace][:3] == ["store_through", "pass_null", "crash"]
    assert crashed.file.endswith("crash.c")
