"""A wrong boards.toml is refused with file, line, key, what was expected and the nearest valid name."""

from pathlib import Path

import pytest

from pytest_esp.errors import NoMatchError, RackError
from pytest_esp.rack.config import load_rack
from pytest_esp.rack.requirement import Requirement

SERIAL = '[boards.a]\nbackend = "serial"\nchip = "esp32"\n'
SIM = '[boards.a]\nbackend = "sim"\nchip = "esp32"\n'
LAB = '[boards.a]\nbackend = "labgrid"\ncoordinator = "lab.example:20408"\n'


def rack_of(tmp_path: Path, text: str):
    path = tmp_path / "boards.toml"
    path.write_text(text)
    return load_rack(path)


def test_a_whole_rack(tmp_path):
    rack = rack_of(
        tmp_path,
        """
[rack]
name = "bench-3"
lock_dir = "locks"

[boards.c3-devkit]
backend = "serial"
chip = "esp32c3"
port = "/dev/ttyUSB7"
baud = 921600
flash_size = "4MB"
features = ["usb-jtag", "led"]
allow = ["read", "write", "erase", "burn"]
allow_burn = ["CUSTOM_MAC"]
power = { off = "true", on = "true" }

[boards.virtual-s3]
backend = "sim"
chip = "esp32s3"
flash_size = "8MB"
flash_file = "flash/s3.bin"

[boards.many]
backend = "sim"
chip = "esp32c6"
count = 3

[boards.qemu-esp32]
backend = "qemu"
chip = "esp32"

[boards.far]
backend = "labgrid"
chip = "esp32"
coordinator = "lab.example:20408"
place = "esp32-far-1"
""",
    )
    assert rack.name == "bench-3"
    assert rack.lock_dir == tmp_path / "locks"
    assert list(rack.boards) == ["c3-devkit", "virtual-s3", "many-1", "many-2", "many-3", "qemu-esp32", "far"]
    devkit = rack.boards["c3-devkit"]
    assert devkit.flash_size == 4 * 1024 * 1024
    assert devkit.power is not None
    assert rack.boards["virtual-s3"].flash_file == tmp_path / "flash" / "s3.bin"
    assert rack.boards["virtual-s3"].allow == {"read", "write", "erase", "burn"}
    assert rack.boards["many-2"].name == "many-2"


def test_a_real_board_may_not_be_burnt_unless_it_says_so(tmp_path):
    rack = rack_of(tmp_path, '[boards.a]\nbackend = "serial"\nchip = "esp32"\nport = "/dev/ttyUSB0"\n')
    assert rack.boards["a"].allow == {"read", "write", "erase"}


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        (SIM + 'flahs_size = "4MB"\n', 4, ["unknown key `flahs_size`", "flash_size"]),
        (SIM + "faults = { to_host = { latancy = 1 } }\n", 4, ["unknown key `latancy`", "nearest: latency"]),
        (SIM + "faults = { vanish = 1 }\n", 4, ["unknown key `vanish`", "vanish_after"]),
        ('[boards.a]\nbackend = "sim"\nchip = "esp32c33"\n', 3, ["'esp32c33'", "nearest: esp32c3"]),
        ('[boards.a]\nbackend = "sin"\nchip = "esp32"\n', 2, ["'sin'", "sim"]),
        ('[boards.a]\nchip = "esp32"\n', 1, ["`backend` is missing"]),
        (SIM + 'flash_size = "four"\n', 4, ["not 'four'"]),
        (SIM + "count = 0\n", 4, ["greater than or equal to 1"]),
        (SIM + 'port = "/dev/ttyUSB0"\n', 4, ["`port` is for serial boards"]),
        ('[boards.a]\nbackend = "serial"\nchip = "esp32"\n', 1, ["needs its `port`"]),
        (SIM + 'allow = ["reed"]\n', 4, ["'read'", "'reed'", "nearest: read"]),
        (SIM + 'allow = "read"\n', 4, ["`allow`", "a list of names"]),
        (SIM + 'count = "4"\n', 4, ["`count`", "integer", "'4'"]),
        (SIM + "baud = true\n", 4, ["`baud`", "integer"]),
        (SIM + "flash_size = 0\n", 4, ["greater than 0"]),
        (SIM + 'app = "my app"\n', 4, ["`app`", "'my app'"]),
        (SIM + 'count = 2\nflash_file = "a.bin"\n', 5, ["cannot be shared"]),
        (SIM + 'flash_file = "x"\n[boards.b]\nbackend="sim"\nchip="esp32"\nflash_file = "./x"\n', 8, ["board 'a'"]),
        (SIM + "allow_burn = []\n", 4, ["for serial and labgrid boards"]),
        (SERIAL + 'port = "usb:303a:100"\n', 4, ["usb:VID:PID:serial=SERIAL"]),
        (SERIAL + 'port = "rfc2217://lab:usb"\n', 4, ["rfc2217://HOST:PORT"]),
        (SERIAL + 'port = "x"\nallow_burn = ["CUSTOM_MAC"]\n', 5, ['`allow` has no "burn"']),
        (SIM + 'mac = "12:34"\n', 4, ["mac", "'12:34'"]),
        ("[rack]\nnme = 'x'\n" + SIM, 2, ["unknown key `nme`", "name"]),
        ("[boreds.a]\n", 1, ["unknown key `boreds`", "boards"]),
        ("[boards]\na = 3\n", 2, ["must be a table"]),
        ("[rack]\nname = 'empty'\n", 1, ["no board"]),
        (
            '[boards.a]\nbackend = "serial"\nchip = "esp32"\nport = "x"\npower = { of = "x", on = "y" }\n',
            5,
            ["`of`", "off"],
        ),
        ('[boards.a]\nbackend = "labgrid"\nchip = "esp32"\n', 1, ["needs its `coordinator`"]),
        (LAB + 'place = "p"\ntags = { chip = "esp32" }\n', 5, ["needs either `place` or `tags`"]),
        (LAB + 'place = "p"\ncount = 2\n', 5, ["`place` selects one board"]),
        ("[boards.a\n", 1, ["invalid TOML"]),
        ("\n[boards.a]\nchip = 'esp32", 3, ["invalid TOML", "end of document"]),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, text, line, expected):
    with pytest.raises(RackError) as caught:
        rack_of(tmp_path, text)
    message = str(caught.value)
    assert f"boards.toml:{line}:" in message
    for part in expected:
        assert part in message


def test_all_errors_are_named_at_once(tmp_path):
    with pytest.raises(RackError) as caught:
        rack_of(tmp_path, '[boards.a]\nbackend = "sim"\nchip = "x"\n[boards.b]\nbackend = "y"\nchip = "esp32"\n')
    assert "boards.toml:3:" in str(caught.value)
    assert "boards.toml:5:" in str(caught.value)


def test_all_errors_of_one_board_are_named_at_once_and_once_each(tmp_path):
    with pytest.raises(RackError) as caught:
        rack_of(tmp_path, '[boards.a]\nbackend = "sim"\nflahs = 1\nplace = "x"\ncount = 0\nbaud = 1\n')
    lines = [line.partition("boards.toml:")[2][:1] for line in str(caught.value).splitlines()]
    assert lines[:-1] == ["1", "3", "4", "5", "6"]  # 1: its chip is missing; the last line is the hint


def test_a_labgrid_board_may_leave_its_chip_to_the_lab(tmp_path):
    """As in the design: the place alone, or tags that may tell the chip."""
    lab = 'backend = "labgrid"\ncoordinator = "lab.example:20408"\n'
    rack = rack_of(tmp_path, f'[boards.a]\n{lab}place = "far"\n[boards.b]\n{lab}tags = {{ chip = "esp32c6" }}\n')
    assert [spec.chip for spec in rack.boards.values()] == ["auto", "esp32c6"]
    assert [spec.name for spec in rack.match(Requirement(chips=("esp32c6",)))] == ["b"]
    assert "not given in boards.toml" in Requirement(chips=("esp32c6",)).why_not(rack.board("a"), asked=True)


@pytest.mark.parametrize("line", ["", 'chip = "auto"\n'])
def test_a_serial_board_may_leave_its_chip_out(tmp_path, line):
    rack = rack_of(tmp_path, f'[boards.a]\nbackend = "serial"\n{line}port = "/dev/ttyUSB0"\n')
    assert rack.board("a").chip == "auto"


def test_a_virtual_board_needs_its_chip(tmp_path):
    for line in ("", 'chip = "auto"\n'):
        with pytest.raises(RackError, match="`chip`"):
            rack_of(tmp_path, f'[boards.a]\nbackend = "sim"\n{line}')


def test_a_file_that_begins_with_a_byte_order_mark(tmp_path):
    assert list(rack_of(tmp_path, "\ufeff" + SIM).boards) == ["a"]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RackError, match=r"cannot read the rack file .*nowhere\.toml: "):
        load_rack(tmp_path / "nowhere.toml")


def test_the_environment_names_a_rack_and_without_any_there_are_four_simulated_chips(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTEST_ESP_RACK", raising=False)
    assert {spec.chip for spec in load_rack().boards.values()} == {"esp32", "esp32s3", "esp32c3", "esp32c6"}
    (tmp_path / "other.toml").write_text(SIM)
    monkeypatch.setenv("PYTEST_ESP_RACK", str(tmp_path / "other.toml"))
    assert list(load_rack().boards) == ["a"]


def test_the_repository_has_the_same_default_rack_as_the_package(monkeypatch, tmp_path):
    own = load_rack(Path(__file__).parents[2] / "boards.toml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTEST_ESP_RACK", raising=False)
    built_in = load_rack()
    assert own.boards == built_in.boards
    assert list(own.boards) == list(built_in.boards)


@pytest.mark.parametrize(
    ("requirement", "names"),
    [
        (Requirement(chips=("esp32", "esp32c6")), ["small", "c6", "unknown"]),
        (Requirement(flash=">=8MB"), ["big"]),
        (Requirement(flash="<8MB"), ["small", "c6"]),
        (Requirement(flash="4MB"), ["small", "c6"]),
        (Requirement(features=("psram",)), ["big"]),
        (Requirement(backends=("sim",), boards=("c6",)), ["c6"]),
        (Requirement(count=3), ["small", "big", "c6", "unknown"]),
    ],
)
def test_matching(tmp_path, requirement, names):
    rack = rack_of(
        tmp_path,
        '[boards.small]\nbackend="sim"\nchip="esp32"\nflash_size="4MB"\n'
        '[boards.big]\nbackend="sim"\nchip="esp32s3"\nflash_size="8MB"\nfeatures=["psram"]\n'
        '[boards.c6]\nbackend="sim"\nchip="esp32c6"\n'  # 4 MB, as it says nothing else
        '[boards.unknown]\nbackend="serial"\nchip="esp32c6"\nport="/dev/ttyUSB0"\n',
    )
    assert [spec.name for spec in rack.match(requirement)] == names


def test_what_can_never_be_had_is_explained_board_by_board(tmp_path):
    rack = rack_of(tmp_path, SIM + 'flash_size = "4MB"\n')
    with pytest.raises(NoMatchError, match=r"a: its chip is esp32, not esp32c3"):
        rack.match(Requirement(chips=("esp32c3",)))
    with pytest.raises(NoMatchError, match=r"its flash size is 4MB, not >=8MB"):
        rack.match(Requirement(flash=">=8MB"))
    with pytest.raises(NoMatchError, match=r"only 1 of 2 boards match"):
        rack.match(Requirement(count=2))
    with pytest.raises(RackError, match="not a valid size or comparison"):
        Requirement(flash=">= lots")
