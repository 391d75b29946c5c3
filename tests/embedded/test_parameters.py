"""Chips, configurations and options: which tests there are, and which board and build they get."""

import pytest


def test_targets(suite, build_of):
    suite.sim("esp32", "esp32c3")
    for chip in ("esp32", "esp32c3"):
        suite.build(build_of(chip), f"build_{chip}")
    suite.script("""
        from pytest_embedded_idf.utils import idf_parametrize, supported_targets

        @idf_parametrize("target,markers", [("esp32", (pytest.mark.psram,)), ("esp32c3", pytest.mark.generic)],
                         indirect=["target"])
        def test_marked(dut, target):
            dut.expect(f"on {target},")

        @idf_parametrize("target", ["supported_targets"], indirect=True)
        def test_all(dut, target): ...

        @pytest.mark.parametrize("target", ["linux"], indirect=True)
        def test_host(dut): ...

        @pytest.mark.parametrize("target", ["esp32"])
        def test_not_indirect(dut, target):
            dut.expect("on esp32,")

        def test_lists():
            assert "esp32h2" in supported_targets.get() and "esp8266" not in supported_targets.get()
    """)
    result = suite.run("--supported-targets", "esp32, esp32s3", "-k", "not lists")
    result.assert_outcomes(passed=4, skipped=2, warnings=2)
    result.stdout.fnmatch_lines(["*no board in the rack*esp32s3*", "*no board can be: linux"])
    suite.run("-k", "lists").assert_outcomes(passed=1, deselected=18, warnings=2)


def test_a_parameter_that_the_test_does_not_name(c3):
    c3.script("""
        @pytest.mark.parametrize("target, config, app_path", [("esp32c3", "default", "."), ], indirect=True)
        def test_app(dut):
            dut.expect("ready")
    """)
    c3.run().assert_outcomes(passed=1)


def test_conftest_files_that_override_fixtures(suite, build_of):
    suite.sim("esp32c3", count=2)
    suite.build(build_of("esp32c3"), "made_esp32c3_x")
    suite.conftest("""
        import pytest
        from pytest_embedded.plugin import multi_dut_argument, multi_dut_fixture
        from pytest_embedded.plugin import _request_param_or_config_option_or_default

        @pytest.fixture
        @multi_dut_argument
        def config(request):
            return getattr(request, "param", None) or "x"

        @pytest.fixture
        @multi_dut_argument
        def target(request):
            return _request_param_or_config_option_or_default(request, "target", None)

        @pytest.fixture
        @multi_dut_fixture
        def build_dir(request, app_path, target, config):
            assert isinstance(app_path, str)
            return f"made_{target}_{config}"
    """)
    suite.script("""
        @pytest.mark.parametrize("count, target", [(1, "esp32c3"), (2, "esp32c3")], indirect=True)
        def test_app(dut, count):
            for one in dut if count > 1 else [dut]:
                one.expect("ready")
    """)
    suite.run().assert_outcomes(passed=2)


def test_markers_of_chips(suite, build_of):
    suite.sim("esp32c3")
    suite.script("""
        @pytest.mark.parametrize("count, target", [(2, "esp32c3"), (1, "esp32c3")], indirect=True)
        def test_app(dut): ...
    """)
    result = suite.run("--collect-only", "-q", "--add-target-as-marker-with-amount", "y", "-m", "esp32c3_2")
    result.assert_outcomes(deselected=1)


@pytest.mark.parametrize(("option", "instead"), [("--port=/dev/ttyUSB0", "--esp-port"), ("--parallel-count=2", "-n")])
def test_an_option_that_would_be_ignored_is_refused(suite, option, instead):
    suite.script("def test_app(dut): ...")
    result = suite.run(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{option.partition('=')[0]} has no effect with --esp-embedded: use *{instead}*"])


def test_options_of_their_own_ini_files_are_taken(c3):
    ini = c3.path / "tox.ini"
    options = "--embedded-services esp,idf --skip-check-coredump y --check-duplicates y"
    ini.write_text(f"{ini.read_text()}\naddopts = {options}\n")
    c3.script("""
        def test_app(dut):
            dut.expect("ready")
    """)
    c3.run("--target=esp32c3").assert_outcomes(passed=1)
    c3.script("def test_app(dut): ...", name="pytest_again")
    result = c3.run("--target=esp32c3")
    result.stderr.fnmatch_lines(["*several tests have the same name: test_app"])


def test_metrics(suite):
    suite.script("""
        def test_app(log_metric):
            log_metric("boot_seconds", 1.5, chip="esp32c3")
            log_metric("plain", 2)
    """)
    suite.run("--metric-path", "out/metrics.txt").assert_outcomes(passed=1)
    assert (suite.path / "out" / "metrics.txt").read_text() == 'boot_seconds{chip="esp32c3"} 1.5\nplain 2\n'


def test_a_fixture_that_is_not_supported_says_so(suite):
    suite.script("def test_app(gdb): ...")
    result = suite.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*the fixture 'gdb' of pytest-embedded is not supported by pytest-esp*"])
