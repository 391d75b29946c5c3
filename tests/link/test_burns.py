"""The guard below every burn: each way to burn an eFuse of a real board, without a permit and with one.

The real boards are chips in other processes. That each way burns if nobody stops it is shown on virtual boards.
"""

import io
import json
import struct

import pytest
from espefuse.efuse_interface import SUPPORTED_CHIPS, init_commands
from esptool.loader import ESPLoader
from esptool.targets import CHIP_DEFS, CHIP_LIST

from pytest_esp.boards.registry import make_board
from pytest_esp.errors import RefusedError
from pytest_esp.link import burns
from pytest_esp.link.burns import Requests
from pytest_esp.link.fast import FastLoader
from pytest_esp.link.link import Link
from pytest_esp.operations.esp import Esp
from pytest_esp.rack.config import load_rack
from pytest_esp.wire.framing import encode

CHIPS = [chip for chip in CHIP_LIST if chip != "esp8266"]
FLAGS = ("DISABLE_DL_CACHE", "SECURE_BOOT_AGGRESSIVE_REVOKE", "DIS_PAD_JTAG", "DIS_DOWNLOAD_MANUAL_ENCRYPT")


@pytest.fixture
def virtual(tmp_path, make_esp):
    """A function that returns the operations on a simulated chip."""

    def make(chip):
        path = tmp_path / "virtual.toml"
        path.write_text(f'[boards.virtual]\nbackend="sim"\nchip="{chip}"\n')
        return make_esp(load_rack(path), "virtual")

    return make


@pytest.fixture
def real(tmp_path, start_serving, monkeypatch):
    """A function that returns the operations on a chip in another process, which counts as a real board."""
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    links = []

    def make(chip, allow_burn=(), *, enabled=True, named=None, console_port=False, **consent):
        served = start_serving("sim", chip, "--listen", "rfc2217://127.0.0.1:0")
        other = start_serving("sim", chip, "--listen", "socket://127.0.0.1:0").url("socket") if console_port else None
        path = tmp_path / "real.toml"
        path.write_text(
            f'[boards.real]\nbackend="serial"\nchip="{named or chip}"\nport="{served.url("rfc2217")}"\n'
            f'allow=["read","write","erase","burn"]\nallow_burn={json.dumps(list(allow_burn))}\n'
            + (f'console_port="{other}"\n' if other else "")
        )
        rack = load_rack(path)
        links.append(Link(make_board(rack.board("real"), rack), burns_enabled=enabled, **consent))
        return Esp(links[-1])

    yield make
    for link in links:
        link.close()


def flag_of(esp):
    """The name of an eFuse of one bit that closes nothing."""
    fields = esp.efuse.read_all().fields
    return next(name for name in FLAGS if name in fields)


def values(esp):
    """All eFuses that can be read."""
    return {name: field.bits for name, field in esp.efuse.read_all().fields.items()}


def values_for_others(esp):
    """All eFuses, as an unmodified espefuse reads them from the same port."""
    url = esp.link.board.spec.port
    esp.link.keeps_loader = True
    esp.link.close()
    with init_commands(port=url, before="no-reset") as commands:
        return {field.name: str(field.get_bitstring()) for field in commands.efuses if not field.is_field_calculated()}


@pytest.fixture
def recorded(virtual, monkeypatch):
    """A function that returns what espefuse writes to the registers of a chip to burn a flag, and the flag's name."""

    def record(chip):
        esp = virtual(chip)
        name, written = flag_of(esp), []
        with monkeypatch.context() as patch:
            write = ESPLoader.write_reg

            def writing(loader, address, value, mask=0xFFFFFFFF, delay_us=0, delay_after_us=0):
                written.append((address, value, mask, delay_us))
                return write(loader, address, value, mask, delay_us, delay_after_us)

            patch.setattr(FastLoader, "write_reg", writing, raising=False)
            assert esp.efuse.burn(name, 1).verified
        return name, written

    return record


# -- ways to write registers


def by_write_reg(link, written):
    with link.session.use("registers", stub=False) as loader:
        for record in written:
            loader.write_reg(*record)


def by_write_reg_of_the_stub(link, written):
    with link.session.use("registers") as loader:
        for record in written:
            loader.write_reg(*record)


def by_command(link, written):
    with link.session.use("registers", stub=False) as loader:
        for record in written:
            loader.command(0x09, struct.pack("<IIII", *record))


def by_one_command(link, written):
    with link.session.use("registers", stub=False) as loader:
        loader.check_command("registers", 0x09, b"".join(struct.pack("<IIII", *record) for record in written))


def by_esptools_own_command(link, written):
    with link.session.use("registers", stub=False) as loader:
        for record in written:
            ESPLoader.command(loader, 0x09, struct.pack("<IIII", *record))


def by_esptools_own_loader(link, written):
    with link.session.use("registers", stub=False):
        loader = CHIP_DEFS[link.session.chip](link.port, 115200)
        for record in written:
            loader.write_reg(*record)


def frames(written):
    for record in written:
        data = struct.pack("<IIII", *record)
        yield encode(struct.pack("<BBHI", 0, 0x09, len(data), 0) + data)


def by_bytes(link, written):
    with link.session.use("registers", stub=False):
        link.port.write(b"".join(frames(written)))


def by_single_bytes(link, written):
    with link.session.use("registers", stub=False):
        for byte in b"".join(frames(written)):
            link.port.write(bytes([byte]))


def by_the_console(link, written):
    link.reset(bootloader=True)
    link.session.drop()
    for frame in frames(written):
        link.console.write(frame)


BY_REGISTER = [by_write_reg, by_write_reg_of_the_stub, by_command, by_one_command, by_esptools_own_command,
               by_esptools_own_loader, by_bytes, by_single_bytes, by_the_console]  # fmt: skip


@pytest.mark.parametrize("way", BY_REGISTER)
@pytest.mark.parametrize("chip", ["esp32c3", "esp32s3"])
def test_registers_of_a_virtual_board_are_free(virtual, recorded, chip, way):
    name, written = recorded(chip)
    esp = virtual(chip)
    way(esp.link, written)
    esp.link.session.drop()
    assert esp.efuse.read(name).bits == "1"


@pytest.mark.parametrize("way", BY_REGISTER)
@pytest.mark.parametrize("chip", ["esp32", "esp32c3"])
def test_registers_of_a_real_board_are_guarded(real, recorded, chip, way):
    name, written = recorded(chip)
    esp = real(chip, [name])
    before = values(esp)
    with pytest.raises(RefusedError, match="starts to burn eFuses, and was not sent") as caught:
        way(esp.link, written)
    assert caught.value.board == "real"
    assert "esp.efuse.burn" in caught.value.hint
    esp.link.session.drop()
    assert values(esp) == before
    assert values_for_others(esp)[name] == "0b0"
    assert not esp.link.burns.audit_file.exists()


@pytest.mark.parametrize("chip", CHIPS)
def test_the_registers_of_every_chip_are_known(real, recorded, chip):
    name, written = recorded(chip)
    esp = real(chip, [name])
    before = values(esp)
    with pytest.raises(RefusedError, match="starts to burn eFuses"):
        by_write_reg(esp.link, written)
    assert values(esp) == before
    assert esp.efuse.burn(name, 1).verified
    assert {field: bits for field, bits in values(esp).items() if bits != before[field]} == {name: "1"}
    begin, done = map(json.loads, esp.link.burns.audit_file.read_text().splitlines())
    assert (begin["stage"], done["stage"], begin["efuses"], done["verified"]) == ("begin", "done", [name], True)


def test_chips_that_espefuse_knows_are_the_guarded_ones():
    assert set(burns._controllers()) == set(SUPPORTED_CHIPS) - {"linux"} == set(CHIPS)


# -- espefuse's own commands


def key(data=bytes(range(32))):
    file = io.BytesIO(data)
    file.name = "key"
    return file


def burn_all_staged(commands):
    commands.efuses["DIS_PAD_JTAG"].save(1)
    commands.efuses.burn_all()


def burn_in_a_batch(commands):
    commands.use_batch_mode()
    commands.burn_efuse({"DIS_PAD_JTAG": 1})
    commands.burn_all()


BY_ESPEFUSE = {
    "burn_efuse": (lambda commands: commands.burn_efuse({"DIS_PAD_JTAG": 1}), {"DIS_PAD_JTAG"}),
    "burn_bit": (lambda commands: commands.burn_bit("BLOCK_USR_DATA", [0, 9]), {"BLOCK_USR_DATA"}),
    "burn_block_data": (lambda commands: commands.burn_block_data(["BLOCK_USR_DATA"], [key()]), {"BLOCK_USR_DATA"}),
    "burn_custom_mac": (lambda commands: commands.burn_custom_mac("00:11:22:33:44:55"), {"CUSTOM_MAC"}),
    "burn_key": (
        lambda commands: commands.burn_key(["BLOCK_KEY0"], [key()], ["XTS_AES_128_KEY"]),
        {"BLOCK_KEY0", "KEY_PURPOSE_0", "RD_DIS", "WR_DIS"},
    ),
    "write_protect_efuse": (lambda commands: commands.write_protect_efuse(["DIS_PAD_JTAG"]), {"WR_DIS"}),
    "burn": (lambda commands: commands.efuses["DIS_PAD_JTAG"].burn(1), {"DIS_PAD_JTAG"}),
    "burn_all": (burn_all_staged, {"DIS_PAD_JTAG"}),
    "batch": (burn_in_a_batch, {"DIS_PAD_JTAG"}),
}


@pytest.mark.parametrize("way", BY_ESPEFUSE)
def test_espefuses_commands_burn_what_allow_burn_lists(real, way):
    burn, names = BY_ESPEFUSE[way]
    esp = real("esp32c3", names)
    before = values(esp)
    with esp.link.session.use("burning") as loader:
        burn(esp.link.session.espefuse(loader))
    changed = {name for name, bits in values(esp).items() if bits != before[name]}
    assert names <= changed
    logged = [json.loads(line) for line in esp.link.burns.audit_file.read_text().splitlines()]
    assert [entry["stage"] for entry in logged] == ["begin", "done"]
    assert (names <= set(logged[0]["efuses"]), logged[1]["verified"]) == (True, True)


@pytest.mark.parametrize("way", BY_ESPEFUSE)
def test_espefuses_commands_burn_nothing_else(real, way):
    burn, names = BY_ESPEFUSE[way]
    missing = sorted(names)[0]
    esp = real("esp32c3", names - {missing})
    before = values(esp)
    attempt(esp, burn, f"does not allow burning {missing} on this board", f'add "{missing}" to `allow_burn` of')
    assert values(esp) == before
    assert values_for_others(esp)["DIS_PAD_JTAG"] == "0b0"
    assert not esp.link.burns.audit_file.exists()


@pytest.mark.parametrize("way", BY_ESPEFUSE)
def test_espefuses_commands_need_the_consent_of_the_run(real, way):
    burn, names = BY_ESPEFUSE[way]
    esp = real("esp32c3", names, enabled=False)
    before = values(esp)
    attempt(esp, burn, "this run does not allow burning", "--esp-allow-burn")
    assert values(esp) == before


def attempt(esp, burn, message, hint):
    with (
        pytest.raises(RefusedError, match=message) as caught,
        esp.link.session.use("burning") as loader,
    ):
        burn(esp.link.session.espefuse(loader))
    assert hint in caught.value.hint
    esp.link.session.drop()


def test_what_was_refused_is_not_burnt_along_with_the_next(real):
    """Neither what is still staged in espefuse's commands, nor what is in the registers of an ESP32."""
    esp = real("esp32", ["CUSTOM_MAC"])
    with esp.link.session.use("burning", stub=False) as loader:
        commands = esp.link.session.espefuse(loader)
        loader.write_reg(commands.efuses.blocks[0].wr_addr + 4 * 6, 0x3FF)  # JTAG_DISABLE and others
        loader.write_reg(commands.efuses.blocks[1].wr_addr, 0x12345678)
        with pytest.raises(RefusedError, match="does not allow burning JTAG_DISABLE"):
            commands.burn_efuse({"JTAG_DISABLE": 1})
    before = values(esp)
    assert esp.efuse.burn("CUSTOM_MAC", "00:11:22:33:44:55").verified
    changed = {name for name, bits in values(esp).items() if bits != before.get(name)}
    assert changed == {"BLOCK3", "CUSTOM_MAC", "CUSTOM_MAC_CRC", "MAC_VERSION"}


@pytest.mark.parametrize(
    "burn",
    [
        lambda commands: commands.efuses.write_efuses(0),
        lambda commands: commands.efuses.blocks[0].burn(),
        lambda commands: commands.efuses.blocks[0].burn_words([0, 0, 1, 0, 0, 0]),
    ],
    ids=["write_efuses", "block", "words"],
)
def test_parts_of_espefuses_commands_have_no_permit(real, burn):
    esp = real("esp32c3", ["DIS_PAD_JTAG"])
    before = values(esp)
    with esp.link.session.use("burning") as loader:
        commands = esp.link.session.espefuse(loader)
        commands.efuses["DIS_PAD_JTAG"].save(1)
        with pytest.raises(RefusedError, match="starts to burn"):
            burn(commands)
    esp.link.session.drop()
    assert values(esp) == before


def test_espefuse_with_commands_of_its_own(real):
    esp = real("esp32c3", ["DIS_PAD_JTAG"])
    before = values(esp)
    with pytest.raises(RefusedError, match="starts to burn"), esp.link.session.use("burning", stub=False) as loader:
        init_commands(esp=loader, do_not_confirm=True).burn_efuse({"DIS_PAD_JTAG": 1})
    esp.link.session.drop()
    assert values(esp) == before


# -- operations


OPERATIONS = {
    "efuse": lambda esp: esp.efuse.burn("DIS_PAD_JTAG", 1),
    "manufacturing": lambda esp: esp.production.write_manufacturing_data({"serial": "A1"}, to_efuse=True),
}


@pytest.mark.parametrize("allowed", [("DIS_PAD_JTAG", "BLOCK_USR_DATA"), ()])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_are_refused(real, operation, allowed):
    esp = real("esp32c3", allowed, enabled=not allowed)
    with pytest.raises(RefusedError) as caught:
        OPERATIONS[operation](esp)
    assert ("--esp-allow-burn" if allowed else "`allow_burn` of [boards.real]") in caught.value.hint
    assert not [
        name for name, bits in values(esp).items() if name in ("DIS_PAD_JTAG", "BLOCK_USR_DATA") and "1" in bits
    ]


def test_an_operation_announces_logs_and_reads_back(real):
    said = []
    esp = real("esp32c3", ["DIS_PAD_JTAG"], announce=said.append, holder="test_x")
    assert esp.efuse.burn("DIS_PAD_JTAG", 1).verified
    assert said == ["to be burnt on real (irreversible on a real board):\n  DIS_PAD_JTAG: 0 -> 1"]
    done = json.loads(esp.link.burns.audit_file.read_text().splitlines()[-1])
    assert (done["holder"], done["read_back"], done["verified"]) == ("test_x", {"DIS_PAD_JTAG": "1"}, True)
    assert values_for_others(esp)["DIS_PAD_JTAG"] == "0b1"


def test_a_name_in_boards_toml_may_be_any_of_the_efuses_names(real):
    esp = real("esp32", ["flash_encryption"])
    with esp.link.session.use("burning") as loader:
        esp.link.session.espefuse(loader).burn_block_data(["BLOCK1"], [key()])
    assert json.loads(esp.link.burns.audit_file.read_text().splitlines()[0])["efuses"] == ["BLOCK1"]


def test_another_chip_than_the_entry_says(real, recorded):
    """Its registers are guarded before it is known."""
    esp = real("esp32c3", named="esp32")
    with pytest.raises(RefusedError, match="starts to burn"):
        esp.link.port.write(b"".join(frames(recorded("esp32c3")[1])))


def test_a_console_port_of_its_own(real):
    """Some chips' loaders answer at both ports. Each is followed by itself."""
    esp = real("esp32c3", console_port=True)
    evil = request(0x09, CMD["esp32c3"], 2, 0xFFFFFFFF, 0)
    with pytest.raises(RefusedError, match="starts to burn"):
        esp.link.console.write(evil)
    esp.link.console.write(evil[:9])
    esp.link.port.write(b"\xc0")
    with pytest.raises(RefusedError, match="starts to burn"):
        esp.link.console.write(evil[9:])


# -- requests


CMD = {chip: burns._controllers()[chip] + burns.command_register(chip)[0] for chip in CHIPS}


def request(command, *words, data=b""):
    packet = struct.pack(f"<{len(words)}I", *words) + data
    return encode(struct.pack("<BBHI", 0, command, len(packet), 0) + packet)


def starts(chip, *requests):
    seen = Requests(lambda: chip)
    return [seen.starts_a_burn(one) for one in requests][-1]


@pytest.mark.parametrize("chip", CHIPS)
def test_requests_that_only_read(chip):
    register, base = CMD[chip], burns._controllers()[chip]
    for value in (0x1, 0x0, 0x1 | 3 << 2):
        assert not starts(chip, request(0x09, register, value, 0xFFFFFFFF, 0))
    for offset in range(0, 0x200, 4):
        if base + offset != register:
            assert not starts(chip, request(0x09, base + offset, 0x5AA5 | 0x2, 0xFFFFFFFF, 0))
    assert not starts(chip, request(0x0A, register))
    assert not starts(chip, request(0x08, register, 2, 0xFFFFFFFF, 0))


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("known", [True, False])
def test_requests_that_burn(chip, known):
    register, other = CMD[chip], (0x3FC80000, 2, 0xFFFFFFFF, 0)
    told = chip if known else None
    for value, mask in ((2, 0xFFFFFFFF), (2, 2), (3, 0), (2 | 4 << 2, 0xFFFFFFFF)):
        assert starts(told, request(0x09, register, value, mask, 0))
    assert starts(told, request(0x09, register + 1, 2, 0xFFFFFFFF, 0))
    assert starts(told, request(0x09, *other, *other, register, 2, 0xFFFFFFFF, 0))
    assert starts(told, request(0x09, *other, register, 2))
    assert starts(told, request(0x09, register))
    assert starts(told, b"\xc0\xc0junk" + request(0x09, register, 2, 0xFFFFFFFF, 0))
    assert starts(told, request(0x08) + request(0x09, register, 2, 0xFFFFFFFF, 0)[1:])  # one END for two frames


@pytest.mark.parametrize("chip", CHIPS)
def test_requests_that_write_memory(chip):
    register = CMD[chip]
    block = request(0x07, 4, 0, 0, 0, data=bytes(4))
    assert starts(chip, request(0x05, 4, 1, 4, register))
    assert starts(chip, request(0x05, 4, 4, 0x100, register - 0x200))
    assert not starts(chip, request(0x05, 0x2000, 8, 0x400, 0x3FC80000), block)
    near = request(0x05, 4, 1, 4, register - 4)
    assert not starts(chip, near, block)
    assert starts(chip, near, block, block)  # more than was announced
    assert starts(chip, near, request(0x07, 4, 1, 0, 0, data=bytes(4)))
    assert starts(chip, near, request(0x07, 8, 0, 0, 0, data=bytes(8)))


@pytest.mark.parametrize("chip", ["esp32", "esp32s2"])
def test_the_other_bus_to_the_controller(chip):
    assert starts(chip, request(0x09, 0x60000000 + (CMD[chip] & 0x3FFFF), 2, 0xFFFFFFFF, 0))
    assert not starts("esp32c3", request(0x09, 0x60000000 + (CMD[chip] & 0x3FFFF), 2, 0xFFFFFFFF, 0))


def test_a_register_of_another_chip_is_not_guarded():
    assert not starts("esp32s3", request(0x09, CMD["esp32c2"], 2, 0xFFFFFFFF, 0))


def test_what_is_refused_was_not_sent(real):
    """A frame that was begun before a refused one goes on after it."""
    esp = real("esp32c3")
    evil = request(0x09, CMD["esp32c3"], 2, 0xFFFFFFFF, 0)
    link = esp.link
    link.port.write(evil[:12])
    for rest in (evil[12:] + b"\xc0junk", evil[12:], evil[12:-1], evil[12:14], b"\xc0" + evil[:-1]):
        with pytest.raises(RefusedError):
            link.port.write(rest)
    assert Esp(link).efuse.read("DIS_PAD_JTAG").bits == "0"


def test_a_frame_that_was_begun_before_the_port_was_opened_again(real):
    esp = real("esp32c3")
    evil = request(0x09, CMD["esp32c3"], 2, 0xFFFFFFFF, 0)
    esp.link.port.write(evil[:11])
    esp.link.close()
    with pytest.raises(RefusedError):
        esp.link.port.write(evil[11:])
