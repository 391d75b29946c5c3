"""Real ESP-IDF builds on QEMU, through the fixtures alone, as a user's tests run them."""

import os
import textwrap
from pathlib import Path

import pytest

TOOLS = os.environ.get("IDF_TOOLS_PATH") or str(Path.home() / ".espressif")  # pytester gives tests another home

RACK = """
[boards.q-esp32]
backend = "qemu"
chip = "esp32"

[boards.q-c3]
backend = "qemu"
chip = "esp32c3"
"""


@pytest.fixture
def run(project, firmware_folder, need_qemu, monkeypatch):
    """A function that runs tests in which FIRMWARE is the folder of the builds."""
    monkeypatch.setenv("IDF_TOOLS_PATH", TOOLS)
    need_qemu("esp32")
    need_qemu("esp32c3")
    project.rack(RACK)

    def run(text, *arguments):
        header = f"import pytest\nFIRMWARE = {str(firmware_folder)!r}\n"
        (project.path / "test_it.py").write_text(header + textwrap.dedent(text))
        return project.run(*arguments)

    return run


def test_hello_world_on_both_chips(run):
    run("""
        @pytest.mark.firmware(FIRMWARE + "/hello_world_esp32", FIRMWARE + "/hello_world_esp32c3")
        @pytest.mark.esp(each="chip")
        def test_hello(firmware, console):
            match = console.expect("Hello world!", timeout=60)
            assert console.lines()[0].time < match.time
            console.expect("Restarting in 10 seconds...", timeout=20)
    """).assert_outcomes(passed=2)


def test_a_panic_ends_the_wait_with_the_function_s_name(run):
    result = run("""
        @pytest.mark.firmware(FIRMWARE + "/panic_esp32c3")
        def test_waits(firmware, console):
            console.expect("will never come", timeout=60)
    """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*CrashError: q-c3: the app crashed while waiting for 'will never come'",
            "*#0 0x* in app_main (hello_world_main.c:17)",
        ]
    )
    assert "Store access fault" in str(result.stdout)


def test_a_core_dump_is_captured_whole(run):
    run(r"""
        import base64, re, zlib

        @pytest.mark.firmware(FIRMWARE + "/coredump_uart_esp32")
        def test_dump(firmware, console):
            console.expect("Press Enter to print core dump to UART", timeout=60)
            console.write("\n")
            console.expect("CORE DUMP START", timeout=20)
            dump = console.read_until("CORE DUMP END", timeout=60)
            lines = re.findall(r"^([A-Za-z0-9+/=]{4,})\r*$", dump, re.MULTILINE)
            raw = b"".join(base64.b64decode(line) for line in lines)
            assert int.from_bytes(raw[:4], "little") == len(raw)
    """).assert_outcomes(passed=1)


def test_a_unity_menu_tells_passes_crashes_and_hangs_apart(run):
    run("""
        @pytest.mark.firmware(FIRMWARE + "/unit_test_esp32c3")
        def test_cases(firmware, esp):
            cases = esp.unity.menu().cases
            assert {case.kind for case in cases} >= {"normal", "multi_stage", "multi_device"}
            results = [esp.unity.run(case.name, timeout=10) for case in cases if case.kind == "normal"]
            assert [result.status for result in results] == ["passed", "crashed", "timeout", "passed"]
            assert "Store access fault" in results[1].message
            assert esp.unity.run("multiple_stages_test", timeout=20).status == "passed"
    """).assert_outcomes(passed=1)
