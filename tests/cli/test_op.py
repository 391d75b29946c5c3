"""``pytest-esp op``: operations from the command line."""

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from pytest_esp.cli.main import cli
from pytest_esp.errors import OperationError
from pytest_esp.rack.lease import holder_of


@pytest.fixture
def op(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    rack = tmp_path / "boards.toml"
    rack.write_text(
        '[boards.c3]\nbackend="sim"\nchip="esp32c3"\n[boards.guarded]\nbackend="sim"\nchip="esp32"\nallow=["read"]\n'
    )

    def run(*arguments):
        result = CliRunner().invoke(cli, ["op", "--rack", str(rack), *map(str, arguments)])
        from pytest_esp.rack.config import load_rack

        loaded = load_rack(rack)
        assert not [spec.name for spec in loaded.boards.values() if holder_of(spec, loaded)]
        return result

    return run


def test_without_a_name_all_are_listed(op):
    from pytest_esp.operations.esp import load_all

    lines = op().output.splitlines()
    named = [line.split()[:2] for line in lines if line.startswith("  ") and not line.startswith("   ")]
    assert sorted(name for name, _ in named) == sorted(load_all())
    assert ["efuse-burn", "burn"] in named
    assert ["firmware-merge", "files"] in named
    assert ["production-batch-program", "erase"] in named
    groups = [line.partition(":")[0] for line in lines if line[:1].strip()][1:]
    assert groups == sorted({name.partition("-")[0] for name in load_all()})


def test_an_operation_as_json(op, tmp_path):
    image = tmp_path / "image.bin"
    image.write_bytes(b"hello" * 1000)
    written = json.loads(op("flash-write", "--board", "c3", "--json", f"firmware={image}", "address=0x10000").output)
    assert (written["success"], written["port"]) == (True, "c3")
    read = json.loads(op("flash-read", "--board", "c3", "--json", "address=64KB", "size=5").output)
    assert bytes.fromhex(read["data"]) == b"hello"


def test_lists_are_written_as_json(op):
    pairs = json.dumps([["0x10000", __file__]])
    assert json.loads(op("flash-write", "--board", "c3", "--json", f"firmware={pairs}").output)["success"]


def test_for_people(op, build_of):
    """Lines, and a table of records, with formatted addresses and sizes; plain text if not on a terminal."""
    done = op("flash-write", "--board", "c3", f"firmware={build_of('esp32c3')}")
    assert "verified: yes\n" in done.stdout
    assert "chip type: esp32c3\n" in op("chip-identify", "--board", "c3").stdout
    table = op("partitions-read", "--board", "c3").stdout
    assert "offset: 0x8000\n" in table
    rows = [line.split() for line in table.splitlines() if line.startswith("  ")]
    assert rows[0][:5] == ["name", "type", "subtype", "offset", "size"]
    assert rows[3][:5] == ["factory", "app", "factory", "0x10000", "256KB"]
    assert not any(mark in table for mark in ("\x1b", "{", "\u2500"))


def test_bytes_are_printed_when_they_are_asked_for(op, tmp_path):
    """They go to output_file, or are counted; --hex dumps them with their addresses."""
    (tmp_path / "image.bin").write_bytes(b"hello, world 1234" * 100)
    op("flash-write", "--board", "c3", f"firmware={tmp_path / 'image.bin'}", "address=0x10000")
    read = ("flash-read", "--board", "c3", "address=0x10000", "size=20")
    counted = op(*read).stdout
    assert "data: 20 bytes (output_file=FILE saves them, --hex prints them)\n" in counted
    assert "6865" not in counted
    dump = op(*read, "--hex").stdout
    assert "  00010000  68 65 6c 6c 6f 2c 20 77 6f 72 6c 64 20 31 32 33  hello, world 123\n" in dump
    assert "  00010010  34 68 65 6c" in dump
    saved = op(*read, f"output_file={tmp_path / 'out.bin'}").stdout
    assert f"output file: {tmp_path / 'out.bin'}\n" in saved
    assert (tmp_path / "out.bin").read_bytes() == b"hello, world 1234hel"


def test_arguments_as_options(op):
    """As in other command lines. A flag alone means true, and lists can be written without JSON."""
    asked = op("flash-read", "--board", "c3", "--address", "0x10", "--size=4", "--json")
    assert json.loads(asked.stdout)["address"] == 16
    assert "--json" in op("flash-read", "--help").stdout
    found = json.loads(op("products-recommend", "--wifi-6", "--count", "1", "--json").stdout)
    assert len(found["products"]) == 1
    compared = op("products-compare", "chips=esp32c3,esp32c6").stdout
    assert "names: ESP32-C3, ESP32-C6\n" in compared
    assert ["sram", "400KB", "512KB"] in [line.split() for line in compared.splitlines()]


def test_the_help_of_an_operation(op):
    """Every parameter with its description, type and default, as text."""
    text = op("flash-read", "--help").stdout
    assert text.startswith("Usage: pytest-esp op flash-read [--board NAME] address=... size=...")
    words = " ".join(text.split())
    assert "address of the first byte. [number|text; required]" in words
    assert "overwrite replace output_file if it exists. [true|false; default: false]" in words
    assert "[auto|wire; default: auto]" in words
    assert "reads the board" in words
    assert "irreversible" in op("efuse-burn", "-h").stdout
    less = " ".join(op("production-write-calibration-data", "--help").stdout.split())
    assert "without to_efuse: writes to the board" in less
    assert "[list; required]" in op("production-batch-program", "--help").stdout


def test_help_of_operations_has_no_markup(op):
    from pytest_esp.cli.op_help import plain
    from pytest_esp.operations.esp import load_all

    for name in (*load_all(), None):
        text = op(*filter(None, [name]), "--help").stdout
        assert "`" not in text, name
        assert not re.search(r"(?<![\w*/-])\*\w+\*", text), name
    assert "`" not in op().stdout
    assert plain("``a`` is `b.c` of *this one*, line-* and 2 * 3 * 4") == "a is b.c of this one, line-* and 2 * 3 * 4"


@pytest.mark.parametrize("arguments", ["", "rack", "doctor", "check", "sim", "qemu", "qemu serve", "qemu install"])
def test_help_of_commands_has_no_markup(arguments):
    text = CliRunner().invoke(cli, [*arguments.split(), "--help"]).output
    assert text.startswith("Usage:")
    assert "`" not in text


def test_a_hint_names_commands(op, monkeypatch):
    """Operations are named by their names; the command line shows how it calls them."""
    from pytest_esp.operations.esp import load_all

    entry = load_all()["flash-status"]

    def fails(link):
        raise OperationError("it failed", hint="flash-size-detect finds the size; not reflash-read or flash-readers")

    monkeypatch.setitem(load_all(), "flash-status", dataclasses.replace(entry, function=fails))
    record = json.loads(op("flash-status", "--board", "c3", "--json").output)
    assert record["hint"] == "pytest-esp op flash-size-detect finds the size; not reflash-read or flash-readers"


def test_operations_that_lease_by_name_take_the_same_options(op):
    """--board, --rack and --wait are passed to them."""
    found = json.loads(op("production-quality-control", "--board", "c3", "tests=false", "boot_wait_seconds=0.2",
                          "--json").output)  # fmt: skip
    assert (found["success"], found["port"], found["passed"]) == (True, "c3", False)
    assert "no board 'c4'" in op("production-run-tests", "--board", "c4", "--json").output


def test_progress_is_printed_to_stderr(op, monkeypatch):
    """Not on a terminal: a line every few seconds, and no line for quick operations."""
    import pytest_esp.cli.op_progress

    assert op("flash-analyze", "--board", "c3").stderr == ""
    monkeypatch.setattr(pytest_esp.cli.op_progress, "_QUIET", 0.0)
    done = op("flash-analyze", "--board", "c3")
    assert "flash-analyze: 100 %\n" in done.stderr
    assert "%" not in done.stdout
    assert json.loads(op("flash-analyze", "--board", "c3", "--json").output)["success"]


@pytest.mark.skipif(sys.platform == "win32", reason="ptys are POSIX")
def test_on_a_terminal_there_are_a_bar_and_a_table(tmp_path):
    """In a separate process with a pty: bar and headings contain control sequences."""
    import pty

    (tmp_path / "boards.toml").write_text('[boards.c3]\nbackend="sim"\nchip="esp32c3"\n')
    main, terminal = pty.openpty()
    environment = os.environ | {"PYTEST_ESP_LOCK_DIR": str(tmp_path), "TERM": "xterm", "COLUMNS": "150"}
    command = [sys.executable, "-c", "from pytest_esp.cli.main import main; main()", "op", "flash-analyze"]
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, cwd=tmp_path, env=environment):
        os.close(terminal)
        said = b""
        with contextlib.suppress(OSError):
            while chunk := os.read(main, 4096):
                said += chunk
    os.close(main)
    text = said.decode()
    assert "100%" in text
    assert "\u2501" in text
    assert "\x1b[1m" in text
    assert "flash size: 4MB" in text


def test_control_characters_of_a_board_do_not_reach_the_terminal(op):
    """Colours are dropped, other sequences shown; see C5."""
    from pytest_esp.cli.op_result import Report

    @dataclasses.dataclass(frozen=True)
    class Said:
        output: str
        line: str

    said = Said("a\x1b[31mred\x1b[0m\n\x1b]52;c;aGk=\x07", "\x9b2J")
    parts = list(Report(said).parts(said))
    assert parts == ["output:", "  ared", "  \\x1b]52;c;aGk=\\x07", "line: \\x9b2J"]


@pytest.mark.in_process
def test_a_burn_prints_its_plan_first(op):
    burnt = op("efuse-burn", "--board", "c3", "efuse_name=UART_PRINT_CONTROL", "value=2", "--json")
    assert json.loads(burnt.stdout)["burnt_bits"] == 1
    assert burnt.stderr == ("to be burnt on c3 (irreversible on a real board):\n  UART_PRINT_CONTROL: 00 -> 10\n")
    mac = op("efuse-burn", "--board", "c3", "efuse_name=CUSTOM_MAC", "value=00:11:22:33:44:55").stderr
    assert "  CUSTOM_MAC: 0x000000000000 -> 0x554433221100\n" in mac
    key = "5a" * 32
    secret = op("efuse-burn", "--board", "c3", "efuse_name=BLOCK_KEY0", f"value={key}")
    assert "  BLOCK_KEY0: a key\n" in secret.stderr
    assert key not in secret.output


def test_no_plan_is_printed_for_refused_or_finished_burns(op):
    assert not op("efuse-burn", "--board", "c3", "efuse_name=DIS_PAD_JTAG", "value=0").stderr
    refused = op("efuse-burn", "--board", "c3", "efuse_name=DIS_PAD_JTAG", "value=7", "--json")
    assert refused.exit_code == 1
    assert not refused.stderr


@pytest.mark.in_process
def test_a_procedure_prints_all_that_it_burns(op, build_of, tmp_path):
    (tmp_path / "key").write_bytes(bytes(range(32)))
    done = op("encryption-enable", "--board", "c3", f"firmware={build_of('esp32c3')}", f"key_file={tmp_path / 'key'}")
    assert done.exit_code == 0, done.output
    assert done.stderr.count("to be burnt on c3") == 1
    assert "  BLOCK_KEY0: a key\n" in done.stderr
    assert "  SPI_BOOT_CRYPT_CNT: 000 -> 001\n" in done.stderr


@pytest.fixture
def without_rack(tmp_path, monkeypatch):
    """A folder without a rack file; returns a function that runs ``pytest-esp op`` there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTEST_ESP_RACK", str(tmp_path / "none.toml"))
    return lambda *arguments: CliRunner().invoke(cli, ["op", *map(str, arguments)])


def test_file_operations_need_neither_board_nor_rack(without_rack, build_of, tmp_path):
    lines = without_rack().output.splitlines()
    assert any(line.split()[:2] == ["firmware-merge", "files"] for line in lines)
    build = build_of("esp32c3")
    made = json.loads(without_rack("firmware-merge", f"files={build}", "output-file=all.bin", "--json").output)
    assert (made["success"], made["port"], made["format"]) == (True, None, "raw")
    pairs = json.dumps([{"address": "0x0", "path": str(tmp_path / "all.bin")}])
    assert without_rack("firmware-merge", f"files={pairs}", "output_file=again.hex").output.startswith(
        "output file: again.hex\n"
    )
    analysis = json.loads(without_rack("firmware-analyze", "binary_file=all.bin", "--json").output)
    assert [image["kind"] for image in analysis["images"]] == ["image", "app"]
    sizes = json.loads(
        without_rack("firmware-size", f"elf_file={build / 'pytest_esp_test.elf'}", "top=2", "--json").output
    )
    assert (sizes["chip_type"], len(sizes["symbols"])) == ("esp32c3", 2)
    config = json.dumps({"image": str(build / "bootloader" / "bootloader.bin"), "flash_size": "8MB"})
    made = json.loads(
        without_rack(
            "firmware-bootloader", "chip_type=esp32c3", f"config={config}", "output_file=b.bin", "--json"
        ).output
    )
    assert made["image"]["flash_size"] == "8MB"


def test_errors_of_file_operations_as_json(without_rack, tmp_path):
    for arguments, error, hint in [
        (("firmware-size", "elf_file=none.elf"), "none.elf cannot be read", ""),
        (("firmware-size",), "firmware-size requires elf_file", "ELF file as written by the linker"),
        (
            ("firmware-size", "elf_file=x", "--board", "c3"),
            "firmware-size does not use a board",
            "leave out --board c3",
        ),
        (("firmware-merge", "files=[[0", "output_file=x"), "invalid JSON", "files and their addresses"),
        (("firmware-merge", 'files=[{"a": 1}]', "output_file=x"), "files: Input should", "files and their addresses"),
        (("firmware-optimize", "binary_file=x", "output_dir=y", "prefer=speed"), "should be 'bytes' or 'time'", ""),
    ]:
        result = without_rack(*arguments, "--json")
        record = json.loads(result.output)
        assert (result.exit_code, record["success"], record["port"]) == (1, False, "c3" if "c3" in arguments else None)
        assert error in record["error"]
        assert hint in (record["hint"] or "")


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (("flash-reed", "--board", "c3"), "unknown operation 'flash-reed'", "flash-read"),
        (("flash-read", "--board", "c3", "start=0"), "flash-read does not take the argument 'start=0'", "address=..."),
        (("flash-read", "--board", "c3", "address"), "does not take the argument 'address'", "address=..."),
        (("flash-read", "--board", "c3", "address=0"), "flash-read requires size", "in bytes"),
        (("flash-read", "--board", "c3", "address=x", "size=4"), "invalid address", ""),
        (("flash-write", "--board", "c3", "firmware=[1"), "invalid JSON", ""),
        (("chip-reset", "--board", "c3", "to=moon"), "to=moon: Input should be 'app' or 'bootloader'", ""),
        (("chip-identify", "--board", "c4"), "no board 'c4'", ""),
        (("chip-identify",), "2 boards, and none was selected", "c3, guarded"),
        (("flash-erase", "--board", "guarded", "region=all"), "requires 'erase'; this board allows: read", "allow"),
    ],
)
def test_errors_as_json(op, arguments, error, hint):
    result = op(*arguments, "--json")
    record = json.loads(result.output)
    assert (result.exit_code, record["success"]) == (1, False)
    assert error in record["error"]
    assert hint in (record["hint"] or "")


@pytest.mark.parametrize("name", ["esptool.cfg", "tox.ini"])
@pytest.mark.parametrize("setting", ["timeout = abc", "connect_attempts = 1.5"])
def test_a_wrong_configuration_file_of_esptool(tmp_path, name, setting):
    """esptool reads it when it is imported: the message names it, on the command line and under pytest."""
    (tmp_path / name).write_text(f"[esptool]\n{setting}\n")
    (tmp_path / "boards.toml").write_text('[boards.a]\nbackend="sim"\nchip="esp32"\n')
    (tmp_path / "test_it.py").write_text("def test_it(esp):\n    esp.chip.identify()\n")
    (tmp_path / "app.bin").write_bytes(b"x")
    command = ["pytest_esp.cli.main", "op", "firmware-analyze", "binary_file=app.bin"]
    start = "import sys; from pytest_esp.cli.main import main; sys.argv[1:] = sys.argv[2:]; main()"
    for arguments in (["-c", start, *command], ["-m", "pytest", "-q", "-p", "no:cacheprovider"]):
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert "esptool's configuration file has an invalid value" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000])
def test_json_that_is_nested_too_deeply(op, text):
    result = op("production-provision", f"config={text}")
    assert result.exit_code
    assert isinstance(result.exception, (OperationError, SystemExit))
