"""Who holds a board, for how long, and that all boards are released."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pytest_esp.rack.config import load_rack
from pytest_esp.rack.lease import acquire


def held_elsewhere(project, name, purpose="a long session"):
    rack = load_rack(project.rack_file)
    return acquire([rack.boards[name]], rack=rack, purpose=purpose)[0]


def test_the_next_test_finds_the_board_open_and_warm(project):
    project.file("""
        links = []

        @pytest.mark.esp(chip="esp32")
        @pytest.mark.parametrize("turn", range(3))
        def test_turn(esp, turn):
            identity = esp.chip.identify()
            links.append(esp.link)
            assert all(link is esp.link for link in links)
            assert (identity.connection_time_seconds == 0) == (turn > 0)
    """)
    project.run().assert_outcomes(passed=3)


def test_a_board_is_released_when_the_next_test_needs_another(project):
    project.file("""
        from pytest_esp.rack.lease import holder_of

        @pytest.mark.esp(chip="esp32")
        def test_first(board): ...

        @pytest.mark.esp(chip="esp32s3")
        def test_second(board, rack):
            assert holder_of(rack.boards["one-esp32"], rack) is None
            assert "test_second" in holder_of(board.spec, rack).purpose

        def test_third(rack):
            assert holder_of(rack.boards["one-s3"], rack) is None
    """)
    project.run().assert_outcomes(passed=3)


def test_a_failing_test_leaves_the_next_one_a_fresh_board(project):
    project.file("""
        @pytest.mark.esp(chip="esp32")
        @pytest.mark.parametrize("turn", range(2))
        def test_turn(esp, turn):
            assert esp.chip.identify().connection_time_seconds > 0
            assert turn == 1
    """)
    project.run().assert_outcomes(passed=1, failed=1)


@pytest.mark.in_process
def test_burnt_efuses_of_a_virtual_board_are_not_seen_by_the_next_test(project):
    project.file("""
        @pytest.mark.esp(chip="esp32c3")
        @pytest.mark.burns
        @pytest.mark.parametrize("turn", range(2))
        def test_burn(esp, turn):
            assert esp.efuse.burn("DIS_PAD_JTAG", 1).burnt_bits == 1
    """)
    project.run("--esp-board=c3-1").assert_outcomes(passed=2)


@pytest.mark.in_process
def test_the_console_has_no_output_of_the_previous_test(project):
    project.file("""
        @pytest.mark.esp(chip="esp32")
        @pytest.mark.parametrize("turn", range(2))
        def test_boot(esp, console, turn):
            assert console.text.count("POWERON") == (0 if turn else 1)  # it was off before the first
            esp.link.reset(bootloader=False)
            console.expect("rst:0x1 (POWERON")
    """)
    project.run().assert_outcomes(passed=2)


@pytest.mark.in_process
def test_a_board_is_opened_once_for_tests_that_follow_each_other(project):
    project.file("""
        opened = set()

        @pytest.mark.esp(chip="esp32")
        @pytest.mark.parametrize("turn", range(40))
        def test_nothing(board, turn):
            opened.add(board.wire)

        def test_how_often():
            assert len(opened) == 1
    """)
    project.run().assert_outcomes(passed=41)


# -- waiting


def test_a_held_board_past_the_time_out_is_an_error_that_names_its_holder(project):
    project.file("""
        @pytest.mark.esp(chip="esp32")
        def test_board(board): ...
    """)
    with held_elsewhere(project, "one-esp32"):
        result = project.run("--esp-lock-timeout=0.1")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*timed out after 0.1 s waiting for one-esp32; *by a long session (*pid *"])
    result.stdout.fnmatch_lines(["*hint: increase the lock timeout*"])
    assert "Traceback" not in str(result.stdout)


def test_a_wait_is_shown_with_the_holder(project):
    project.file("""
        @pytest.mark.esp(chip="esp32")
        def test_board(board): ...
    """)
    project.pytester.makeconftest("""
        import pathlib

        def pytest_runtest_setup():
            pathlib.Path("about-to-wait").touch()
    """)
    lease = held_elsewhere(project, "one-esp32")

    def release():
        while not (project.path / "about-to-wait").exists():
            time.sleep(0.01)
        time.sleep(0.3)
        lease.release()

    releasing = threading.Thread(target=release)
    releasing.start()
    result = project.run("-v")
    releasing.join()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["waiting for a board (0 s): one-esp32: held for *by a long session (*pid *"])


def test_another_matching_board_is_taken_instead_of_a_held_one(project):
    project.file("""
        @pytest.mark.esp(chip="esp32c3")
        def test_board(board):
            assert board.name == "c3-2"
    """)
    with held_elsewhere(project, "c3-1"):
        project.run("--esp-lock-timeout=0").assert_outcomes(passed=1)


# -- ends


@pytest.mark.parametrize(
    "body",
    [
        "assert False",
        "pytest.skip('not now')",
        "pytest.exit('enough', returncode=1)",
        "raise SystemExit(3)",
        "esp.link.board.close()",
    ],
)
def test_no_lease_is_left_however_a_test_ends(project, body):
    project.file(f"""
        @pytest.mark.esp(chip="esp32")
        def test_end(esp):
            esp.chip.identify()
            {body}

        @pytest.mark.esp(chip="esp32")
        def test_after(esp):
            esp.chip.identify()
    """)
    project.run("-x")
    assert project.holders() == []


def test_no_lease_is_left_by_fixtures_that_fail(project):
    project.file("""
        @pytest.fixture
        def broken(board):
            yield board
            raise RuntimeError("end of the fixture")

        @pytest.mark.esp(chip="esp32")
        def test_end(broken): ...

        @pytest.mark.esp(chip="esp32s3")
        def test_other(board): ...
    """)
    project.run().assert_outcomes(passed=2, errors=1)


def test_ctrl_c_in_the_middle_of_a_flash_write(project):
    project.file("""
        import os, pathlib

        @pytest.mark.esp(chip="esp32")
        def test_write(esp):
            def progress(done, total):
                pathlib.Path("writing").touch()
            while True:
                esp.flash.write([(0x10000, os.urandom(200_000))], progress=progress)
    """)
    process = project.start()
    project.wait_for("writing", process)
    project.interrupt(process)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, output
    assert project.holders() == []
    project.file("""
        @pytest.mark.esp(chip="esp32")
        def test_after(esp):
            esp.flash.write([(0x10000, bytes(5000))])
    """)
    project.run().assert_outcomes(passed=1)


def test_a_killed_run_leaves_a_free_board(project):
    project.file("""
        import os, signal

        @pytest.mark.esp(chip="esp32")
        def test_dies(esp):
            esp.chip.identify()
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert project.run_process()[0] == -9
    assert project.holders() == []


def test_two_runs_at_once_share_a_rack(project):
    project.file("""
        import fcntl

        @pytest.mark.esp(each="board")
        @pytest.mark.parametrize("turn", range(5))
        def test_alone(esp, board, turn):
            with open(f"in-use-{board.name}", "w") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if another test is on this board
                assert esp.chip.identify().chip_type == board.chip
    """)
    with ThreadPoolExecutor() as pool:
        for code, output in pool.map(lambda _: project.run_process("-q"), range(2)):
            assert code == 0, output
            assert "20 passed" in output


# -- one board for several tests


def test_one_board_for_a_module(project):
    for name in ("test_one", "test_two"):
        project.file(
            """
            pytestmark = pytest.mark.esp(chip="esp32c3", scope="module")
            names = set()

            @pytest.mark.parametrize("turn", range(3))
            def test_same(board, turn):
                names.add(board.name)
                assert len(names) == 1

            @pytest.mark.esp(chip="esp32", scope="test")
            def test_between(board): ...

            def test_still_the_same(board, rack):
                from pytest_esp.rack.lease import holder_of
                assert names == {board.name}
                assert "test_same[0]" in holder_of(board.spec, rack).purpose
            """,
            name,
        )
    project.run().assert_outcomes(passed=10)


def test_a_test_may_borrow_the_board_that_its_own_module_holds(project):
    project.file("""
        @pytest.mark.esp(scope="module")
        @pytest.mark.parametrize("turn", range(2))
        def test_shared(board, turn): ...

        def test_borrows(board): ...

        @pytest.mark.esp(scope="module")
        def test_shared_again(board): ...
    """)
    project.run("--esp-board=one-s3", "--esp-lock-timeout=0").assert_outcomes(passed=4)


def test_a_session_board_serves_fixtures_of_any_scope(project):
    project.file("""
        @pytest.fixture(scope="module")
        def written(session_esp):
            session_esp.flash.write([(0x10000, b"once")])
            return session_esp

        def test_first(written):
            assert written.flash.read(0x10000, 4).data == b"once"

        def test_second(written, session_board, rack):
            from pytest_esp.rack.lease import holder_of
            assert "test_first" in holder_of(session_board.spec, rack).purpose
            assert written.link.session.is_connected
    """)
    result = project.run("--esp-chip=esp32s3")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["one-s3 * 2 * 2 * 0 *"])


# -- faults


@pytest.mark.in_process
def test_faults_end_with_the_test(project):
    project.file("""
        from pytest_esp.errors import LinkError

        @pytest.mark.esp(chip="esp32")
        def test_silence(esp, faults):
            faults.to_host.silent_after = 0
            with pytest.raises(LinkError) as caught:
                esp.chip.identify()
            assert caught.value.board == "one-esp32"

        @pytest.mark.esp(chip="esp32")
        def test_after(esp):
            assert esp.chip.identify().chip_type == "esp32"
    """)
    project.run().assert_outcomes(passed=2)


def test_a_missing_port_is_an_error_with_a_hint(project):
    project.rack('[boards.real]\nbackend = "serial"\nchip = "esp32"\nport = "/dev/not-there"\n')
    project.file("""
        def test_real(esp):
            esp.chip.identify()
    """)
    result = project.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*PortError: real: *not-there*", "*hint:*"])
    assert result.ret == 8
    assert len(result.outlines) < 30
