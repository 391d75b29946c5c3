"""Several burns in order, the plan printed before them, hidden keys, and verification."""

import json
import os
import re
import threading

import pytest

from pytest_esp import secrets
from pytest_esp.errors import LinkError, OperationError, RefusedError
from pytest_esp.link import burns
from pytest_esp.operations.esp import Esp
from pytest_esp.operations.security import efuse


@pytest.fixture
def esp(esp_of):
    return esp_of("esp32c3")


# -- in order


def test_several_are_burnt_in_order(esp):
    plans = efuse.plan_all(esp.link, [("DIS_PAD_JTAG", 1), ("UART_PRINT_CONTROL", 3)])
    assert [(plan.efuse_name, plan.before, plan.after, plan.new_bits) for plan in plans] == [
        ("DIS_PAD_JTAG", "0", "1", 1),
        ("UART_PRINT_CONTROL", "00", "11", 2),
    ]
    results = efuse.burn_all(esp.link, [("UART_PRINT_CONTROL", 3), ("DIS_PAD_JTAG", True)])
    assert [(one.efuse_name, one.value_requested, one.burnt_bits, one.verified) for one in results] == [
        ("UART_PRINT_CONTROL", "3", 2, True),
        ("DIS_PAD_JTAG", "1", 1, True),
    ]


def test_nothing_is_burnt_if_one_of_them_cannot_be(esp):
    with pytest.raises(OperationError, match="invalid value"):
        efuse.burn_all(esp.link, [("DIS_PAD_JTAG", 1), ("UART_PRINT_CONTROL", 4)])
    assert esp.efuse.read("DIS_PAD_JTAG").meaning is False


@pytest.mark.parametrize("hint", ["look at the supply", None])
def test_a_burn_that_fails_names_what_is_burnt_and_what_is_left(esp, monkeypatch, hint):
    burn = efuse._burn
    esp.efuse.burn("DIS_FORCE_DOWNLOAD", 1)

    def fail_at_the_third(link, commands, intent):
        if intent.plan.efuse_name == "UART_PRINT_CONTROL":
            raise OperationError("the supply is too low", hint=hint)
        burn(link, commands, intent)

    monkeypatch.setattr(efuse, "_burn", fail_at_the_third)
    names = ("DIS_FORCE_DOWNLOAD", "DIS_PAD_JTAG", "UART_PRINT_CONTROL", "DIS_USB_JTAG")
    with pytest.raises(OperationError, match="supply is too low") as caught:
        efuse.burn_all(esp.link, [(name, 1) for name in names])
    assert caught.value.details["burnt"] == ["DIS_PAD_JTAG"]  # the first was burnt before
    words = "burnt already: DIS_PAD_JTAG; still to be burnt: UART_PRINT_CONTROL, DIS_USB_JTAG"
    assert caught.value.hint == words + (f"; {hint}" if hint else "")
    with pytest.raises(OperationError) as caught:
        efuse.burn_all(esp.link, [("UART_PRINT_CONTROL", 1)])
    assert caught.value.details["burnt"] == []
    assert caught.value.hint.startswith("burnt already: nothing; still to be burnt: UART_PRINT_CONTROL")


# -- what is said before


@pytest.fixture
def announced(esp):
    said = []
    esp.link.burns.announce = said.append
    return said


def test_each_bit_is_announced_before_it_is_burnt(esp, announced):
    esp.efuse.burn("DIS_PAD_JTAG", 1)
    assert announced == ["to be burnt on esp32c3 (irreversible on a real board):\n  DIS_PAD_JTAG: 0 -> 1"]
    efuse.burn_all(esp.link, [("DIS_PAD_JTAG", 1), ("UART_PRINT_CONTROL", 3), ("SECURE_VERSION", 5)])
    assert [said.splitlines()[1:] for said in announced[1:]] == [
        ["  UART_PRINT_CONTROL: 00 -> 11", "  SECURE_VERSION: 0x0000 -> 0x0005"]
    ]


def test_what_is_burnt_already_is_not_announced(esp, announced):
    esp.efuse.burn("DIS_PAD_JTAG", 1)
    announced.clear()
    esp.efuse.burn("DIS_PAD_JTAG", 1)
    efuse.burn_all(esp.link, [("DIS_PAD_JTAG", 1)])
    assert announced == []


def test_a_key_is_announced_without_its_bits(esp, announced):
    esp.efuse.burn("BLOCK_KEY0", os.urandom(32))
    assert "  BLOCK_KEY0: a key" in announced[0].splitlines()
    assert "0x" not in announced[0]


def test_a_byte_is_shown_in_bits_and_more_in_digits():
    def shown(before, after):
        return burns.describe_bits(burns.BitChange("X", before, after))

    assert shown("00000000", "00000001") == "00000000 -> 00000001"
    assert shown("000000000", "000000001") == "0x000 -> 0x001"
    assert shown("0" * 12, "1" * 12) == "0x000 -> 0xfff"
    assert shown("0" * 13, "1" * 13) == "0x0000 -> 0x1fff"
    assert shown(None, "01") == "unreadable -> 01"
    assert shown("01", None) == "a key"


# -- values and keys


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("DIS_PAD_JTAG", True, "1"),
        ("DIS_PAD_JTAG", False, "0"),
        ("UART_PRINT_CONTROL", 2, "2"),
        ("BLOCK_USR_DATA", bytes(31) + b"\x0f", "00" * 31 + "0f"),
        ("CUSTOM_MAC", "00:11:22:33:44:55", "00:11:22:33:44:55"),
    ],
)
def test_a_value_in_words(esp, name, value, text):
    assert esp.efuse.plan(name, value).value == text


@pytest.mark.parametrize("name", ["BLOCK_KEY0", "block_key5", "BLOCK1", "BLOCK2", "flash_encryption", "SECURE_BOOT_V1"])
@pytest.mark.parametrize("written", [lambda key: key, lambda key: key.hex(), lambda key: "0x" + key.hex()])
def test_what_goes_into_a_key_block_is_a_secret_from_then_on(name, written):
    key = os.urandom(32)
    assert secrets.hide(key.hex()) == key.hex()
    efuse._remember_if_key(name, written(key))
    assert key.hex() not in secrets.hide(f"so: {key.hex()}")


@pytest.mark.parametrize("name", ["BLOCK_USR_DATA", "BLOCK3", "BLOCK10", "CUSTOM_MAC", "MY_BLOCK1"])
def test_what_goes_elsewhere_is_no_secret(name):
    data = os.urandom(32)
    efuse._remember_if_key(name, data)
    assert secrets.hide(data.hex()) == data.hex()


def test_what_is_no_key_at_all_is_not_remembered():
    for value in (1, True, "no digits"):
        efuse._remember_if_key("BLOCK_KEY0", value)
    assert secrets.hide("no digits 1 True") == "no digits 1 True"


@pytest.mark.parametrize(
    ("chip", "name", "is_key"),
    [
        ("esp32c3", "BLOCK_KEY0", True),
        ("esp32c3", "BLOCK_USR_DATA", False),
        ("esp32c3", "CUSTOM_MAC", False),
        ("esp32c2", "BLOCK_KEY0", True),
        ("esp32c2", "BLOCK_KEY0_LOW_128", True),
        ("esp32", "BLOCK1", True),
    ],
)
def test_which_fields_are_keys(esp_of, chip, name, is_key):
    esp = esp_of(chip)
    size = esp.efuse.read(name).bit_length // 8
    value = "00:11:22:33:44:55" if name == "CUSTOM_MAC" else os.urandom(size)
    plan = esp.efuse.plan(name, value)
    assert (plan.after is None, plan.before is None, plan.value == "(a key)") == (is_key,) * 3
    change = next(change for change in plan.changes if change.after is None or change.efuse_name == name)
    assert (change.after is None, change.before is None) == (is_key, is_key)


def test_a_key_is_not_burnt_where_it_cannot_be_read_back(esp):
    esp.efuse.burn("RD_DIS", 1)
    assert esp.efuse.read("BLOCK_KEY0").bits is None
    with pytest.raises(OperationError, match="cannot be burnt: BLOCK_KEY0 is read-protected"):
        esp.efuse.burn("BLOCK_KEY0", os.urandom(32))


def test_bits_that_cannot_be_read_are_neither_proven_nor_refuted(esp):
    esp.efuse.burn("RD_DIS", 1)
    assert efuse._proof(esp.link, "BLOCK_KEY0", "1" * 256)[1:] == (None, None)
    assert efuse._proof(esp.link, "RD_DIS", "0000001") == ("1", "0000001", True)
    assert efuse._proof(esp.link, "RD_DIS", "0000011") == ("1", "0000001", False)


def test_a_key_can_be_read_back_until_it_is_protected(esp):
    result = esp.efuse.burn("BLOCK_KEY0", os.urandom(32))
    assert (result.value_before, result.value_after, result.value_requested) == ("(a key)",) * 3
    assert result.verified is True


# -- what the chip is known to have


def test_the_purposes_of_key_blocks(esp_of):
    purposes = efuse.key_purposes(esp_of("esp32c3").link)
    assert (purposes["USER"], purposes["XTS_AES_128_KEY"], purposes["SECURE_BOOT_DIGEST2"]) == (0, 4, 11)
    assert min(purposes.values()) == 0
    virtual = efuse.key_purposes(esp_of("esp32s3").link)  # of two blocks: it has no number in an eFuse
    assert ("XTS_AES_256_KEY" in virtual, min(virtual.values())) == (False, 0)
    assert efuse.key_purposes(esp_of("esp32").link) == {}


@pytest.mark.parametrize(
    ("chip", "name", "masks"),
    [
        ("esp32c3", "BLOCK_KEY0", (1 << 0, 1 << 23)),
        ("esp32c3", "BLOCK_KEY5", (1 << 5, 1 << 28)),
        ("esp32c3", "DIS_PAD_JTAG", (0, 1 << 2)),
        ("esp32c2", "BLOCK_KEY0", (0b11, 1 << 7)),
    ],
)
def test_what_protects_an_efuse(esp_of, chip, name, masks):
    assert efuse.protection_masks(esp_of(chip).link, name) == masks


# -- consent


def test_every_efuse_that_is_not_allowed_is_named_once(real):
    link, _ = real("esp32c3", allow_burn=("DIS_PAD_JTAG",), burns_enabled=True)
    link.burns.check(["dis_pad_jtag"])
    with pytest.raises(RefusedError, match="does not allow burning WR_DIS, RD_DIS") as caught:
        link.burns.check(["wr_dis", "DIS_PAD_JTAG", "RD_DIS", "wr_dis"])
    assert caught.value.details == {"allow_burn": ["WR_DIS", "RD_DIS"]}
    assert 'add "WR_DIS", "RD_DIS" to `allow_burn` of [boards.real]' in caught.value.hint
    assert (caught.value.board, caught.value.attempted) == ("real", "burning WR_DIS, DIS_PAD_JTAG, RD_DIS")
    assert not link.is_open


@pytest.mark.in_process
def test_the_run_has_to_allow_it_too(real):
    link, _ = real("esp32c3", allow_burn=("DIS_PAD_JTAG",))
    with pytest.raises(RefusedError, match="does not allow burning eFuses") as caught:
        link.burns.check(["DIS_PAD_JTAG"])
    assert "--esp-allow-burn" in caught.value.hint
    assert (caught.value.board, caught.value.attempted) == ("real", "burning DIS_PAD_JTAG")


def test_a_virtual_board_needs_no_consent(esp):
    esp.link.burns.check(["WR_DIS"])


# -- the proof, and the audit log


@pytest.fixture
def burnt_real(real):
    """A real board of which an eFuse may be burnt."""
    link, _ = real("esp32c3", allow_burn=("DIS_PAD_JTAG", "BLOCK_KEY0"), burns_enabled=True)
    return Esp(link)


def entries(esp):
    return [json.loads(line) for line in esp.link.burns.audit_file.read_text().splitlines()]


def test_who_when_and_where(burnt_real):
    burnt_real.efuse.burn("DIS_PAD_JTAG", 1)
    for entry in entries(burnt_real):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", entry["time"])
        assert (entry["pid"], entry["port"]) == (os.getpid(), burnt_real.link.board.spec.port)
        assert entry["user"]
    assert [entry["stage"] for entry in entries(burnt_real)] == ["begin", "done"]


def test_bits_that_are_others_afterwards_are_an_error(burnt_real, monkeypatch):
    monkeypatch.setattr(efuse, "_burn", lambda link, commands, intent: None)
    with pytest.raises(OperationError, match="DIS_PAD_JTAG reads back as 0, not 1") as caught:
        burnt_real.efuse.burn("DIS_PAD_JTAG", 1)
    assert caught.value.attempted == "burning DIS_PAD_JTAG"
    with pytest.raises(OperationError, match="BLOCK_KEY0 reads back as another key"):
        burnt_real.efuse.burn("BLOCK_KEY0", os.urandom(32))


def test_bits_that_are_not_burnt_are_in_the_audit_log(burnt_real, monkeypatch):
    monkeypatch.setattr("espefuse.efuse.base_fields.EfuseBlockBase.burn", lambda block: None)
    with pytest.raises(OperationError, match="burn was not successful"):
        burnt_real.efuse.burn("DIS_PAD_JTAG", 1)
    done = entries(burnt_real)[-1]
    assert (done["stage"], done["read_back"], done["verified"]) == ("done", {"DIS_PAD_JTAG": "0"}, False)


def test_a_burn_that_fails_is_in_the_audit_log(burnt_real, monkeypatch):
    def fail(*_):
        raise LinkError("the chip does not answer")

    monkeypatch.setattr("espefuse.efuse.base_fields.EfuseBlockBase.burn", fail)
    with pytest.raises(LinkError):
        burnt_real.efuse.burn("DIS_PAD_JTAG", 1)
    assert [entry["stage"] for entry in entries(burnt_real)] == ["begin", "failed"]
    assert "does not answer" in entries(burnt_real)[-1]["error"]


@pytest.mark.in_process
def test_a_virtual_board_has_no_audit_log(esp):
    esp.efuse.burn("DIS_PAD_JTAG", 1)
    assert not esp.link.burns.audit_file.exists()


@pytest.mark.parametrize("error", [KeyError, OSError])
def test_a_user_without_a_name_has_a_number(monkeypatch, error):
    def nobody():
        raise error

    monkeypatch.setattr("getpass.getuser", nobody)
    assert burns._user() == str(os.getuid())


# -- not to be interrupted


def test_work_that_is_not_interrupted_answers_as_it_would():
    assert efuse._uninterrupted(lambda: threading.current_thread().name) == "efuse-burn"
    with pytest.raises(LinkError, match="gone"):
        efuse._uninterrupted(lambda: (_ for _ in ()).throw(LinkError("gone")))


def test_work_that_cannot_begin_is_not_done(monkeypatch):
    done = []

    def start(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="new thread"):
        efuse._uninterrupted(lambda: done.append(1))
    assert done == []


def test_an_interruption_just_after_the_start_waits(monkeypatch):
    done, start = [], threading.Thread.start

    def interrupted_start(thread):
        start(thread)
        thread.join()
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted_start)
    with pytest.raises(KeyboardInterrupt):
        efuse._uninterrupted(lambda: done.append(1))
    assert done == [1]
