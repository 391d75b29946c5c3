"""A board prints its secrets: terminal, logs, junit.xml and allure's report must not contain them."""

from pathlib import Path

import leaks
import pytest
from leaks import BUILD, NOT_SECRET, leaks_below, leaks_in

RACK = """
[boards.leaky]
backend = "sim"
chip = "esp32c3"
flash_size = "4MB"
app = "leaks:LeakyApp"
count = 2
"""

TESTS = f"""
    import logging, sys
    import allure, pytest
    sys.path.insert(0, {str(Path(leaks.__file__).parent)!r})
    import leaks

    FACTORY = {{"firmware": {str(BUILD)!r}, "nvs": leaks.VALUES, "boot": False}}

    @pytest.fixture
    def given(esp):
        esp.production.factory_program(FACTORY)
        esp.production.provision(leaks.PROVISIONING)
        return leaks.PROVISIONING

    @pytest.mark.esp(chip="esp32c3")
    class TestIt:
        def test_expects_what_never_comes(self, esp, console, given, record_property):
            config, text = given, repr(given)
            esp.chip.reset("app")
            # The test itself sees what is there.
            assert console.expect(leaks.PASSWORD).text == leaks.PASSWORD
            assert leaks.KEY in console.expect(b"raw " + leaks.KEY).group()
            console.expect("ready")
            record_property("password", leaks.PASSWORD)
            print("on stdout", leaks.TOKEN)
            print("on stderr", leaks.PASSWORD, file=sys.stderr)
            logging.getLogger("mine").warning("logged %s", config)
            console.expect("what never comes " + leaks.TOKEN, timeout=0.2)

        def test_compares(self, esp, console, given):
            run = esp.chip.run_firmware(0.3)
            assert leaks.PASSWORD in run.output
            assert run == leaks.PASSWORD + leaks.KEY.hex()

        def test_compares_bytes(self, esp, console, given):
            seen = {{entry.key: entry.value for entry in esp.nvs.read().entries}}
            assert seen == {{"hmac": leaks.KEY, "api": leaks.TOKEN.encode()}}

        def test_is_refused(self, esp, console):
            config = {{"wifi": {{"ssid": "", "password": leaks.PASSWORD}}, "credentials": {{"api": leaks.TOKEN}}}}
            esp.production.provision(config)

        def test_passes(self, esp, console, given):
            esp.chip.reset("app")
            console.expect("ready")
            print(console.text)
            connect("me", leaks.PASSWORD, [leaks.KEY])

    @allure.step("connect with {{password}}")
    def connect(user, password, keys):
        allure.attach(leaks.PEM + leaks.TOKEN, "as text")
        allure.attach(leaks.PASSWORD.encode(), "as bytes")
        allure.dynamic.parameter("password", password)
        allure.dynamic.description("with " + password)
"""


@pytest.fixture
def leaky(project):
    project.rack(RACK)
    project.file(TESTS)
    return project


@pytest.mark.parametrize("workers", [0, 2])
def test_no_output_file_of_a_run_has_a_secret(leaky, workers):
    code, output = leaky.run_process(
        *("-rA", "--showlocals", "-vv", "--esp-log-dir=logs", "--junitxml=junit.xml", "--alluredir=allure"),
        *(f"-n{workers}", "--basetemp=temporary"),
    )
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "4 failed, 1 passed" in output, output
    assert leaks_in(output) == []
    for name in ("logs", "allure"):
        assert list((leaky.path / name).iterdir())
        assert leaks_below(leaky.path / name) == []
    assert leaks_in((leaky.path / "junit.xml").read_bytes()) == []
    (log,) = (path.read_bytes() for path in leaky.path.glob("logs/*test_passes*"))
    assert b'wifi: connecting to "Werk 3" with "***"' in log
    assert f"@{NOT_SECRET}".encode() in log  # what is no secret is not masked
    assert "what never comes ***" in output


def test_live_output_has_no_secret(leaky):
    leaky.file(TESTS.replace('print("on std', 'str("on std').replace("print(console.text)", ""))
    code, output = leaky.run_process("-s", "-k", "expects or passes")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert 'wifi: connecting to "Werk 3" with "***"' in output
    assert "split ***" in output
    assert leaks_in(output) == []


def test_workers_mask_each_others_secrets(leaky):
    common = f"""
        import sys, time
        from pathlib import Path
        from pytest_esp import secrets
        sys.path.insert(0, {str(Path(leaks.__file__).parent)!r})
        import leaks
    """
    leaky.file(f"""{common}
        @pytest.mark.esp(chip="esp32c3")
        def test_gives(esp):
            esp.production.factory_program({{"firmware": {str(BUILD)!r}, "nvs": leaks.VALUES, "boot": False}})
    """)
    leaky.file(
        f"""{common}
        def test_of_another_worker():
            begun = time.monotonic()
            while not secrets.known() and time.monotonic() < begun + 30:
                time.sleep(0.01)
            assert leaks.PASSWORD == leaks.TOKEN
    """,
        "test_other",
    )
    code, output = leaky.run_process("-n2", "-vv", "--dist=loadfile")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert {"[gw0]", "[gw1]"} <= set(output.split())
    assert "assert '***' == '***'" in output
    assert leaks_in(output) == []
