"""Real ESP-IDF builds on QEMU, with scripts in the style of those that stand beside such apps."""

import os
from pathlib import Path

import pytest

TOOLS = os.environ.get("IDF_TOOLS_PATH") or str(Path.home() / ".espressif")  # pytester gives tests another home


@pytest.fixture
def qemu(suite, firmware_folder, need_qemu, monkeypatch):
    """A function that links a build and makes a rack of QEMU machines."""
    monkeypatch.setenv("IDF_TOOLS_PATH", TOOLS)

    def make(app, *chips):
        for chip in chips:
            need_qemu(chip)
            suite.build(firmware_folder / f"{app}_{chip}", f"build_{chip}_default")
        suite.rack("".join(f'[boards.q-{chip}]\nbackend = "qemu"\nchip = "{chip}"\n' for chip in chips))
        return suite

    return make


def test_hello_world(qemu):
    suite = qemu("hello_world", "esp32", "esp32c3")
    suite.script("""
        from pytest_embedded_idf.utils import idf_parametrize
        from pytest_embedded_qemu.dut import QemuDut

        @pytest.mark.host_test
        @pytest.mark.qemu
        @idf_parametrize("target", ["esp32", "esp32c3"], indirect=["target"])
        def test_hello(dut: QemuDut):
            dut.expect("Hello world!", timeout=60)
            dut.expect_exact("Restarting in 10 seconds", timeout=20)
    """)
    suite.run("--embedded-services=idf,qemu").assert_outcomes(passed=2, warnings=1)


def test_a_panic_that_is_expected(qemu):
    suite = qemu("panic", "esp32c3")
    suite.script("""
        @pytest.mark.parametrize("target", ["esp32c3"], indirect=True)
        def test_panic(dut):
            dut.expect_exact("Guru Meditation Error: Core  0 panic'ed", timeout=60)
            dut.expect(r"MEPC\\s+: (0x[0-9a-f]+)")
            dut.expect_exact("Rebooting...")
            dut.expect_exact("Guru Meditation Error: Core  0 panic'ed", timeout=60)
    """)
    suite.run().assert_outcomes(passed=1)


def test_unit_test_app(qemu):
    suite = qemu("unit_test", "esp32c3")
    suite.script("""
        @pytest.mark.parametrize("target", ["esp32c3"], indirect=True)
        def test_menu(dut):
            names = [case.name for case in dut.test_menu]
            assert names
            normal = next(case.name for case in dut.test_menu if case.type == "normal" and "fail" not in case.name)
            dut.run_all_single_board_cases(name=normal)
    """)
    result = suite.run("-v")
    assert "case" in result.stdout.str() or result.ret == 0
