"""``pytest-esp op``: operations from the command line."""

import json

import pytest
from click.testing import CliRunner

from pytest_esp.cli.main import cli
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
    assert {line.split()[0] for line in lines} == set(load_all())
    assert any(line.split()[:2] == ["efuse-burn", "burn"] for line in lines)


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


def test_for_people(op):
    output = op("chip-identify", "--board", "c3").output
    assert "chip_type: esp32c3\n" in output


def test_a_burn_prints_its_plan_first(op):
    burnt = op("efuse-burn", "--board", "c3", "name=UART_PRINT_CONTROL", "value=2", "--json")
    assert json.loads(burnt.stdout)["burnt_bits"] == 1
    assert burnt.stderr == (
        "will be burnt on c3, which cannot be undone on a real board:\n"
        "  UART_PRINT_CONTROL = 2 (1 bit)\n"
        "    UART_PRINT_CONTROL: 00 -> 10\n"
    )
    mac = op("efuse-burn", "--board", "c3", "name=CUSTOM_MAC", "value=00:11:22:33:44:55").stderr
    assert "    CUSTOM_MAC: 0x000000000000 -> 0x554433221100\n" in mac
    key = "5a" * 32
    secret = op("efuse-burn", "--board", "c3", "name=BLOCK_KEY0", f"value={key}")
    assert "  BLOCK_KEY0 = (a key) (128 bits)\n    BLOCK_KEY0: a key\n" in secret.stderr
    assert key not in secret.output


def test_nothing_is_announced_that_is_refused_or_burnt_already(op):
    assert not op("efuse-burn", "--board", "c3", "name=DIS_PAD_JTAG", "value=0").stderr
    refused = op("efuse-burn", "--board", "c3", "name=DIS_PAD_JTAG", "value=7", "--json")
    assert refused.exit_code == 1
    assert not refused.stderr


def test_a_procedure_prints_all_that_it_burns(op, build_of, tmp_path):
    (tmp_path / "key").write_bytes(bytes(range(32)))
    done = op("encryption-enable", "--board", "c3", f"firmware={build_of('esp32c3')}", f"key_file={tmp_path / 'key'}")
    assert done.exit_code == 0, done.output
    assert done.stderr.count("will be burnt on c3") == 1
    assert "    BLOCK_KEY0: a key\n" in done.stderr
    assert "    SPI_BOOT_CRYPT_CNT: 000 -> 001\n" in done.stderr


@pytest.fixture
def without_rack(tmp_path, monkeypatch):
    """A folder without a rack file; returns a function that runs ``pytest-esp op`` there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTEST_ESP_RACK", str(tmp_path / "none.toml"))
    return lambda *arguments: CliRunner().invoke(cli, ["op", *map(str, arguments)])


def test_files_alone_need_neither_board_nor_rack(without_rack, build_of, tmp_path):
    lines = without_rack().output.splitlines()
    assert any(line.split()[:2] == ["firmware-merge", "files"] for line in lines)
    build = build_of("esp32c3")
    made = json.loads(without_rack("firmware-merge", f"files={build}", "output-file=all.bin", "--json").output)
    assert (made["success"], made["port"], made["format"]) == (True, None, "raw")
    pairs = json.dumps([["0x0", str(tmp_path / "all.bin")]])
    assert without_rack("firmware-merge", f"files={pairs}", "output_file=again.hex").output.startswith(
        "output_file: again.hex\n"
    )
    analysis = json.loads(without_rack("firmware-analyze", "binary_file=all.bin", "--json").output)
    assert [image["kind"] for image in analysis["images"]] == ["image", "app"]
    sizes = json.loads(
        without_rack("firmware-size", f"elf_file={build / 'pytest_esp_test.elf'}", "top=2", "--json").output
    )
    assert (sizes["chip"], len(sizes["symbols"])) == ("esp32c3", 2)
    loader = build / "bootloader" / "bootloader.bin"
    made = json.loads(
        without_rack(
            "firmware-bootloader", "chip=esp32c3", f"image={loader}", "output_file=b.bin", "flash_size=8MB", "--json"
        ).output
    )
    assert made["image"]["flash_size"] == "8MB"


def test_what_goes_wrong_with_files_is_a_record(without_rack, tmp_path):
    for arguments, error, hint in [
        (("firmware-size", "elf_file=none.elf"), "none.elf cannot be read", ""),
        (("firmware-size",), "firmware-size needs elf_file", "as the linker made it"),
        (
            ("firmware-size", "elf_file=x", "--board", "c3"),
            "firmware-size works on files alone",
            "leave out --board c3",
        ),
        (("firmware-merge", "files=[[0", "output_file=x"), "this is not JSON", "pairs of address and file"),
        (("firmware-merge", 'files=[{"a": 1}]', "output_file=x"), "files: Input should", "pairs of address and file"),
        (("firmware-optimize", "firmware=x", "output_dir=y", "prefer=speed"), "should be 'bytes' or 'time'", ""),
    ]:
        result = without_rack(*arguments, "--json")
        record = json.loads(result.output)
        assert (result.exit_code, record["success"], record["port"]) == (1, False, "c3" if "c3" in arguments else None)
        assert error in record["error"]
        assert hint in (record["hint"] or "")


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (("flash-reed", "--board", "c3"), "there is no operation 'flash-reed'", "flash-read"),
        (("flash-read", "--board", "c3", "start=0"), "'start=0' is no argument of flash-read", "address=..."),
        (("flash-read", "--board", "c3", "address"), "'address' is no argument", "address=..."),
        (("flash-read", "--board", "c3", "address=0"), "flash-read needs size", "in bytes"),
        (("flash-read", "--board", "c3", "address=x", "size=4"), "the address is wrong", ""),
        (("flash-write", "--board", "c3", "firmware=[1"), "this is not JSON", ""),
        (("chip-reset", "--board", "c3", "to=moon"), "to=moon: Input should be 'app' or 'bootloader'", ""),
        (("chip-identify", "--board", "c4"), "no board 'c4'", ""),
        (("chip-identify",), "2 boards, and none was selected", "c3, guarded"),
        (("flash-erase", "--board", "guarded", "region=all"), "it needs 'erase', and allows read", "allow"),
    ],
)
def test_what_goes_wrong_is_a_record(op, arguments, error, hint):
    result = op(*arguments, "--json")
    record = json.loads(result.output)
    assert (result.exit_code, record["success"]) == (1, False)
    assert error in record["error"]
    assert hint in (record["hint"] or "")
