"""``make conformance ESPTOOL_SRC=DIR``: esptool's own hardware tests, unmodified, against virtual chips.

DIR is a checkout of esptool's repository. Its ``test`` folder is copied (the tests write files beside themselves) and
run in an environment of its own, with the esptool that this project has installed, against ``pytest-esp sim``; with
``BACKEND=qemu`` against ``pytest-esp qemu``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parent.parent / ".conformance"
CHIPS = "esp8266 esp32 esp32s2 esp32s3 esp32c2 esp32c3 esp32c5 esp32c6 esp32c61 esp32h2 esp32p4"
QEMU_CHIPS = "esp32 esp32c3"
EFUSE_CHIPS = ("esp32", "esp32c3")
SUITES = {"esptool": "test_esptool.py", "sdm": "test_esptool_sdm.py", "espefuse": "test_espefuse.py"}
CHIPS_OF = {"sim": CHIPS, "qemu": QEMU_CHIPS}
SUITES_OF = {"sim": tuple(SUITES), "qemu": ("esptool",)}  # docs/conformance.md says why
LARGE_FLASH_CHIPS = ("esp32s3", "esp32c5", "esp32p4")  # address more than 16 MB: served with 32 MB
_LONGEST_RUN = 3600  # seconds


@dataclass(frozen=True)
class Run:
    """One suite over one chip of one backend on one transport."""

    backend: str
    suite: str
    chip: str
    transport: str

    @property
    def name(self) -> str:
        return f"{self.backend}-{self.suite}-{self.chip}-{self.transport}"


def main() -> int:
    arguments = _arguments()
    python = _environment()
    runs = [
        Run(arguments.backend, suite, chip, arguments.transport)
        for suite in (arguments.suites or " ".join(SUITES_OF[arguments.backend])).split()
        for chip in (arguments.chips or CHIPS_OF[arguments.backend]).split()
        if _applies(suite, chip)
    ]
    print("backend suite     chip      over     passed failed skipped deselected seconds", flush=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(lambda run: _report(run, python, arguments), runs))
    return int(not results or any(results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--esptool-src", type=Path, required=True, help="checkout of esptool's repository")
    parser.add_argument("--backend", default="sim", choices=list(CHIPS_OF), help="what stands for the chip")
    parser.add_argument("--chips", help="names, with spaces between; default: all that the backend has")
    parser.add_argument("--transport", default="socket", choices=["socket", "pty", "rfc2217"])
    parser.add_argument("--suites", help=f"some of: {' '.join(SUITES)}; on QEMU: {' '.join(SUITES_OF['qemu'])}")
    parser.add_argument("--jobs", type=int, default=2, help="chips at a time")
    parser.add_argument("--logs", type=Path, default=ENVIRONMENT / "logs", help="where the tests' output goes")
    parser.add_argument("-k", dest="expression", help="passed on to pytest")
    arguments = parser.parse_args()
    if not (arguments.esptool_src / "test" / "test_esptool.py").is_file():
        parser.error(f"{arguments.esptool_src} is no checkout of esptool: it has no test/test_esptool.py")
    return arguments


def _applies(suite: str, chip: str) -> bool:
    if suite == "sdm":
        return chip not in ("esp8266", "esp32")
    return suite == "esptool" or chip in EFUSE_CHIPS


def _environment() -> Path:
    """Return the Python of the tests' own environment; it is made when first needed."""
    python = ENVIRONMENT / "venv" / "bin" / "python"
    wanted = (HERE / "requirements.txt").read_text() + f"esptool=={importlib.metadata.version('esptool')}\n"
    installed = ENVIRONMENT / "installed.txt"
    if not (python.exists() and installed.exists() and installed.read_text() == wanted):
        ENVIRONMENT.mkdir(exist_ok=True)
        venv.create(ENVIRONMENT / "venv", with_pip=True)
        (ENVIRONMENT / "requirements.txt").write_text(wanted)
        pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", ENVIRONMENT / "requirements.txt"], check=True)
        installed.write_text(wanted)
    return python


def _report(run: Run, python: Path, arguments: argparse.Namespace) -> bool:
    """Run *run*, print its line of the table, and return whether anything failed."""
    started = time.monotonic()
    try:
        result = _run(run, python, arguments)
    except Exception as error:  # a run that cannot be made is a line of the table like any other
        print(f"{run.backend:7} {run.suite:9} {run.chip:9} {run.transport:8} broken: {error}", flush=True)
        return True
    counts = {key: len(result[key]) for key in ("passed", "failed", "skipped", "deselected")}
    lines = [
        f"{run.backend:7} {run.suite:9} {run.chip:9} {run.transport:8} {counts['passed']:6} {counts['failed']:6} "
        f"{counts['skipped']:7} {counts['deselected']:10} {time.monotonic() - started:7.0f}",
        *(f"    failed: {name}" for name in result["failed"]),
    ]
    print("\n".join(lines), flush=True)
    return bool(counts["failed"] or not counts["passed"])


def _run(run: Run, python: Path, arguments: argparse.Namespace) -> dict[str, list[str]]:
    arguments.logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder, contextlib.ExitStack() as stack:
        work = Path(folder)
        _copy(arguments.esptool_src, work)
        server = stack.enter_context(_server(run, work))
        command = [python, "-m", "pytest", SUITES[run.suite], "-p", "conformance_plugin", "-p", "no:cacheprovider"]
        command += ["--chip", run.chip, "--port", server["endpoints"][0].removeprefix("pty:"), "--baud", "115200"]
        if run.suite == "esptool":
            command += ["-m", "not host_test"]
        if run.suite == "espefuse":
            command += ["--reset-port", server["reset_port"]]
        if arguments.expression:
            command += ["-k", arguments.expression]
        log = stack.enter_context((arguments.logs / f"{run.name}.log").open("w"))
        subprocess.run(
            command,
            cwd=work / "test",
            env=os.environ | _plugin_settings(run, work),
            stdout=log,
            stderr=log,
            timeout=_LONGEST_RUN,
            check=False,
        )
        return json.loads((work / "result.json").read_text())


def _copy(source: Path, work: Path) -> None:
    for name in ("test", "esp_rfc2217_server"):  # the second is started by TestVirtualPort
        shutil.copytree(source / name, work / name, ignore=shutil.ignore_patterns("__pycache__"))
    if (source / "esp_rfc2217_server.py").exists():
        shutil.copy(source / "esp_rfc2217_server.py", work)


def _plugin_settings(run: Run, work: Path) -> dict[str, str]:
    listed = tomllib.loads((HERE / "deselected.toml").read_text())
    dropped = [entry["test"] for entry in listed["deselect"] if _concerns(entry, run)]
    only = [name for part in listed["only"] if _concerns(part, run) for name in part["tests"]]
    return {
        "PYTHONPATH": str(HERE),
        "CONFORMANCE_DESELECT": json.dumps(dropped),
        "CONFORMANCE_ONLY": json.dumps(only),
        "CONFORMANCE_RESULT": str(work / "result.json"),
        "ESPTOOL_TEST_FLASH_SIZE": "32" if run.chip in LARGE_FLASH_CHIPS else "4",
    }


def _concerns(entry: dict[str, Any], run: Run) -> bool:
    return (
        run.backend in entry.get("backends", [run.backend])
        and run.transport in entry.get("transports", [run.transport])
        and run.chip in entry.get("chips", [run.chip])
        and run.suite in entry.get("suites", ["esptool", "sdm"])
    )


@contextlib.contextmanager
def _server(run: Run, work: Path) -> Iterator[dict[str, Any]]:
    """Serve the chip; the value is what the server says about itself."""
    if run.suite == "espefuse":
        command = [sys.executable, str(HERE / "serve_efuses.py"), run.chip]
    else:
        address = f"pty:{work / 'port'}" if run.transport == "pty" else f"{run.transport}://127.0.0.1:0"
        command = [str(Path(sys.executable).with_name("pytest-esp")), run.backend, run.chip, "--json"]
        command += ["--listen", address]
        if run.backend == "sim":  # QEMU runs the machine code itself
            command += ["--app", "apps:RamHelloWorld"]
        command += ["--flash-size", "32MB" if run.chip in LARGE_FLASH_CHIPS else "4MB"]
        if run.suite == "sdm":
            command.append("--secure-download")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(command)} ended with code {process.wait()}")
        yield json.loads(line)
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()


if __name__ == "__main__":
    sys.exit(main())
