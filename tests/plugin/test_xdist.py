"""Workers of pytest-xdist share the rack."""

import pytest

ALONE = """
    import fcntl, contextlib, time

    @contextlib.contextmanager
    def alone(*boards):
        with contextlib.ExitStack() as stack:
            for board in boards:
                file = stack.enter_context(open(f"in-use-{board.name}", "w"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if another worker is on this board
            yield
"""


def test_no_worker_waits_for_a_board_that_another_holds(project):
    project.file(
        ALONE
        + """
    @pytest.mark.esp(each="board")
    @pytest.mark.parametrize("turn", range(3))
    def test_each(esp, board, turn):
        with alone(board):
            esp.chip.identify()

    @pytest.mark.esp(chip="esp32c3")
    @pytest.mark.parametrize("turn", range(6))
    def test_c3(esp, board, turn):
        with alone(board):
            esp.chip.identify()

    @pytest.mark.esp(count=2)
    @pytest.mark.parametrize("turn", range(2))
    def test_two(boards, turn):
        with alone(*boards):
            pass

    @pytest.mark.parametrize("turn", range(5))
    def test_plain(turn): ...
    """
    )
    code, output = project.run_process("-n4", "-v")
    assert code == 0, output
    assert "scheduling tests via RackScheduling" in output
    assert "25 passed" in output
    assert "waiting for a board" not in output


def test_a_slow_board_does_not_hold_up_the_others(project):
    project.file(
        ALONE
        + """
    import os

    @pytest.mark.esp(chip="esp32c3")
    @pytest.mark.parametrize("turn", range(12))
    def test_c3(board, turn):
        with alone(board), open("done", "a") as file:
            if turn == 0:
                # Ends when the other board has done all other tests but the one that xdist's worker was sent ahead.
                while len(open("done").read().split()) < 10:
                    time.sleep(0.01)
            print(board.name, file=file)
    """
    )
    code, output = project.run_process("-n2", "-q")
    assert code == 0, output


def test_tests_of_one_module_or_session_stay_on_one_worker_and_board(project):
    for name in ("test_one", "test_two"):
        project.file(
            """
            import os

            @pytest.mark.esp(chip="esp32c3", scope="module")
            @pytest.mark.parametrize("turn", range(4))
            def test_same(board, turn):
                with open(__name__, "a") as file:
                    print(os.environ["PYTEST_XDIST_WORKER"], board.name, file=file)

            @pytest.mark.parametrize("turn", range(3))
            def test_of_session(session_board, turn):
                with open("of_session", "a") as file:
                    print(os.environ["PYTEST_XDIST_WORKER"], session_board.name, file=file)
            """,
            name,
        )
    code, output = project.run_process("-n3", "-q")
    assert code == 0, output
    for name, count in (("test_one", 4), ("test_two", 4), ("of_session", 6)):
        lines = (project.path / name).read_text().splitlines()
        assert (len(lines), len(set(lines))) == (count, 1)


def test_module_fixtures_outlive_a_change_of_boards(project):
    project.file("""
        @pytest.fixture(scope="module")
        def made_once(request):
            with open("made", "a") as file:
                print("made", file=file)
            yield
            raise RuntimeError("end of the module")

        @pytest.mark.esp(each="board")
        def test_each(board, made_once): ...
    """)
    code, output = project.run_process("-n1", "-v")
    assert (project.path / "made").read_text().split() == ["made"]
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "4 passed, 1 error" in output


def test_a_crashed_worker_is_replaced_and_its_board_is_free(project):
    project.file("""
        import os, pathlib

        @pytest.mark.esp(chip="esp32", each="board")
        @pytest.mark.parametrize("turn", range(4))
        def test_crash(esp, turn):
            esp.chip.identify()
            if turn == 1:
                os._exit(9)
    """)
    code, output = project.run_process("-n2", "-q")
    assert code == pytest.ExitCode.TESTS_FAILED, output
    assert "1 failed, 3 passed" in output
    assert "crashed while running" in output


def test_ctrl_c_releases_all_boards(project):
    project.file("""
        import pathlib, time

        @pytest.mark.esp(each="board")
        def test_long(board):
            pathlib.Path(f"on-{board.name}").touch()
            time.sleep(60)
    """)
    process = project.start("-n2", "-q")
    project.wait_for("on-c3-1", process)
    project.interrupt(process)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, output


def test_failing_fast_releases_all_boards(project):
    project.file("""
        @pytest.mark.esp(each="board")
        @pytest.mark.parametrize("turn", range(5))
        def test_fails(board, turn):
            assert board.chip != "esp32s3"
    """)
    code, output = project.run_process("-n2", "-x", "-q")
    assert code == pytest.ExitCode.INTERRUPTED, output


@pytest.mark.parametrize(
    ("rack", "marker", "message"),
    [
        ('[boards.one]\nbackend = "sim"\nchip = "esp33"\n', "esp()", "boards.toml:3"),
        ('[boards.one]\nbackend = "sim"\nchip = "esp32"\n', 'esp(chp="esp32")', "did you mean chip?"),
    ],
)
def test_a_wrong_rack_or_marker_ends_the_run_before_any_test(project, rack, marker, message):
    project.rack(rack)
    project.file(f"""
        def test_before(): ...

        @pytest.mark.{marker}
        def test_board(board): ...
    """)
    code, output = project.run_process("-n2", "-q")
    assert code == pytest.ExitCode.USAGE_ERROR, output
    assert f"ERROR: {'' if marker != 'esp()' else str(project.path)}" in output
    assert message in output
    assert "Traceback" not in output
    assert "passed" not in output
    project.rack('[boards.one]\nbackend = "sim"\nchip = "esp32"\n')


@pytest.mark.parametrize("dist", ["worksteal", "loadfile", "loadgroup", "each"])
def test_other_ways_to_distribute_work_as_well(project, dist):
    project.file(
        ALONE
        + """
    @pytest.mark.esp(each="chip")
    @pytest.mark.parametrize("turn", range(2))
    def test_chip(board, turn):
        with alone(board):
            pass
    """
    )
    code, output = project.run_process("-n2", f"--dist={dist}", "-q")
    assert code == 0, output


def test_a_run_without_boards_uses_the_scheduling_of_xdist(project):
    project.file("""
        @pytest.mark.parametrize("turn", range(20))
        def test_plain(turn): ...
    """)
    code, output = project.run_process("-n2", "-q")
    assert code == 0, output
    assert "20 passed" in output
