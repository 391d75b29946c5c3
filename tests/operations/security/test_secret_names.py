"""Which values of settings are secrets, by their names."""

import pytest

from pytest_esp.operations.security.secret_names import is_secret_name, remember_in
from pytest_esp.secrets import hide, hide_bytes

KEY = bytes.fromhex("9f31e68cab17d4425ee0b9837ac5106d2bf894a1c7563e0fd8714c92b56ae32d")


@pytest.mark.parametrize("name", ["password", "wifi_pass", "mqttPwd", "apiKey", "key", "authtoken", "PSK", "hmac-key"])
def test_names_of_secrets(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["host", "ssid", "keyboard", "public_key", "nvs_key_file", "key_id", "author", "passed", "token_url"]
)
def test_names_of_what_is_none(name):
    assert not is_secret_name(name)


def test_what_of_a_table_is_secret():
    remember_in(
        {
            "wifi": {"ssid": "Werk 3", "password": "hunter22"},
            "nvs_key_file": "keys/line.bin",
            "credentials": {
                "login": "device-17",
                "host": "broker.example.com",
                "blob": {"type": "hex2bin", "value": KEY.hex()},
                "passkey": 482913,
                "count": 12,
            },
            "nvs": {"app": {"server": "example.com", "token": {"type": "string", "value": "tok-1234"}}},
        }
    )
    shown = "Werk 3 keys/line.bin broker.example.com example.com 12"
    assert hide(shown) == shown
    for value in ("hunter22", "device-17", KEY.hex(" "), "482913", "tok-1234"):
        assert hide(f"<{value}>") == "<***>"
    assert hide_bytes(KEY) == b"***"
