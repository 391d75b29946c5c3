"""What an entry does not say is asked of the chip under its first lease, and remembered by its MAC address.

The boards are simulated chips in other processes, which the rack names as real ones by their ports.
"""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from pytest_esp.cli.main import cli
from pytest_esp.link.session import Session
from pytest_esp.rack.config import load_rack
from pytest_esp.rack.facts import Facts, recall, remembered

FIRST_TEST = """
@pytest.mark.esp(flash=">=4MB")
def test_identity(esp, board):
    found = esp.chip.identify()
    assert found.flash_size_bytes >= 4 << 20
    print(f"ran on {board.name}, an {board.chip}")
"""


@pytest.fixture
def bench(project, start_serving, monkeypatch):
    """A function that serves chips as real boards, and writes a rack with entries that give their ports and *keys*."""
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(project.path / "locks"))
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(project.path / "state"))

    def serve(chip="esp32c3", size="4MB", mac="7c:df:a1:00:00:01", port=0, revision=None):
        more = () if revision is None else ("--revision", revision)
        served = start_serving(
            "sim", chip, "--listen", f"rfc2217://127.0.0.1:{port}", "--flash-size", size, "--mac", mac, *more
        )
        return served

    def make(*boards, **keys):
        served = [serve(**board) for board in boards or ({},)]
        lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        project.rack(
            "".join(
                f'[boards.board-{number}]\nbackend = "serial"\nport = "{one.url("rfc2217")}"\n{lines}\n'
                for number, one in enumerate(served, 1)
            )
        )
        return served

    make.serve = serve
    return make


@pytest.fixture
def connections(monkeypatch):
    """The names of the boards that were reset into their loaders, in this process."""
    found = []
    sync = Session._sync

    def counted(session, esp):
        found.append(session.board)
        return sync(session, esp)

    monkeypatch.setattr(Session, "_sync", counted)
    return found


def run(project, *arguments):
    return project.run("-s", *arguments)


def state_of(project):
    return sorted((project.path / "state" / "facts").glob("*.json"))


def test_an_entry_with_only_a_backend_and_a_port_runs_the_first_test(project, bench, connections):
    bench()
    project.file(FIRST_TEST)
    for _ in range(2):  # asked, then remembered
        result = run(project)
        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines(["*ran on board-1, an esp32c3*"])
    assert connections == ["board-1", "board-1"]
    assert recall("7c:df:a1:00:00:01") == Facts("esp32c3", "7c:df:a1:00:00:01", 4, 4 << 20, 40)
    assert remembered((rack := load_rack(project.rack_file)).board("board-1"), rack).flash_size == 4 << 20
    assert [path.name.partition("-")[0] for path in state_of(project)] == ["chip", "port"]


def test_the_first_board_is_too_small_and_the_next_one_is_taken(project, bench, connections):
    bench({"size": "2MB"}, {"mac": "7c:df:a1:00:00:02"})
    project.file(FIRST_TEST + FIRST_TEST.replace("identity", "again"))
    result = run(project)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*ran on board-2*", "*ran on board-2*"])
    assert connections == ["board-1", "board-2"]  # the second test finds the chip connected
    assert run(project).ret == 0
    assert connections == ["board-1", "board-2", "board-2"]  # what is remembered decides at once


@pytest.mark.parametrize(
    ("marker", "reason"),
    [
        ('flash=">=4MB"', "its flash size is 2MB, not >=4MB"),
        ('chip="esp32s3"', "its chip is esp32c3, not esp32s3"),
        ('revision=">=1"', "its revision is v0.4, not >=v1"),
        ("crystal=26", "its crystal is 40 MHz, not ==26 MHz"),
        ('features=["psram"]', "it has no psram"),
    ],
)
def test_no_board_is_left(project, bench, marker, reason):
    bench({"size": "2MB"})
    project.file(FIRST_TEST.replace('flash=">=4MB"', marker))
    result = run(project)
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*skipped: no board*", f"1 test: no board in the rack*(board-1: {reason})"])
    again = run(project, "--esp-strict")
    again.stdout.fnmatch_lines([f"*{reason} (remembered of 7c:df:a1:00:00:01;*--esp-strict*"])
    assert again.ret == 1


def test_a_strict_run_fails_when_the_chip_has_been_asked(project, bench):
    bench({"size": "2MB"})
    project.file(FIRST_TEST)
    result = run(project, "--esp-strict")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*its flash size is 2MB, not >=4MB*--esp-strict*"])


def test_what_the_chip_can_never_say_is_not_asked(project, bench, connections):
    bench()
    project.file(FIRST_TEST.replace('flash=">=4MB"', 'features=["led"]'))
    run(project).assert_outcomes(skipped=1)
    assert connections == []


def test_collection_opens_no_port(project, bench):
    served = bench()
    served[0].process.kill()  # opening would fail
    project.file(FIRST_TEST)
    result = project.run("--collect-only", "-q")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*test_identity*"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("flash_size", "16MB", "the flash has 4MB, but boards.toml says flash_size = '16MB'"),
        ("revision", "v1.1", "the chip's revision is v0.4, but boards.toml says revision = 'v1.1'"),
        ("crystal", 26, "the frequency of the chip's crystal in MHz is 40, but boards.toml says crystal = 26"),
        ("chip", "esp32s3", "this is an ESP32-C3, not an ESP32-S3"),
        ("mac", "7C-DF-A1-00-00-99", "address 7c:df:a1:00:00:01, but boards.toml says mac = '7c:df:a1:00:00:99'"),
    ],
)
def test_what_an_entry_says_wrongly_is_an_error_before_anything_is_written(project, bench, key, value, message):
    bench(**{key: value})
    project.file("""
        def test_writing(esp):
            esp.flash.write(b"abcd", 0x10000)
    """)
    for _ in range(2):
        result = run(project)
        result.stdout.fnmatch_lines([f"*WrongChipError: board-1: *{message}*"])
        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines([f"*hint: *`{key}`*"])
    project.rack(project.rack_file.read_text().replace(f"{key} = {json.dumps(value)}", ""))
    project.file("""
        def test_blank(esp):
            assert esp.flash.read(0x10000, 4).data == b"\\xff" * 4
    """)
    run(project).assert_outcomes(passed=1)


def test_a_pin_in_any_spelling(project, bench):
    bench(mac="7CDF.A100.0001")
    project.file(FIRST_TEST)
    run(project).assert_outcomes(passed=1)


def test_another_board_on_the_port(project, bench, connections):
    (served,) = bench()
    project.file(FIRST_TEST)
    run(project).assert_outcomes(passed=1)
    port = served.url("rfc2217").rpartition(":")[2]
    served.process.kill()
    served.process.communicate()
    bench.serve(size="8MB", mac="7c:df:a1:00:00:02", port=port)
    project.file(FIRST_TEST + FIRST_TEST.replace("identity", "again"))
    result = run(project)
    result.assert_outcomes(passed=2)
    said = "board-1: another board is on this port: 7c:df:a1:00:00:02 instead of 7c:df:a1:00:00:01 (esp32c3 v0.4, 8MB *"
    result.stdout.fnmatch_lines(["*boards that were exchanged*", said])
    assert result.stdout.str().count("another board") == 1
    assert connections == ["board-1", "board-1"]
    assert "another board" not in run(project).stdout.str()


def test_a_test_with_a_smaller_board_than_remembered_is_skipped(project, bench):
    (served,) = bench()
    project.file(FIRST_TEST)
    run(project).assert_outcomes(passed=1)
    served.process.kill()
    served.process.communicate()
    bench.serve(size="2MB", mac="7c:df:a1:00:00:02", port=served.url("rfc2217").rpartition(":")[2])
    result = run(project)
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*board-1: its flash size is 2MB, not >=4MB)", "board-1: another board is on this*"])


def test_a_test_that_does_not_connect_finds_the_app_running(project, bench):
    bench()
    project.file("""
        @pytest.mark.esp(flash=">=4MB")
        def test_console(board, console):
            assert board.facts.flash_size == 4 << 20
            console.expect("invalid header: 0xffffffff", timeout=5)  # the ROM, about blank flash, again and again
    """)
    run(project).assert_outcomes(passed=1)


def test_several_boards(project, bench):
    bench({"size": "2MB"}, {"mac": "7c:df:a1:00:00:02"}, {"mac": "7c:df:a1:00:00:03", "chip": "esp32"})
    project.file("""
        @pytest.mark.esp(flash=">=4MB", count=2)
        def test_two(boards):
            assert [(board.name, board.chip) for board in boards] == [("board-2", "esp32c3"), ("board-3", "esp32")]
    """)
    run(project).assert_outcomes(passed=1)


def test_each_chip_when_the_chips_are_not_known_and_when_they_are(project, bench):
    bench({}, {"mac": "7c:df:a1:00:00:03", "chip": "esp32"})
    project.file("""
        @pytest.mark.esp(each="chip")
        def test_each(esp): esp.chip.identify()
    """)
    ids = [["board-1", "board-2"], ["esp32c3", "esp32"]]
    for names in ids:
        result = run(project, "-v")
        result.assert_outcomes(passed=2)
        for name in names:
            result.stdout.fnmatch_lines([f"*test_each*{name}*PASSED*"])


@pytest.mark.parametrize(
    ("expression", "outcome"), [("esp32c3", "passed"), ("hardware", "passed"), ("esp32", "skipped")]
)
def test_markers_select_a_chip_that_is_not_known(project, bench, expression, outcome):
    bench()
    project.file("def test_any(esp): esp.chip.identify()")
    run(project, "-m", expression).assert_outcomes(**{outcome: 1})


def test_workers(project, bench):
    bench({"size": "2MB"}, {"mac": "7c:df:a1:00:00:02"})
    project.file(FIRST_TEST + FIRST_TEST.replace("identity", "again") + FIRST_TEST.replace("identity", "third"))
    code, output = project.run_process("-n2", "-pxdist")
    assert code == 0, output
    assert "3 passed" in output


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"[" * 4000, b"{}", b'{"port": 3}', b"{" + b" " * 5000 + b"}", b'"text"', b'{"mac": "x"}'],
)
def test_wrong_contents_are_forgotten(project, bench, content):
    bench()
    project.file(FIRST_TEST)
    run(project).assert_outcomes(passed=1)
    kept = {path: path.read_bytes() for path in state_of(project)}
    for path in kept:
        path.write_bytes(content)
    run(project).assert_outcomes(passed=1)
    assert {path: path.read_bytes() for path in state_of(project)} == kept


@pytest.mark.parametrize(
    "change",
    [
        {"flash_size": "4MB"},
        {"flash_size": True},
        {"flash_size": -1},
        {"revision": 1e9},
        {"chip": "\x1b[31m"},
        {"mac": 1},
        {"features": ["rocket"]},
        {"features": {}},
        {"extra": 1},
    ],
)
def test_wrong_values_are_forgotten(project, bench, change):
    bench()
    project.file(FIRST_TEST)
    run(project).assert_outcomes(passed=1)
    chip, _ = state_of(project)
    chip.write_text(json.dumps(json.loads(chip.read_text()) | change))
    assert recall("7c:df:a1:00:00:01") is None


def test_a_flash_that_was_replaced_is_asked_again_if_the_entry_says_so(project, bench):
    bench()
    project.file(FIRST_TEST)
    run(project).assert_outcomes(passed=1)
    chip, _ = state_of(project)
    chip.write_text(json.dumps(json.loads(chip.read_text()) | {"flash_size": 2 << 20}))
    project.rack(project.rack_file.read_text() + 'flash_size = "4MB"\n')
    run(project).assert_outcomes(passed=1)
    assert recall("7c:df:a1:00:00:01").flash_size == 4 << 20


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_state_folder_that_cannot_be_written(project, bench):
    bench()
    project.file(FIRST_TEST)
    (project.path / "state").mkdir(mode=0o500)
    run(project).assert_outcomes(passed=1)


def test_a_chip_in_secure_download_mode(project, start_serving, monkeypatch):
    served = start_serving("sim", "esp32c3", "--listen", "rfc2217://127.0.0.1:0", "--secure-download")
    project.rack(f'[boards.locked]\nbackend = "serial"\nport = "{served.url("rfc2217")}"\n')
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(project.path / "state"))
    project.file("""
        @pytest.mark.esp(chip="esp32c3")
        def test_chip(board): assert board.chip == "esp32c3"
        @pytest.mark.esp(flash=">=1MB")
        def test_flash(board): ...
    """)
    result = run(project)
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*its flash_size is neither given in boards.toml nor reported by its chip*"])


def test_virtual_boards_are_asked_for_what_tests_require(project):
    project.rack('[boards.a]\nbackend = "sim"\nchip = "esp32"\n[boards.b]\nbackend = "sim"\nchip = "esp32c3"\n')
    project.file("""
        @pytest.mark.esp(revision="<1")
        def test_low(board): assert board.name == "b"
        @pytest.mark.esp(revision=">=3", crystal=40)
        def test_high(esp, board): assert board.name == "a" and esp.chip.identify().revision >= 300
    """)
    run(project).assert_outcomes(passed=2)


def test_rack_and_doctor_show_what_is_remembered(project, bench):
    bench()
    project.file(FIRST_TEST)
    run(project).assert_outcomes(passed=1)
    (row,) = json.loads(CliRunner().invoke(cli, ["rack", "--rack", str(project.rack_file), "--json"]).output)["boards"]
    assert (row["chip"], row["flash_size"]) == ("esp32c3", 4 << 20)
    assert row["remembered"]["mac"] == "7c:df:a1:00:00:01"
    project.rack(project.rack_file.read_text() + 'flash_size = "16MB"\n')
    output = CliRunner().invoke(cli, ["doctor", "--rack", str(project.rack_file)]).output
    assert "board-1: the flash has 4MB, but boards.toml says flash_size = '16MB'" in output


def test_a_command_says_that_the_board_was_exchanged(project, bench):
    (served,) = bench()
    command = [os.path.join(os.path.dirname(sys.executable), "pytest-esp"), "op", "chip-identify", "--json"]
    assert "another" not in subprocess.run(command, cwd=project.path, capture_output=True, text=True, check=True).stderr
    served.process.kill()
    served.process.communicate()
    bench.serve(mac="7c:df:a1:00:00:02", port=served.url("rfc2217").rpartition(":")[2])
    for said in (1, 0):
        done = subprocess.run(command, cwd=project.path, capture_output=True, text=True, check=True)
        assert done.stderr.count("board-1: another board is on this port: 7c:df:a1:00:00:02 instead of") == said
