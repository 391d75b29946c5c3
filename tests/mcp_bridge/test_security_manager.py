"""Tools for security: what they answer, what they refuse."""

import asyncio
import json
import os
import shutil
import subprocess
import sys

import pytest
from espefuse.efuse_interface import SUPPORTED_CHIPS
from esptool.targets import CHIP_DEFS, CHIP_LIST

from mcp_bridge.calls import Calls
from mcp_bridge.tool import _work
from pytest_esp.boards.registry import make_board
from pytest_esp.link.link import Link
from pytest_esp.operations.esp import Esp
from pytest_esp.rack.config import load_rack
from pytest_esp.sim.chip import SimChip
from pytest_esp.wire import endpoints
from pytest_esp.wire.reset import SLOW_HOST_RISE_TIME

AUDIT_KEYS = {"success", "port", "chip_id", "security_info", "efuse_summary", "security_fuses", "posture"}
LOCKS = {"FLASH_CRYPT_CNT": 1, "SPI_BOOT_CRYPT_CNT": 7, "ABS_DONE_1": 1, "SECURE_BOOT_EN": 1, "JTAG_DISABLE": 1,
         "HARD_DIS_JTAG": 1, "DIS_PAD_JTAG": 1, "DIS_USB_JTAG": 1}  # fmt: skip


def burn(server, name, value, port="esp32"):
    arguments = {"port": port, "efuse_name": name, "value": value}
    token = server.call("esp_efuse_burn", **arguments)["confirm"]
    return server.call("esp_efuse_burn", **arguments, confirm=token)


def test_audit_of_a_virgin_esp32(server):
    answer = server.call("esp_security_audit", port="esp32")
    assert answer["security_info"] == {"Secure Boot": "disabled", "Flash Encryption": "disabled"}
    assert (
        answer["posture"]
        | {
            "flash_encryption": "disabled",
            "secure_boot": "disabled",
            "jtag": "enabled (vulnerable)",
        }
        == answer["posture"]
    )
    for name in ("FLASH_CRYPT_CNT", "ABS_DONE_0", "ABS_DONE_1", "JTAG_DISABLE", "DISABLE_DL_ENCRYPT",
                 "DISABLE_DL_DECRYPT", "DISABLE_DL_CACHE", "FLASH_CRYPT_CONFIG"):  # fmt: skip
        assert answer["security_fuses"][name] == "0"
        assert answer["efuse_summary"][name] == "0"
    assert answer["chip_id"] == "0x00000000"
    assert ":" in answer["efuse_summary"]["MAC"]
    assert {"severity", "what", "what_to_do"} == answer["findings"][0].keys()


def test_audit_of_a_virgin_and_of_a_locked_chip_of_every_family(serve, tmp_path):
    """What only some chips have: the ESP32-E22's definitions name no counter, and nothing that closes its USB-JTAG."""
    rack, families = tmp_path / "families.toml", [chip for chip in CHIP_LIST if chip in SUPPORTED_CHIPS]
    entry = '[boards.{name}]\nbackend = "sim"\nchip = "{chip}"\nefuse_file = "{file}"\n'
    text = ""
    for chip in families:
        for name, locks in ((f"{chip}-virgin", {}), (f"{chip}-locked", LOCKS)):
            simulated = SimChip(chip, efuse_file=tmp_path / name)
            for fuse, value in locks.items():
                if simulated.efuses.has_field(fuse):
                    simulated.efuses.preset(fuse, value)
            simulated.close()
            text += entry.format(name=name, chip=chip, file=tmp_path / name)
    rack.write_text(text)
    server = serve(rack=rack)
    for chip in families:
        untold = chip == "esp32e22"
        virgin, locked = (server.call("esp_security_audit", port=f"{chip}-{state}") for state in ("virgin", "locked"))
        assert virgin.keys() & locked.keys() >= AUDIT_KEYS
        assert virgin["chip_id"] == f"{CHIP_DEFS[chip].IMAGE_CHIP_ID:#010x}"
        assert virgin["security_info"]["Secure Boot"] == virgin["posture"]["secure_boot"] == "disabled"
        assert virgin["posture"]["flash_encryption"] == ("unknown" if untold else "disabled")
        assert virgin["posture"]["jtag"] == "enabled (vulnerable)"
        assert locked["security_info"]["Secure Boot"] == locked["posture"]["secure_boot"] == "enabled (v2)"
        assert locked["posture"]["flash_encryption"] == ("unknown" if untold else "enabled")
        assert locked["posture"]["jtag"] == ("unknown" if untold else "disabled")
        for name in LOCKS.keys() & virgin["security_fuses"].keys():
            # As espefuse shows them: a counter may be a number or a word.
            assert (virgin["security_fuses"][name], locked["security_fuses"][name]) in (
                ("0", "1"),
                ("Disable", "Enable"),
            )
            assert locked["efuse_summary"][name] == locked["security_fuses"][name]


@pytest.mark.in_process
def test_audit_of_a_locked_chip(server):
    for name, value in (("SECURE_BOOT_EN", 1), ("SPI_BOOT_CRYPT_CNT", 7), ("DIS_PAD_JTAG", 1), ("DIS_USB_JTAG", 1)):
        burn(server, name, value, "c3")
    answer = server.call("esp_security_audit", port="c3")
    assert answer["security_info"] == {"Secure Boot": "enabled (v2)", "Flash Encryption": "enabled"}
    assert answer["posture"]["jtag"] == "disabled"
    assert answer["chip_id"] == "0x00000005"
    assert not any("not encrypted" in found["what"] for found in answer["findings"])


@pytest.mark.in_process
def test_no_answer_shows_a_key(server):
    key = os.urandom(32).hex()
    burn(server, "BLOCK_KEY0", key, "c3")
    shown = [server.call(name, port="c3") for name in ("esp_security_audit", "esp_efuse_read")]
    assert shown[0]["key_blocks"][0]["state"] == "burnt"
    spaced = " ".join(key[at : at + 2] for at in range(0, 64, 2))
    assert not any(form in json.dumps(shown) for form in (key, spaced))


@pytest.mark.in_process
def test_a_board_that_does_not_answer_has_no_clean_report(server):
    burn(server, "DIS_DOWNLOAD_MODE", 1, "c3")
    answer = server.call("esp_security_audit", port="c3")
    assert not answer["success"]
    assert "findings" not in answer


def test_one_efuse(server):
    answer = server.call("esp_efuse_read", port="esp32", efuse_name="FLASH_CRYPT_CNT")
    assert (answer["efuse_name"], answer["value"]) == ("FLASH_CRYPT_CNT", "0")
    assert answer["bit_length"] == 7


def test_an_unknown_efuse(server):
    answer = server.call("esp_efuse_read", port="esp32", efuse_name="NONEXISTENT")
    assert (answer["success"], answer["error"], answer["port"]) == (False, "eFuse 'NONEXISTENT' not found", "esp32")
    assert "JTAG_DISABLE" in answer["available_efuses"]
    answer = server.call("esp_efuse_read", port="esp32", efuse_name="JTAG_DISABEL")
    assert answer["available_efuses"][0] == "JTAG_DISABLE"


@pytest.mark.in_process
def test_burning_shows_the_bits_before_it_asks(server):
    answer = server.call("esp_efuse_burn", port="esp32", efuse_name="JTAG_DISABLE", value="0x1")
    assert "JTAG_DISABLE 0 -> 1" in answer["plan"]
    done = server.call(
        "esp_efuse_burn", port="esp32", efuse_name="JTAG_DISABLE", value="0x1", confirm=answer["confirm"]
    )
    assert {key: done[key] for key in ("efuse_name", "value_requested", "value_before", "value_after", "warning")} == {
        "efuse_name": "JTAG_DISABLE",
        "value_requested": "0x1",
        "value_before": "0",
        "value_after": "1",
        "warning": "eFuse burn is IRREVERSIBLE on real hardware",
    }
    again = server.call("esp_efuse_burn", port="esp32", efuse_name="JTAG_DISABLE", value="0x1")
    assert "nothing would change" in again["plan"]


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [("JTAG_DISABEL", 1, "eFuse 'JTAG_DISABEL' not found"), ("JTAG_DISABLE", 2, "invalid value")],
)
def test_an_impossible_burn_is_refused_before_the_user_is_asked(server, name, value, error):
    answer = server.call("esp_efuse_burn", port="esp32", efuse_name=name, value=value)
    assert error in answer["error"]
    assert "confirm" not in answer


def test_a_board_that_does_not_allow_it(server):
    answer = server.call("esp_efuse_burn", port="guarded", efuse_name="DIS_PAD_JTAG", value=1)
    assert "does not allow 'burn'" in answer["error"]


@pytest.mark.in_process
def test_the_answers_are_what_unmodified_espefuse_says(serve, tmp_path):
    """On the same eFuses: a simulated chip keeps them in the format of espefuse's own virtual chips."""
    rack, file = tmp_path / "kept.toml", tmp_path / "efuses.bin"
    rack.write_text(f'[boards.kept]\nbackend = "sim"\nchip = "esp32"\nefuse_file = "{file}"\n')
    server = serve(rack=rack)
    burn(server, "FLASH_CRYPT_CNT", 1, "kept")
    burn(server, "JTAG_DISABLE", 1, "kept")
    told = server.call("esp_efuse_read", port="kept", detailed=True)
    audit = server.call("esp_security_audit", port="kept")
    server.call("esp_release", board="kept")

    command = [sys.executable, "-m", "espefuse", "--chip", "esp32", "--virt", "--path-efuse-file", file, "summary"]
    output = subprocess.run(
        [*command, "--format", "json"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    values = {name: field["value"] for name, field in json.loads(output[output.index("{") :]).items()}
    as_text = {name: str(int(value) if isinstance(value, bool) else value) for name, value in values.items()}
    # Of a custom MAC address espefuse tells on a port only where one is burnt.
    custom = {name: value for name, value in as_text.items() if name.startswith("CUSTOM_MAC")}
    assert told["efuses"] | custom == as_text
    assert audit["efuse_summary"] == told["efuses"]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    lines = [line for line in told["raw_output"].splitlines() if "(BLOCK" in line]
    assert len(lines) > 30
    assert lines == [line for line in output.splitlines() if "(BLOCK" in line and "CUSTOM_MAC" not in line]


# -- flash encryption


@pytest.mark.in_process
def test_guidance_changes_nothing(server):
    answer = server.call("esp_enable_flash_encryption", port="esp32", key_file="key.bin")
    assert (answer["flash_encryption_enabled"], answer["FLASH_CRYPT_CNT"], answer["FLASH_CRYPT_CONFIG"]) == (
        False,
        "0",
        "0",
    )
    assert "NOT enabled" in answer["message"]
    assert "IRREVERSIBLE" in answer["message"].upper()
    assert server.list_tools()["esp_enable_flash_encryption"].annotations.read_only_hint
    burn(server, "FLASH_CRYPT_CNT", 1)
    burn(server, "FLASH_CRYPT_CONFIG", 15)
    answer = server.call("esp_enable_flash_encryption", port="esp32")
    assert (answer["flash_encryption_enabled"], answer["FLASH_CRYPT_CNT"], answer["FLASH_CRYPT_CONFIG"]) == (
        True,
        "1",
        "0xf",
    )
    assert "already enabled" in answer["message"]


@pytest.mark.in_process
def test_encryption_from_key_to_boot_and_release(server, firmware_folder):
    shutil.copytree(firmware_folder / "hello_world_esp32c3", server.folder / "build")
    (server.folder / "key.bin").write_bytes(os.urandom(32))
    arguments = {"port": "c3", "key_file": "key.bin", "firmware_path": "build"}
    plan = server.call("esp_encryption_enable", **arguments)
    assert plan["refused"] is None
    assert {burn["efuse_name"] for burn in plan["burns"]} >= {"BLOCK_KEY0", "SPI_BOOT_CRYPT_CNT", "RD_DIS", "WR_DIS"}
    assert server.call("esp_security_audit", port="c3")["posture"]["flash_encryption"] == "disabled"
    arguments["apply"] = True
    asked = server.call("esp_encryption_enable", **arguments)
    assert not asked["success"]
    assert "SPI_BOOT_CRYPT_CNT 000 -> 001" in asked["plan"]
    key = (server.folder / "key.bin").read_bytes()
    assert not any(form in json.dumps([plan, asked]) for form in (key.hex(), key[::-1].hex()))
    done = server.call("esp_encryption_enable", **arguments, confirm=asked["confirm"])
    assert "Loaded app from partition" in done["boot_output"]
    assert server.call("esp_security_audit", port="c3")["posture"]["flash_encryption"] == "enabled"
    token = server.call("esp_flash_encryption_configure", port="c3")["confirm"]
    assert server.call("esp_flash_encryption_configure", port="c3", confirm=token)["mode"] == "release"


def test_an_image_is_encrypted_on_the_host(server):
    (server.folder / "key.bin").write_bytes(bytes(range(32)))
    (server.folder / "app.bin").write_bytes(b"an app")
    arguments = {"key_file": "key.bin", "input_file": "app.bin", "output_file": "out.bin", "address": "0x10000"}
    answer = server.call("esp_flash_encrypt", **arguments, chip_type="esp32c3")
    assert (answer["size"], answer["address"], answer["address_hex"]) == (16, 0x10000, "0x10000")
    assert (server.folder / "out.bin").read_bytes() != b"an app".ljust(16, b"\xff")
    for change, error in [
        ({}, "exists already"),
        ({"output_file": "o.bin", "chip_type": "esp33"}, "no chip 'esp33'"),
        ({"output_file": "o.bin", "key_file": "app.bin"}, "the key must have 32 or 64 bytes, not 6"),
        ({"output_file": "o.bin", "key_file": "no.bin"}, "no.bin"),
        ({"output_file": "o.bin", "input_file": "../x.bin"}, "outside the folders"),
    ]:
        answer = server.call("esp_flash_encrypt", **{"chip_type": "esp32c3"} | arguments | change)
        assert error in answer["error"]


def test_encryption_that_is_refused(server):
    answer = server.call("esp_encryption_enable", port="guarded", key_file="k.bin", firmware_path="b", apply=True)
    assert "does not allow 'burn'" in answer["error"]
    answer = server.call("esp_flash_encryption_configure", port="c3")
    assert "flash is not encrypted" in answer["error"]


# -- secure boot


@pytest.mark.in_process
def test_secure_boot_from_signing_to_boot(server, firmware_folder):
    build, key = server.folder / "build", server.folder / "key.pem"
    shutil.copytree(firmware_folder / "hello_world_esp32c3", build)
    arguments = {"port": "c3", "key_file": "key.pem", "firmware_path": "build"}
    assert "key.pem" in server.call("esp_secure_boot_enable", **arguments)["error"]
    espsecure = [sys.executable, "-m", "espsecure"]
    subprocess.run(
        [*espsecure, "generate-signing-key", "--version", "2", "--scheme", "rsa3072", key], check=True, timeout=100
    )
    for apply in (False, True):  # before anybody is asked
        answer = server.call("esp_secure_boot_enable", **arguments, apply=apply)
        assert "is not signed with this key" in answer["error"]
        assert "confirm" not in answer
    for image in (build / "bootloader" / "bootloader.bin", build / "hello_world.bin"):
        plain = image.rename(image.with_suffix(".plain"))
        sign = [*espsecure, "sign-data", "--version", "2", "--keyfile", key, "--output", image, plain]
        subprocess.run(sign, check=True, timeout=100)
    plan = server.call("esp_secure_boot_enable", **arguments)
    assert (plan["version"], plan["refused"]) == ("v2", None)
    token = server.call("esp_secure_boot_enable", **arguments, apply=True)["confirm"]
    done = server.call("esp_secure_boot_enable", **arguments, apply=True, confirm=token)
    assert "SECURE_BOOT_EN" in done["burnt"]
    assert server.call("esp_security_audit", port="c3")["posture"]["secure_boot"] == "enabled (v2)"


def test_secure_boot_that_is_refused(server):
    arguments = {"port": "guarded", "key_file": "k.pem", "firmware_path": "build"}
    answer = server.call("esp_secure_boot_enable", **arguments, apply=True)
    assert "does not allow 'burn'" in answer["error"]


def test_a_real_board_must_name_each_efuse_and_the_server_its_switch(serve, firmware_folder, tmp_path):
    """The chip is simulated; for the server it is a board at the far end of a port."""
    simulated = SimChip("esp32c3", rise_time=SLOW_HOST_RISE_TIME)
    simulated.reset(bootloader=False)
    endpoint = endpoints.serve(simulated.wire, "rfc2217://127.0.0.1:0")
    names = ["BLOCK_KEY0", "KEY_PURPOSE_0", "RD_DIS", "WR_DIS", "SPI_BOOT_CRYPT_CNT", "DIS_DOWNLOAD_ICACHE"]
    entry = f'[boards.real]\nbackend="serial"\nchip="esp32c3"\nport="{endpoint.url}"\nallow=["read","write","burn"]\n'
    arguments = {"port": "real", "key_file": "key.bin", "firmware_path": "build"}

    def serve_on(text, **settings):
        (tmp_path / "real.toml").write_text(text)
        return serve(rack=tmp_path / "real.toml", **settings)

    try:
        for burns, switch, words in [
            ([], True, '"SPI_BOOT_CRYPT_CNT"'),
            (names, False, "--allow-burn"),
            (names, True, None),
        ]:
            server = serve_on(entry + f"allow_burn={json.dumps(burns)}\n", burns_enabled=switch)
            if not (server.folder / "build").exists():
                shutil.copytree(firmware_folder / "hello_world_esp32c3", server.folder / "build")
                (server.folder / "key.bin").write_bytes(os.urandom(32))
            plan = server.call("esp_encryption_enable", **arguments)
            asked = server.call("esp_encryption_enable", **arguments, apply=True)
            if words is not None:
                assert words in plan["refused"]
                assert words in asked["error"]
                assert "confirm" not in asked
            else:
                done = server.call("esp_encryption_enable", **arguments, apply=True, confirm=asked["confirm"])
                assert done["burnt"] == names
            server.call("esp_release", board="real")
            assert bool(simulated.efuses.field("SPI_BOOT_CRYPT_CNT")) == (words is None)
    finally:
        endpoint.close()
        simulated.close()


@pytest.mark.parametrize("how", ["cancelled", "out of time"])
def test_a_burn_is_never_interrupted(tmp_path, monkeypatch, how):
    """A call that was cancelled or timed out ends when the burn has been read back."""
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    file = tmp_path / "slow.toml"
    file.write_text('[boards.slow]\nbackend = "sim"\nchip = "esp32c3"\nfaults = { to_host = { latency = 0.002 } }\n')
    rack = load_rack(file)
    key, ends = os.urandom(32), []

    async def run(esp):
        calls, timeout = Calls(), 0.2 if how == "out of time" else 60.0

        def burn():
            ends.append(
                esp.efuse.burn(
                    "BLOCK_KEY0",
                    key.hex(),
                )
            )

        task = asyncio.create_task(_work(calls, None, ["slow"], burn, burns=True, timeout=timeout, wait=0.0))
        await asyncio.sleep(0.2)
        assert not ends
        if how == "cancelled":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not ends
            await asyncio.to_thread(calls.close)  # the end of the server waits for it
        else:
            await task  # it is done, so there is nothing to complain about

    with Link(make_board(rack.board("slow"), rack)) as link:
        esp = Esp(link)
        esp.chip.identify()
        asyncio.run(run(esp))
        assert [result.verified for result in ends] == [True]
        (block,) = [found for found in esp.security.posture().key_blocks if found.name == "BLOCK_KEY0"]
        assert block.state == "burnt"
        assert esp.efuse.read("BLOCK_KEY0").value.replace(" ", "") == key.hex()
