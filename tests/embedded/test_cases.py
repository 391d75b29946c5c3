"""Unity test cases: run from the menu, or printed by an app that runs them by itself."""

from xml.etree import ElementTree

OUTPUT = '''
from pytest_esp import SimApp

class Tests(SimApp):
    def start(self):
        self.send(b"""I (20) main: starting\\r
main/test_sum.c:12:test_sum:PASS\\r
main/test_sum.c:20:test_carry:FAIL: Expected 1 Was 2\\r
main/test_sum.c:30:test_later:IGNORE\\r
-----------------------\\r
3 Tests 1 Failures 1 Ignored \\r
FAIL\\r
""")
'''


def names(path):
    cases = ElementTree.parse(path).iter("testcase")
    return {case.get("name"): [child.tag for child in case if child.tag != "properties"] for case in cases}


def test_all_cases_of_one_board(c3):
    c3.script("""
        def test_unit(dut):
            dut.run_all_single_board_cases(timeout=0.5)
    """)
    result = c3.run("--junitxml=junit.xml")
    assert result.ret == 1
    found = names(c3.path / "junit.xml")
    assert "failure" in found["one is two"]
    assert "failure" in found["case crashes"]
    assert "failure" not in found["addition holds"]
    assert "memory survives a restart" in found
    assert "two boards talk" not in found


def test_cases_that_match_any_criterion(c3):
    c3.script("""
        def test_group(dut):
            dut.run_all_single_board_cases(group=["math&!wrong", "nothing"])
            assert open(dut.logfile).read().count("test firmware 1.0.0") == 1
            dut.run_all_single_board_cases(group=["math&!wrong", "nothing"], reset=True)
            assert open(dut.logfile).read().count("test firmware 1.0.0") == 2

        def test_any(dut):
            dut.run_all_single_board_cases(group="nothing", name=["addition holds", "memory keeps a pattern"])

        def test_none(dut):
            dut.run_all_single_board_cases(group="nothing")
            dut.run_all_single_board_cases(dry_run=True)

        def test_single(dut):
            dut.run_single_board_case("addition holds")
            assert [(case.name, case.result) for case in dut.testsuite.testcases] == [("addition holds", "PASS")]
            assert not dut.testsuite.failed_cases
            with pytest.raises(ValueError, match="no test case 'never'"):
                dut.run_single_board_case("never")

        def test_menu(dut):
            case = dut.test_menu[0]
            assert (case.index, case.name, case.type, case.is_ignored) == (1, "addition holds", "normal", False)
            dut._run_normal_case(case)
    """)
    result = c3.run("-v", "--junitxml=junit.xml")
    assert result.ret == 0
    assert {"addition holds", "memory keeps a pattern"} < set(names(c3.path / "junit.xml"))


def test_the_tester_of_several_boards(suite, build_of):
    suite.sim("esp32c3", count=2)
    suite.build(build_of("esp32c3"), "build")
    suite.script("""
        from pytest_embedded_idf.unity_tester import CaseTester

        @pytest.fixture
        def case_tester(unity_tester: CaseTester) -> CaseTester:
            return unity_tester

        @pytest.mark.parametrize("count", [2], indirect=True)
        def test_two(case_tester):
            for case in case_tester.test_menu:
                if case.type == "multi_device":
                    case_tester.run_multi_dev_case(case=case, reset=True)
            case_tester.run_all_multi_dev_cases(timeout=20)
    """)
    result = suite.run("--junitxml=junit.xml")
    assert result.ret == 0
    assert "two boards talk" in names(suite.path / "junit.xml")


def test_an_app_without_a_menu(suite, build_of):
    (suite.path / "printing.py").write_text(OUTPUT)
    suite.sim("esp32c3", app="printing:Tests")
    suite.build(build_of("esp32c3"), "build")
    suite.script("""
        def test_unit(dut):
            dut.expect_unity_test_output(timeout=5)

        def test_twice(dut):
            dut.expect_unity_test_output(timeout=5)
            with pytest.raises(pexpect.TIMEOUT):
                dut.expect_unity_test_output(timeout=0.1)
    """)
    result = suite.run("--junitxml=junit.xml", "-k", "test_unit")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["main/test_sum.c:20: Expected 1 Was 2", "SUBFAILED?test_carry?*"])
    found = names(suite.path / "junit.xml")
    assert found["test_carry"][0] == "failure"
    assert found["test_later"][0] == "skipped"
    assert "failure" not in found["test_sum"]
    assert suite.run("-k", "test_twice").ret == 1
