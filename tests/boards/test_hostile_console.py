"""What a board prints reaches a terminal as text: by `op`, in errors, reports and with -s; in any backend."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
APP = r"""
from pytest_esp import SimApp

EVIL = (
    b"\x1b]52;c;ZXZpbA==\x07\x1b]0;title\x1b\\\x1bPq#0\x1b\\"
    b"\xc2\x9d0;other\xc2\x9c\x1b[2J\x1bc\x07\x08"
)


class Hostile(SimApp):
    def start(self):
        self.send(EVIL + b"\x1b[0;32mready\x1b[0m" + EVIL + b"\r\n\x1bcand then silence")
"""
TEST = """
import pytest


@pytest.mark.esp(board="{board}")
def test_it(console, esp):
    esp.chip.reset("app")
    console.expect("ready")
    console.expect("and then silence")
    console.expect("never", timeout=0.1)
"""
# Anything that a terminal acts on, other than colours.
CONTROL = re.compile(r"\x1b(?!\[[0-9;:]*m)|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]")


@pytest.fixture(params=["sim", "serial"])
def rack(request, tmp_path, monkeypatch, start_serving, flash_of, build_of):
    (tmp_path / "hostile.py").write_text(APP.replace("\\\\\\\\", "\\\\"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    flash = tmp_path / "flash.bin"
    flash.write_bytes(bytes(flash_of(build_of("esp32c3"))).ljust(4 << 20, b"\xff"))
    entry = f'backend = "sim"\napp = "hostile:Hostile"\nflash_file = "{flash}"\n'
    if request.param == "serial":
        arguments = ("--listen", "rfc2217://127.0.0.1:0", "--flash", flash, "--app", "hostile:Hostile")
        entry = f'backend = "serial"\nport = "{start_serving("sim", "esp32c3", *arguments).url("rfc2217")}"\n'
    path = tmp_path / "boards.toml"
    path.write_text(f'[boards.it]\nchip = "esp32c3"\n{entry}')
    return path


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=60, encoding="utf-8", check=False)


def test_op(rack):
    done = run(BIN / "pytest-esp", "op", "--rack", rack, "chip-monitor", "duration_seconds=0.5", "reset=true")
    assert done.returncode == 0, done.stderr
    assert "ready" in done.stdout
    assert CONTROL.findall(done.stdout + done.stderr) == []


@pytest.mark.parametrize("options", [[], ["-s"], ["-l", "--color=yes"], ["-s", "--color=yes"]], ids=" ".join)
def test_pytest(rack, options):
    file = rack.with_name("test_hostile.py")
    file.write_text(TEST.format(board="it"))
    report = rack.with_name("junit.xml")
    done = run(
        sys.executable, "-m", "pytest", file, "--esp-rack", rack, "-p", "no:cacheprovider", f"--junitxml={report}",
        f"--rootdir={rack.parent}", "-c", "/dev/null", *options,
    )  # fmt: skip
    assert "timed out after 0.1 s waiting for 'never'" in done.stdout, done.stdout + done.stderr
    assert CONTROL.findall(done.stdout + done.stderr) == []
    assert CONTROL.findall(report.read_text(encoding="utf-8")) == []
