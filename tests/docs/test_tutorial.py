"""The transcript of docs/tutorial.md, replayed in an empty folder with the installed commands."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
PORT = "4000"
# The machine of the test may have serial ports, which the transcript does not list.
NOTHING_PLUGGED_IN = "from serial.tools import list_ports\nlist_ports.comports = lambda: []\n"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def steps():
    """The commands with the output that the page shows."""
    for block in blocks("console"):
        for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = step.partition("\n")
            yield command, output


def pattern(shown):
    """What the output must be: `...` is any text, and durations and the rules around them may differ."""
    lines = []
    for line in shown.splitlines():
        text = re.escape(line).replace(re.escape("..."), r"[\s\S]*")
        text = re.sub(r"\d+\\\.\d+(\\ )?s", r"\\d+\\.\\d+ ?s", text)
        lines.append(re.sub("^=+|=+$", "=+", text))
    return r"\s*".join(lines)


@pytest.fixture
def shell(tmp_path):
    """A function that runs a command of the page and returns its output; one with & at its end goes on running."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = str(server.getsockname()[1])
    hidden = tmp_path / "site"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(NOTHING_PLUGGED_IN)
    folder = tmp_path / "project"
    folder.mkdir()
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COLUMNS"))}
    variables |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(hidden),
        "PYTEST_ESP_LOCK_DIR": str(tmp_path / "locks"),
        "PYTEST_ESP_STATE_DIR": str(tmp_path / "state"),
    }
    servers = []

    def run(command):
        log = tmp_path / "output"
        with log.open("w") as output:
            process = subprocess.Popen(
                command.removesuffix("&").replace(PORT, free),
                shell=True,
                cwd=folder,
                env=variables,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if command.endswith("&"):
            servers.append(process)
            while "rfc2217://" not in log.read_text():
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
        else:
            process.wait(60)
        return log.read_text().replace(free, PORT)

    run.folder = folder
    yield run
    for process in servers:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(10)


def squeezed(text):
    """Without the padding and frames of tables, whose width depends on the length of the port's number."""
    return re.sub(r"[━─ ]+", " ", text)


def test_every_command_prints_what_the_page_shows(shell):
    (test,) = blocks("python")
    (shell.folder / "test_board.py").write_text(test)
    seen = [(command, shell(command), shown) for command, shown in steps()]
    assert len(seen) >= 6
    for command, output, shown in seen:
        assert re.fullmatch(r"\s*" + pattern(squeezed(shown)) + r"\s*", squeezed(output)), f"{command}:\n{output}"
