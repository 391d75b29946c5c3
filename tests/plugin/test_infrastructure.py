"""Faults of the boards and the rack are errors, not failures; what a run says about its rack."""

from xml.etree import ElementTree

import pytest

SERIAL = '[boards.real]\nbackend = "serial"\nchip = "esp32"\nport = "/dev/not-there"\n'
ORDER = ("skipped", "error", "failure", "system-out", "system-err")
"""The children of a test case in the schemas of Jenkins and GitLab, in their order."""


def element(project, name):
    root = ElementTree.parse(project.path / "junit.xml")
    for case in root.iter("testcase"):
        tags = [child.tag for child in case]
        assert tags == sorted(tags, key=ORDER.index)
    return next(case for case in root.iter("testcase") if case.get("name") == name)


@pytest.fixture
def failing(project):
    """Tests in which a board is at fault, and one that fails by itself."""
    project.file("""
        from pytest_esp import LinkError, OperationError, PortError

        def test_lost(esp):
            raise PortError("the port failed: unplugged", board="one", hint="plug it in")

        def test_silent(board):
            raise LinkError("no answer")

        @pytest.fixture
        def broken(board):
            raise PortError("cannot be opened")

        def test_setup(broken): ...
    """)
    return project


@pytest.mark.parametrize("workers", ["0", "2"])
def test_faults_are_errors_everywhere(failing, workers):
    result = failing.run("--junitxml=junit.xml", "-n", workers)
    result.assert_outcomes(errors=3)
    assert result.ret == 8
    result.stdout.fnmatch_lines(["*test_it.py:*: PortError: one: the port failed: unplugged", "*hint: plug it in"])
    assert "raise PortError" not in result.stdout.str(), "no source of ours, nor a traceback"
    for name, kind in (("test_lost", "PortError"), ("test_silent", "LinkError"), ("test_setup", "PortError")):
        (error,) = element(failing, name).findall("error")
        assert error.get("type") == kind
        assert element(failing, name).find("failure") is None


def test_a_failed_test_beside_them_is_a_failure(failing):
    failing.file(
        """
        from pytest_esp import OperationError

        def test_fails(board):
            assert 0

        def test_refused(esp):
            raise OperationError("verification failed")

        def test_expects(console):
            console.expect("never", 0.01)
    """,
        "test_other",
    )
    result = failing.run("--junitxml=junit.xml")
    result.assert_outcomes(errors=3, failed=3)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert element(failing, "test_fails").find("failure") is not None
    assert element(failing, "test_expects").find("failure") is not None
    assert "raise OperationError" in result.stdout.str()


def test_a_missing_port_of_the_fixture_esp_is_an_error(project):
    project.rack(SERIAL)
    project.file("def test_it(esp): ...")
    result = project.run()
    result.assert_outcomes(errors=1)
    assert result.ret == 8


def test_an_expected_fault_is_none(project):
    project.file("""
        from pytest_esp import PortError

        def test_it(board):
            with pytest.raises(PortError):
                raise PortError("gone")
    """)
    project.run().assert_outcomes(passed=1)


# -- what a run says


def test_the_header_names_the_rack_file_and_its_boards(project):
    project.file("def test_it(): ...")
    project.run().stdout.fnmatch_lines(["boards: *boards.toml: one-esp32, one-s3, c3 x2"])
    project.rack_file.rename(project.path / "board.toml")
    project.run().stdout.fnmatch_lines(["boards: no boards.toml here or above, so the default rack of simulated chips"])
    other = project.path / "board.toml"
    project.run(f"--esp-rack={other}").stdout.fnmatch_lines([f"boards: {other}: one-esp32*"])
    other.rename(project.rack_file)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_reasons_of_skips_are_shown(project, workers):
    project.file("""
        @pytest.mark.esp(features=["camera"])
        @pytest.mark.parametrize("turn", range(2))
        def test_it(board, turn): ...
    """)
    result = project.run("-q", "-r", "N", "-n", workers)
    result.stdout.fnmatch_lines(
        ["*skipped: no board*", "2 tests: no board in the rack 'bench' can run this test*camera*"]
    )


def test_junit_has_no_properties_of_tests_by_default(project):
    """The schema of Jenkins forbids them; the boards are in the output, and in the properties of the suite."""
    project.file("""
        import sys

        @pytest.mark.esp(chip="esp32")
        def test_it(board):
            print("said")
            print("complained", file=sys.stderr)
            assert 0
    """)
    for logging in ("no", "all", "system-err"):
        project.run("--junitxml=junit.xml", "-o", f"junit_logging={logging}")
        case = element(project, "test_it")
        assert case.find("properties") is None
        (output,) = case.findall("system-out")
        assert output.text.startswith("board one-esp32: esp32, sim, ")
        assert ("said" in output.text) == (logging == "all")
    suite = ElementTree.parse(project.path / "junit.xml").find("testsuite/properties")
    properties = {one.get("name"): one.get("value") for one in suite}
    assert properties["board one-esp32"] == "esp32, sim"
    assert properties["rack"].startswith("bench (")


# -- options, fixtures and order


def test_options_of_other_plugins_may_have_common_names(project):
    project.pytester.makeconftest("""
        def pytest_addoption(parser):
            for name in ("rack", "board", "boards", "chip", "backend", "firmware", "port", "target"):
                parser.addoption(f"--{name}")
    """)
    project.file("def test_it(esp): assert esp.chip.identify()")
    project.run("--board=mine", "--chip", "x").assert_outcomes(passed=1)


@pytest.mark.parametrize("name", ["board", "boards", "console", "faults", "firmware", "esp", "rack", "session_board"])
def test_a_fixture_of_the_project_is_the_projects(project, name):
    project.rack("[boards.x]\nbackend='sim'\nchip='esp32'\nfeatures=['a']\nallow=['read']\n")
    project.file(f"""
        @pytest.fixture
        def {name}():
            return "mine"

        @pytest.mark.esp(features=["a"])
        def test_a(): ...

        def test_it({name}):
            assert {name} == "mine"
    """)
    result = project.run("-v")
    assert "test_it.py::test_it PASSED" in result.stdout.str()
    assert "busy" not in result.stdout.str(), "no board was taken"


def test_a_fixture_that_extends_the_plugins_takes_a_board(project):
    project.file("""
        @pytest.fixture
        def esp(esp):
            esp.chip.identify()
            return esp

        def test_it(esp):
            assert esp.chip.identify()
    """)
    result = project.run()
    result.assert_outcomes(passed=1)
    assert "busy" in result.stdout.str()


def test_steps_of_a_class_stay_in_order(project):
    project.file("""
        class TestSteps:
            def test_1(self, board): ...
            def test_2(self): ...
            @pytest.mark.esp(chip="esp32c3")
            def test_3(self, board): ...
            def test_4(self): ...
            @pytest.mark.esp(chip="esp32")
            def test_5(self, board): ...
    """)
    result = project.run("-v")
    assert [line.split()[0][-1] for line in result.outlines if "PASSED" in line] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(("option", "order"), [((), "aabb"), (("--esp-keep-order",), "abab")])
def test_tests_of_each_board_are_grouped_unless_the_order_is_kept(project, option, order):
    project.file("""
        pytestmark = pytest.mark.esp(each="chip", chip=["esp32", "esp32c3"])

        def test_1(board): ...
        def test_2(board): ...
    """)
    lines = [line for line in project.run("-v", *option).outlines if "PASSED" in line]
    assert "".join("b" if "esp32c3" in line else "a" for line in lines) == order


@pytest.mark.parametrize(
    ("marker", "expression", "ran"),
    [
        ("features=['camera']", "sim or qemu", True),
        ("features=['camera']", "not hardware", True),
        ("features=['camera']", "qemu and esp32c3", True),
        ("features=['camera'], chip='esp32'", "esp32", True),
        ("features=['camera'], chip='esp32'", "esp32c3", False),
        ("features=['camera'], backend='serial'", "sim or qemu", False),
        ("features=['camera'], backend='serial'", "hardware", True),
        ("features=['camera']", "slow", False),
    ],
)
def test_a_strict_run_does_not_deselect_what_no_board_can_run(project, marker, expression, ran):
    project.file(f"""
        @pytest.mark.esp({marker})
        def test_it(board): ...
    """)
    result = project.run("--esp-strict", "-m", expression)
    outcomes = result.parseoutcomes()
    assert ("deselected" not in outcomes) == ran
    assert ("errors" in outcomes or "error" in outcomes or "failed" in outcomes) == ran


def test_without_captured_output(project):
    project.file("def test_it(console): assert console")
    project.run("-p", "no:capture").assert_outcomes(passed=1)
