import io
import random

import espsecure
import pytest

from pytest_esp.sim.crypt import esp32, xts

DATA = random.Random(5).randbytes(400)


def by_espsecure(operation, key, address, config, *, aes_xts):
    output = io.BytesIO()
    operation(io.BytesIO(key), output, address, config, aes_xts, io.BytesIO(DATA))
    return output.getvalue()


@pytest.mark.parametrize("address", [0x1000, 0x10010, 0x3F0070])
@pytest.mark.parametrize("length", [32, 64])
def test_xts_is_what_espsecure_computes(address, length):
    key = random.Random(length).randbytes(length)
    expected = by_espsecure(espsecure.encrypt_flash_data, key, address, 0, aes_xts=True)
    assert xts(key, address, DATA) == expected
    assert xts(key, address, expected, decrypt=True) == DATA


@pytest.mark.parametrize("address", [0x1000, 0x10010, 0xFF0070])
@pytest.mark.parametrize("config", [0, 1, 2, 4, 8, 0xF])
def test_the_esp32s_cipher_is_what_espsecure_computes(address, config):
    key = random.Random(config).randbytes(32)
    expected = by_espsecure(espsecure.encrypt_flash_data, key, address, config, aes_xts=False)
    assert esp32(key, address, DATA, config) == expected
    assert esp32(key, address, expected, config, decrypt=True) == DATA


def test_a_key_that_was_never_burnt_encrypts_too():
    blank = bytes(32)
    assert xts(blank, 0, xts(blank, 0, DATA), decrypt=True) == DATA != xts(blank, 0, DATA)
