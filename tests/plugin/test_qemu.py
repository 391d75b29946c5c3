"""QEMU boards in a pytest run: chosen by markers, skipped without QEMU, ended with the run."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pytest_esp.qemu.find import find, why_missing
from pytest_esp.rack.config import load_rack

RACK = """
[rack]
name = "bench"

[boards.machine]
backend = "qemu"
chip = "esp32c3"
flash_size = "2MB"

[boards.simulated]
backend = "sim"
chip = "esp32c3"
flash_size = "2MB"
"""
READY = "see the list of tests."


@pytest.fixture
def bench(project, build_of, flash_of):
    """A project with a QEMU machine that has the test firmware, and a simulated chip."""
    project.rack(RACK)
    rack = load_rack(project.rack_file)
    (rack.state_dir(rack.board("machine")) / "flash-2MB.bin").write_bytes(flash_of(build_of("esp32c3")))
    return project


@pytest.fixture(scope="session")
def qemu():
    """QEMU's path, found before `pytester` gives its runs a home of their own."""
    if reason := why_missing("esp32c3"):
        pytest.skip(reason)
    return find("riscv32", "esp32c3").path


@pytest.fixture
def qemu_bench(qemu, bench, monkeypatch):
    monkeypatch.setenv("QEMU_RISCV_PATH", str(qemu))
    return bench


def is_alive(pid):
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return not state.strip().startswith("Z") and bool(state.strip())


def until_gone(pid):
    deadline = time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < deadline, f"{pid} still runs"
        time.sleep(0.01)


# -- where QEMU is


EACH = """
    @pytest.mark.esp(each="board")
    def test_board(board):
        print(f"on {board.name}")

    @pytest.mark.esp(backend="qemu")
    def test_real_code(console):
        console.expect("see the list of tests.", timeout=30)
"""


@pytest.mark.parametrize(
    ("select", "passed"),
    [
        ("qemu", ["machine", "real_code"]),
        ("sim", ["simulated"]),
        ("sim or qemu", ["machine", "real_code", "simulated"]),
    ],
)
def test_markers_select_the_kind_of_board(qemu_bench, select, passed):
    qemu_bench.file(EACH)
    result = qemu_bench.run("-v", "-m", select, "--esp-strict")
    result.assert_outcomes(passed=len(passed), deselected=3 - len(passed))
    for name in passed:
        result.stdout.fnmatch_lines([f"*{name}*PASSED*"])


def test_the_machine_runs_on_from_test_to_test(qemu_bench):
    qemu_bench.file("""
        pids = []

        @pytest.mark.esp(backend="qemu")
        @pytest.mark.parametrize("number", range(3))
        def test_same(board, number):
            pids.append(board.pid)
            assert len(set(pids)) == 1
    """)
    qemu_bench.run().assert_outcomes(passed=3)


# -- where QEMU is not


@pytest.fixture(params=["variable", "home"])
def no_qemu(request, bench, monkeypatch):
    """The reasons for the two ways in which QEMU can be missing."""
    if request.param == "variable":
        monkeypatch.setenv("QEMU_RISCV_PATH", "/nowhere/qemu")
        return "QEMU_RISCV_PATH is set to /nowhere/qemu, which does not exist"
    for name in ("QEMU_RISCV_PATH", "IDF_TOOLS_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(bench.path))
    folders = os.environ["PATH"].split(os.pathsep)
    without = [folder for folder in folders if not (Path(folder) / "qemu-system-riscv32").exists()]
    monkeypatch.setenv("PATH", os.pathsep.join(without))
    return "no QEMU for riscv32 with the machine esp32c3 is installed (pytest-esp qemu install)"


@pytest.mark.parametrize("select", ["qemu", "sim or qemu", ""])
def test_tests_that_need_it_are_skipped_with_the_reason(bench, no_qemu, select):
    bench.file(EACH)
    result = bench.run("-m", select)
    result.assert_outcomes(skipped=2, passed=0 if select == "qemu" else 1, deselected=1 if select == "qemu" else 0)
    result.stdout.fnmatch_lines([f"SKIPPED*test_it.py*: {no_qemu}"])


def test_in_a_strict_run_they_fail(bench, no_qemu):
    bench.file(EACH)
    result = bench.run("-m", "qemu", "--esp-strict")
    result.assert_outcomes(errors=2, deselected=1)
    result.stdout.fnmatch_lines([f"{no_qemu} (--esp-strict)"])


def test_a_test_runs_on_another_board_if_it_can(bench, no_qemu):
    bench.file("""
        @pytest.mark.esp(chip="esp32c3")
        def test_anywhere(board):
            assert board.backend == "sim"
    """)
    bench.run().assert_outcomes(passed=1)
    bench.run("-m", "sim or qemu").assert_outcomes(passed=1)
    bench.run("-m", "qemu").assert_outcomes(skipped=1)


def test_qemu_is_not_searched_for_unless_a_test_needs_it(bench, monkeypatch):
    monkeypatch.setenv("QEMU_RISCV_PATH", "/nowhere/qemu")
    bench.file("""
        import sys

        @pytest.mark.esp(backend="sim")
        def test_simulated(board):
            assert "pytest_esp.qemu.find" not in sys.modules
    """)
    code, output = bench.run_process()
    assert code == 0, output


# -- when it fails


def test_a_qemu_that_does_not_start_is_a_readable_failure(qemu_bench, qemu, monkeypatch):
    broken = qemu_bench.path / "qemu"
    broken.write_text(f'#!/bin/sh\ncase "$*" in *-drive*) echo "no such thing" >&2; exit 3;; esac\nexec {qemu} "$@"\n')
    broken.chmod(0o755)
    monkeypatch.setenv("QEMU_RISCV_PATH", str(broken))
    qemu_bench.file("""
        @pytest.mark.esp(backend="qemu")
        def test_board(board):
            pass

        @pytest.mark.esp(backend="sim")
        def test_other_boards_go_on(board):
            pass
    """)
    result = qemu_bench.run()
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines(["*machine: QEMU ended (3): no such thing*", "*hint: its log: *qemu.log"])
    assert "Traceback" not in result.stdout.str()
    assert "machine.py" not in result.stdout.str()


@pytest.mark.parametrize("handled", [True, False])
def test_the_test_after_one_that_killed_it_gets_a_new_one(qemu_bench, handled):
    wait = 'with pytest.raises(EspError, match="killed by SIGKILL"):\n                ' if handled else ""
    qemu_bench.file(f"""
        import os, signal
        from pytest_esp.errors import EspError

        @pytest.mark.esp(backend="qemu")
        def test_dies(board, console):
            console.expect("{READY}", timeout=30)
            os.kill(board.pid, signal.SIGKILL)
            {wait}console.expect("never", timeout=30)

        @pytest.mark.esp(backend="qemu")
        def test_lives(esp, console):
            console.expect("{READY}", timeout=30)
    """)
    begun = time.monotonic()
    result = qemu_bench.run()
    result.assert_outcomes(passed=2 if handled else 1, failed=0 if handled else 1)
    assert time.monotonic() - begun < 20
    if not handled:
        result.stdout.fnmatch_lines(["*machine: the port was lost: QEMU was killed by SIGKILL*"])


# -- when the run ends

WAITS = """
    import os, time
    from pathlib import Path

    @pytest.mark.esp(backend="qemu")
    def test_waits(board, console):
        Path("pid.part").write_text(f"{{os.getpid()}} {{board.pid}}")
        os.rename("pid.part", "pid")
        {then}
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_it_does_not_outlive_the_run(qemu_bench, number):
    qemu_bench.file(WAITS.format(then="time.sleep(100)"))
    process = qemu_bench.start()
    qemu_bench.wait_for("pid", process)
    _, qemu = (qemu_bench.path / "pid").read_text().split()
    assert is_alive(qemu)
    os.killpg(process.pid, number)
    process.communicate(timeout=20)
    until_gone(qemu)


def test_it_does_not_outlive_a_worker_of_xdist(qemu_bench):
    qemu_bench.file(WAITS.format(then="os.kill(os.getpid(), 9)"))
    code, output = qemu_bench.run_process("-n1", "--max-worker-restart=0")
    assert code == 1, output
    assert "crashed" in output
    worker, qemu = (qemu_bench.path / "pid").read_text().split()
    assert worker != qemu
    until_gone(qemu)
