"""Make docs/demo.svg from a real run: ``python docs/demo.py``."""

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
COMMAND = ["make", "--no-print-directory", "demo"]
WIDTH = 118


def run() -> str:
    """Run the command on a pseudo-terminal, so that it prints colours, and return its output."""
    main, terminal = pty.openpty()
    environment = os.environ | {"COLUMNS": str(WIDTH), "LINES": "60", "TERM": "xterm-256color"}
    process = subprocess.Popen(COMMAND, cwd=HERE.parent, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    output = b""
    while True:
        try:
            chunk = os.read(main, 4096)
        except OSError:  # the terminal is closed when the last process leaves it
            break
        if not chunk:
            break
        output += chunk
    os.close(main)
    if process.wait() != 0:
        sys.exit(output.decode())
    return output.decode().replace("\r\n", "\n")


def main() -> None:
    """Write the picture."""
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    run()  # the first run makes the environment
    console.print(f"[bold green]$[/] {' '.join(COMMAND[:1] + COMMAND[2:])}")
    lines = [line.rpartition("\r")[2] for line in run().splitlines()]
    # A terminal overwrites the progress of xdist's start; a picture shows its last state.
    kept = [line for line, following in zip(lines, [*lines[1:], ""], strict=True) if line.strip() != following.strip()]
    console.print(Text.from_ansi("\n".join(kept)))
    Path(__file__).with_suffix(".svg").write_text(console.export_svg(title="pytest-esp"), encoding="utf-8")


if __name__ == "__main__":
    main()
