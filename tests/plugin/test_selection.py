"""Which boards a test runs on, and the reason if there is none."""

import esptool
import pytest

from pytest_esp.rack.chips import CHIPS


def test_a_board_of_the_wanted_chip_is_taken(project):
    project.file("""
        @pytest.mark.esp(chip="esp32c3")
        def test_chip(esp, board):
            assert board.chip == esp.chip.identify().chip_type == "esp32c3"
    """)
    project.run().assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("needs", "board"),
    [
        ('chip=["esp32s3", "esp8266"]', "one-s3"),
        ('chip="ESP32-S3"', "one-s3"),
        ('features=["psram"]', "one-s3"),
        ('flash=">4MB"', "one-s3"),
        ('board="c3-2"', "c3-2"),
        ('backend="sim", flash="4MB"', "one-esp32"),
    ],
)
def test_what_a_test_can_ask_for(project, needs, board):
    project.file(f"""
        @pytest.mark.esp({needs})
        def test_board(board):
            assert board.name == "{board}"
    """)
    project.run().assert_outcomes(passed=1)


def test_nearer_markers_win_keyword_by_keyword(project):
    project.file("""
        @pytest.mark.esp(chip="esp32s3", flash=">=8MB")
        class TestOnS3:
            def test_class(self, board):
                assert board.name == "one-s3"

            @pytest.mark.esp(chip="esp32c3", flash=None)
            def test_method(self, board):
                assert board.chip == "esp32c3"
    """)
    project.run().assert_outcomes(passed=2)


def test_several_boards_at_once(project):
    project.file("""
        @pytest.mark.esp(count=2, chip="esp32c3")
        def test_two(boards):
            assert [board.name for board in boards] == ["c3-1", "c3-2"]
    """)
    project.run().assert_outcomes(passed=1)


def test_a_test_that_no_board_can_run_is_skipped_and_says_why_for_each_board(project):
    project.file("""
        @pytest.mark.esp(chip=["esp32s3", "esp32c3"], flash=">=16MB")
        def test_never(esp): ...
    """)
    result = project.run()
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(
        ["SKIPPED*test_it.py*no board*in the rack 'bench'*one-esp32: its chip is esp32*one-s3: its flash size is 8MB*"]
    )


def test_strict_makes_that_a_failure(project):
    project.file("""
        @pytest.mark.esp(chip="esp32p4")
        def test_never(esp): ...
    """)
    result = project.run("--esp-strict")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*no board in the rack 'bench' can run this test*--esp-strict*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_strict_and_rack_can_be_set_in_the_ini_file(project):
    (project.path / "racks").mkdir()
    project.rack_file.rename(project.path / "racks" / "mine.toml")
    project.pytester.makeini("[pytest]\nesp_rack = racks/mine.toml\nesp_strict = true\n")
    project.file("""
        @pytest.mark.esp(chip="esp32p4")
        def test_never(esp): ...
    """)
    project.run().assert_outcomes(errors=1)
    project.rack_file = project.path / "racks" / "mine.toml"


def test_too_few_boards_for_a_test(project):
    project.file("""
        @pytest.mark.esp(chip="esp32c3", count=3)
        def test_three(boards): ...
    """)
    result = project.run()
    result.stdout.fnmatch_lines(
        ["SKIPPED*only 2 of 3 boards in the rack*can run this test*one-s3: its chip is esp32s3*"]
    )


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ('chp="esp32"', "test_it.py:*test_x: *no keyword 'chp'; did you mean chip?*"),
        ('chip="esp32x3"', "*unknown chip 'esp32x3'; did you mean esp32s3*"),
        ('each="chips"', "*unknown value each='chips'; did you mean 'chip'?*"),
        ('"esp32"', "*takes keywords only*chip='esp32'*"),
        ('flash="big"', "*flash='big' is not a valid size or comparison*"),
        ("count=0", "*count=0 is not a number of boards*"),
    ],
)
def test_an_invalid_marker_ends_the_run_before_any_test(project, marker, message):
    project.file(f"""
        def test_before(): ...

        @pytest.mark.esp({marker})
        def test_x(board): ...
    """)
    result = project.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])
    result.assert_outcomes()


# -- each=


def test_each_chip_and_each_board_have_readable_ids(project):
    project.file("""
        @pytest.mark.esp(each="chip")
        def test_chip(board, request):
            assert request.node.name == f"test_chip[{board.chip}]"

        @pytest.mark.esp(each="board", flash="4MB")
        @pytest.mark.parametrize("size", [1, 2])
        def test_board(board, size, request):
            assert board.name in request.node.name
    """)
    result = project.run("-v")
    result.assert_outcomes(passed=3 + 2 * 3)
    result.stdout.fnmatch_lines_random(["*::test_chip[[]esp32c3[]] PASSED*", "*::test_board[[]c3-2-1[]] PASSED*"])


def test_each_without_any_board_is_one_skipped_test(project):
    project.file("""
        @pytest.mark.esp(each="board", chip="esp32h2")
        def test_board(board): ...
    """)
    result = project.run("-v")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*::test_board[[]no-board[]] SKIPPED*"])


def test_tests_of_one_module_are_grouped_by_board(project):
    project.file("""
        order = []

        @pytest.mark.esp(each="board", chip="esp32c3")
        def test_a(board):
            order.append(board.name)

        @pytest.mark.esp(each="board", chip="esp32c3")
        def test_b(board):
            order.append(board.name)

        def test_order():
            assert order == ["c3-1", "c3-1", "c3-2", "c3-2"]
    """)
    project.run().assert_outcomes(passed=5)


# -- -m, and the options

MIXED = """
[boards.real]
backend = "serial"
chip = "esp32"
port = "/dev/not-there"

[boards.virtual]
backend = "sim"
chip = "esp32"
"""


@pytest.mark.parametrize("expression", ["sim", "not hardware", "esp32 and sim and not slow"])
def test_a_test_selected_as_virtual_leaves_the_real_board_alone(project, expression):
    project.rack(MIXED)
    project.file("""
        @pytest.mark.esp(chip="esp32")
        def test_any(board):
            assert board.name == "virtual"

        @pytest.mark.esp(chip="esp32", backend="serial")
        def test_real(esp): ...
    """)
    result = project.run("-m", expression)
    result.assert_outcomes(passed=1, deselected=1)


@pytest.mark.parametrize(
    ("expression", "selected"),
    [("hardware", 1), ("sim", 4), ("qemu", 0), ("esp32", 2), ("esp32c3", 2), ("esp8266", 0), ("not sim", 1)],
)
def test_items_carry_the_markers_of_the_boards_that_can_run_them(project, expression, selected):
    project.rack(MIXED + '[boards.c3]\nbackend = "sim"\nchip = "esp32c3"\n')
    project.file("""
        @pytest.mark.esp(each="chip")
        def test_chip(board): ...

        @pytest.mark.esp(each="chip", backend="sim")
        def test_virtual(board): ...

        def test_plain(): ...
    """)
    result = project.run("--collect-only", "-q", "-m", expression)
    assert sum("::test_" in line and "plain" not in line for line in result.outlines) == selected


def test_all_markers_are_registered(project):
    marks = ["esp()", "burns", "erases", *CHIPS, "hardware", "qemu", "sim"]
    project.file("\n".join(f"@pytest.mark.{mark}" for mark in marks) + "\ndef test_marked(): ...\n")
    assert project.run("--strict-markers", "-m", "erases").ret == pytest.ExitCode.OK
    assert tuple(esptool.CHIP_LIST) == CHIPS


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("--esp-board=c3-2", {"c3-2"}),
        ("--esp-chip=esp32c3", {"c3-1", "c3-2"}),
        ("--esp-chip=ESP32-S3", {"one-s3"}),
        ("--esp-backend=sim", {"one-esp32", "one-s3", "c3-1", "c3-2"}),
    ],
)
def test_options_leave_only_some_boards(project, option, names):
    project.file("""
        @pytest.mark.esp(each="board")
        def test_board(board): ...
    """)
    result = project.run("-v", option)
    result.assert_outcomes(passed=len(names))
    assert {line.split("[")[1].split("]")[0] for line in result.outlines if "PASSED" in line} == names


def test_an_unknown_board_on_the_command_line(project):
    project.file("def test_board(board): ...")
    result = project.run("--esp-board=c3_1")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --esp-board c3_1: the rack 'bench' has no such board*", "*did you mean c3-1*"])


def test_a_wrong_rack_file_ends_the_run_with_file_and_line_and_no_traceback(project):
    project.rack('[boards.one]\nbackend = "sim"\nchip = "esp32"\nflashsize = "4MB"\n')
    project.file("""
        def test_before(): ...
        def test_board(board): ...
    """)
    result = project.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *boards.toml:4*flashsize*flash_size*"])
    assert "Traceback" not in str(result.stdout) + str(result.stderr)
    result.assert_outcomes()
    project.rack(MIXED)


def test_a_missing_rack_file(project):
    project.file("def test_board(board): ...")
    result = project.run("--esp-rack=other.toml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: cannot read the rack file *other.toml: *"])


def test_a_run_without_boards_ignores_an_invalid_rack_file(project):
    project.rack("[boards.one")
    project.file("def test_plain(): ...")
    project.run().assert_outcomes(passed=1)
    project.rack(MIXED)


# -- what a board allows

ALLOWING = """
[boards.frozen]
backend = "serial"
chip = "esp32"
port = "/dev/not-there"
allow = ["read"]

[boards.burnable]
backend = "serial"
chip = "esp32"
port = "/dev/not-there-either"
allow = ["read", "write", "erase", "burn"]
allow_burn = ["CUSTOM_MAC"]
"""


def test_a_test_that_erases_or_burns_runs_where_that_is_allowed(project):
    project.rack(ALLOWING)
    project.file("""
        @pytest.mark.erases
        def test_erases(esp): ...

        @pytest.mark.burns
        def test_burns(esp): ...
    """)
    result = project.run("-m", "burns", "--esp-strict")
    result.stdout.fnmatch_lines(["*frozen: it does not allow 'burn'; burnable: *requires --esp-allow-burn*"])
    result = project.run("-m", "erases", "--esp-board=frozen")
    result.stdout.fnmatch_lines(["SKIPPED*frozen: it does not allow 'erase'*"])
    # With the run's consent the board is leased; then its port is missing.
    result = project.run("-m", "burns", "--esp-allow-burn")
    result.assert_outcomes(errors=1)
