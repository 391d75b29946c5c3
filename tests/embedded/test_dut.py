"""`dut`: waiting for output and writing, as scripts for pytest-embedded do it."""


def test_a_script_runs_as_it_is(c3):
    c3.script("""
        from pytest_embedded_idf.utils import idf_parametrize

        @pytest.mark.generic
        @pytest.mark.parametrize("config", ["default"], indirect=True)
        @idf_parametrize("target", ["esp32c3"], indirect=["target"])
        def test_app(dut: Dut, target: str, config: str) -> None:
            match = dut.expect(r"test firmware (\\S+) on (?P<chip>\\w+)", timeout=5)
            assert match.group(1) == b"1.0.0"
            assert match["chip"] == b"esp32c3"
            assert match.re.pattern.startswith(b"test")
            dut.expect_exact("ready")
            assert (target, config, dut.target) == ("esp32c3", "default", "esp32c3")
    """)
    c3.run().assert_outcomes(passed=1, warnings=1)


def test_matches_and_what_came_before(c3):
    c3.script("""
        def test_app(dut):
            first = dut.expect(rb"firmware")
            assert dut.pexpect_proc.before.endswith(b"pytest-esp test ")
            assert first.start() == len(dut.pexpect_proc.before)
            assert dut.expect_exact("slot") == b"slot"
            assert dut.pexpect_proc.after == b"slot"
            assert dut.expect_exact(["nothing", b"ready"]) == b"ready"
            assert dut.expect("Press", return_what_before_match=True) == b"\\r\\n\\r\\n\\r\\n"
    """)
    c3.run().assert_outcomes(passed=1)


def test_a_dot_matches_line_ends_and_several_patterns(c3):
    c3.script("""
        import re

        def test_app(dut):
            assert b"ready" in dut.expect("firmware(.+)Press ENTER").group(1)
            dut.write("echo one two three")
            found = dut.expect(["three", re.compile("tw."), re.compile(b"one")], expect_all=True)
            assert [match.group() for match in found] == [b"one", b"two", b"three"]
    """)
    c3.run().assert_outcomes(passed=1)


def test_what_may_not_come_before(c3):
    c3.script("""
        def test_app(dut):
            dut.expect("Press", not_matching="panic")
            dut.write("echo bad good")
            dut.expect("good", not_matching=["worse", "b.d"])
    """)
    result = c3.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*ValueError: the pattern 'b.d' should not have been matched"])


def test_timeouts(c3):
    c3.script("""
        def test_raised(dut):
            dut.expect("never printed", timeout=0.2)

        def test_caught(dut):
            dut.expect("test firmware")
            with pytest.raises(pexpect.TIMEOUT, match="Not found"):
                dut.expect_exact("never", timeout=0.1)
            with pytest.raises(pexpect.exceptions.TIMEOUT):
                dut.expect_exact(["never", "ever"], timeout=0.1)
            dut.expect("ready")  # a timeout takes nothing away

        def test_in_a_list(dut):
            dut.expect("ready")
            rest = dut.expect(["never", pexpect.TIMEOUT], timeout=0.2)
            assert rest.endswith(b"Press ENTER to see the list of tests.")
            assert dut.expect(pexpect.TIMEOUT, timeout=0.1) == rest
    """)
    result = c3.run()
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*TIMEOUT: Not found 'never printed'", "*test firmware 1.0.0 on esp32c3*"])


def test_a_crash_does_not_end_the_wait_but_is_in_the_message(c3):
    c3.script("""
        def test_app(dut):
            dut.expect("Press ENTER")
            dut.write("crash")
            dut.expect("test firmware 1.0.0")  # it restarts
            dut.expect("never", timeout=0.3)
    """)
    result = c3.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*TIMEOUT: Not found 'never'", "*panic: Store access fault*"])


def test_text_gets_a_line_end_and_bytes_do_not(suite, build_of):
    suite.sim("esp32c3", app="pytest_esp.sim.app:EchoApp")
    suite.build(build_of("esp32c3"), "build")
    suite.script("""
        def test_app(dut):
            dut.expect("ready")
            dut.write("text")
            dut.write(b"bytes")
            dut.write("")
            dut.write("end\\n")
            dut.expect_exact(b"text\\nbytes\\nend\\n\\n")
            assert dut.confirm_write("ping", expect_str="ping") == b"ping"
            with pytest.raises(ValueError, match="either"):
                dut.confirm_write("ping")
    """)
    suite.run().assert_outcomes(passed=1)


def test_several_boards(suite, build_of):
    suite.sim("esp32c3", count=2)
    suite.build(build_of("esp32c3"), "build_esp32c3_default")
    suite.script("""
        @pytest.mark.parametrize("count", [2], indirect=True)
        @pytest.mark.parametrize("target", ["esp32c3"], indirect=True)
        def test_two(dut, app, serial, target):
            assert target == ("esp32c3", "esp32c3")
            assert len(dut) == len(app) == len(serial) == 2
            dut[0].expect("Press ENTER")
            dut[1].expect("Press ENTER")
            dut[0].write("echo first")
            dut[1].write("echo second")
            dut[1].expect("second")
            dut[0].expect("first")
            assert dut[0].logfile != dut[1].logfile

        @pytest.mark.parametrize("count, target", [(2, "esp32c3|esp32")], indirect=True)
        def test_unlike(dut): ...
    """)
    result = suite.run()
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*boards of different chips in one test are not supported: esp32c3, esp32"])


def test_on_a_devkit(suite, devkit, build_of):
    kit = devkit("esp32c3")
    suite.rack(kit.rack.read_text())
    suite.build(build_of("esp32c3"), "build_esp32c3_default")
    suite.script("""
        from pytest_embedded_idf.dut import IdfDut

        @pytest.mark.parametrize("target", ["esp32c3"], indirect=True)
        def test_hello(dut: IdfDut):
            dut.expect("Hello world!", timeout=10)
            dut.serial.hard_reset()
            dut.expect_exact("Hello world!", timeout=10)
            assert dut.serial.port.startswith("rfc2217://")
    """)
    result = suite.run()
    result.assert_outcomes(passed=1)
