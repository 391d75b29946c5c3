"""Keys and tokens that an operation was given are masked from then on."""

import json
import os

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from pytest_esp.errors import EspError
from pytest_esp.operations.esp import Esp
from pytest_esp.operations.ota.package import create
from pytest_esp.operations.ota.upload import upload
from pytest_esp.operations.production.record import BoardRecord, RecordBook
from pytest_esp.secrets import hide, hide_bytes, remember


def is_masked(key):
    forms = (key, key[::-1])
    return all(hide_bytes(b"<" + form + b">") == b"<***>" for form in forms) and all(
        hide(f"<{text}>") == "<***>" for form in forms for text in (form.hex(), form.hex(" ").upper())
    )


@pytest.mark.parametrize("given", [bytes, bytes.hex])
def test_what_is_burnt_into_a_key_block(esp_of, given):
    key = os.urandom(32)
    esp_of("esp32c3").efuse.burn("BLOCK_KEY0", given(key))
    assert is_masked(key)


def test_a_key_that_may_not_be_burnt(real):
    key = os.urandom(32)
    link, _ = real("esp32c3")
    with pytest.raises(EspError):
        Esp(link).efuse.burn("BLOCK_KEY0", key)
    assert is_masked(key)


def test_the_audit_log_has_no_secret(real):
    esp = Esp(real("esp32c3", allow_burn=["BLOCK_USR_DATA"], burns_enabled=True)[0])
    esp.production.write_manufacturing_data({"token": "tok-8f3a77c2"}, to_efuse=True)
    text = esp.link.burns.audit_file.read_text()
    assert json.loads(text.splitlines()[-1])["stage"] == "done"
    assert b"tok-8f3a77c2".hex() not in text


def test_the_record_of_a_batch_has_no_secret(tmp_path):
    remember("hunter22")
    line = {"time": "", "batch": "1", "board": "line-1", "outcome": "failed", "stage": "boot"}
    with RecordBook(tmp_path) as book:
        book.write(BoardRecord(**line, serial_number="hunter22", error="'hunter22' did not come"))
    for path in (book.json_lines, book.csv):
        assert "'***' did not come" in path.read_text()
        assert path.read_text().count("hunter22") == 1  # the next batch has to find its serial numbers


def test_the_keys_of_flash_and_of_nvs(esp_of, tmp_path):
    # Not random: where a second half begins with ">", the mask of the whole key takes the test's own ">" with it.
    flash_key, nvs_key = bytes(range(0x80, 0xC0)), bytes(range(0xC0, 0x100))
    (tmp_path / "flash.key").write_bytes(flash_key)
    (tmp_path / "nvs.key").write_bytes(nvs_key)
    esp = esp_of("esp32s3")
    esp.nvs.create({"app": {"host": "example.com"}}, tmp_path / "nvs.bin", size=0x3000, key_file=tmp_path / "nvs.key")
    with pytest.raises(EspError, match="nowhere"):
        esp.encryption.plan(tmp_path / "nowhere", tmp_path / "flash.key")
    for key in (nvs_key[:32], nvs_key[32:], flash_key[:32], flash_key[32:]):  # each half in a block of its own
        assert is_masked(key)


def test_what_a_device_is_told_in_headers(tmp_path):
    headers = {"Authorization": "Bearer tok-8f3a77c2", "X-Api-Key": "hunter22", "X-Line": "hall-17"}
    with pytest.raises(EspError):  # there is no such package
        upload(tmp_path / "none", "http://127.0.0.1:1/", headers=headers)
    assert hide("heard tok-8f3a77c2, hunter22 of hall-17") == "heard ***, *** of hall-17"


def test_the_private_key_of_updates(tmp_path):
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_text(pem)
    (tmp_path / "public.pem").write_bytes(public)
    with pytest.raises(EspError):
        create(tmp_path / "nowhere", "2.0", tmp_path / "out", key_file=tmp_path / "key.pem")
    with pytest.raises(EspError):
        upload(tmp_path / "none", "http://127.0.0.1:1/", public_key_file=tmp_path / "public.pem")
    (line,) = (line for line in pem.splitlines() if not line.startswith("-"))
    assert hide(f"<{line}>") == "<***>"
    assert hide(public.decode()) == public.decode()
