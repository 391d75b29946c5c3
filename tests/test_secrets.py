"""The register of secrets: in which forms they are found, and what is left of a cut one."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_esp import secrets
from pytest_esp.secrets import Forms, Stream, hide, hide_bytes, hide_in, remember

PASSWORD = "Zq7Kür\"b'i/s"
KEY = bytes.fromhex("9f31e68cab17d4425ee0b9837ac5106d2bf894a1c7563e0fd8714c92b56ae32d")


def test_nothing_is_masked_before_something_is_known():
    text = "a text, and " * 3
    assert hide(text) is text
    assert Stream().feed(b"data") == b"data"
    assert not secrets.known()


@pytest.mark.parametrize(
    "shown",
    [
        PASSWORD,
        repr(PASSWORD),
        ascii(PASSWORD),
        json.dumps(PASSWORD),
        json.dumps(json.dumps({"p": PASSWORD})),
        repr({"p": json.dumps(PASSWORD)}),
        repr(PASSWORD.encode()),
        PASSWORD.encode().hex(),
        PASSWORD.encode().hex(" ").upper(),
        ", ".join(f"0x{byte:02x}" for byte in PASSWORD.encode()),
        base64.b64encode(PASSWORD.encode()).decode(),
        base64.b64encode(b"me:" + PASSWORD.encode()).decode(),
        base64.b64encode(b"line" + PASSWORD.encode() + b"@host").decode(),
        base64.urlsafe_b64encode(b"user:" + PASSWORD.encode()).decode(),
    ],
)
def test_a_text_is_found_in_every_form(shown):
    remember(PASSWORD)
    hidden = hide(f"before {shown} behind")
    assert "***" in hidden
    middle = len(shown) // 2
    assert shown[middle - 3 : middle + 3] not in hidden
    assert hidden.startswith("before ")
    assert hidden.endswith(" behind")


def test_a_key_is_found_in_dumps_and_as_it_is():
    remember(KEY)
    dump = f"I (1) key: {KEY[:16].hex(' ')}\nI (1) key: {KEY[16:].hex(' ').upper()}\n"
    assert hide(dump) == "I (1) key: ***\nI (1) key: ***\n"
    assert hide_bytes(b"raw " + KEY + b"\n") == b"raw ***\n"
    assert hide(repr(KEY)) == "b'***'"
    assert hide((b"raw " + KEY).decode("utf-8", "replace")) == "raw \ufffd***"


def test_a_file_of_several_lines_is_found_line_by_line():
    lines = ["-----BEGIN PRIVATE KEY-----", "MIGHAgEAMBMGByqG", "SM49AgEGCCqGSM49", "-----END PRIVATE KEY-----"]
    remember("\n".join(lines) + "\n")
    assert hide("\r\n[   0.100] ".join(lines)).count("***") == 2
    assert hide("-----BEGIN PRIVATE KEY-----") == "-----BEGIN PRIVATE KEY-----"


def test_values_that_overlap_are_masked_from_end_to_end():
    remember("first-word", "word-last")
    assert hide("a first-word-last b") == "a *** b"


def test_a_value_in_another_one():
    remember("hunter-and-horse", "r-and")
    assert hide("a hunter-and-horse b") == "a *** b"


@pytest.mark.parametrize("before", [b"", b"l", b"li"])
def test_both_alphabets_of_base64(before):
    remember(key := bytes(range(238, 256)))
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        assert len(hide(encode(before + key + b"+").decode()).replace("***", "")) <= 2 * 4


def test_of_a_value_that_is_cut_little_is_left():
    remember("correct-horse")
    assert hide("it said correct-h") == "it said ***"
    assert hide("it said correct-h\r\nESP-ROM") == "it said ***\r\nESP-ROM"
    assert hide("it said correct-horESP-ROM") == "it said ***ESP-ROM"
    assert hide("it is correct") == "it is ***"  # more than half: the end of the text may have cut it
    assert hide("it is correct, and on") == "it is correct, and on"
    assert hide("'corr...orse'", is_cut=True) == "'***...***'"
    assert hide("horse, then", is_cut=True) == "***, then"


def test_short_values_are_no_secrets():
    remember("abc", "", b"\0\0\0\0\0\0\0\0")
    assert hide("abcabc 0000000000000000") == "abcabc 0000000000000000"


def test_plain_data():
    remember("hunter22")
    assert hide_in({"hunter22": ["a hunter22", ("x", 5, None)]}) == {"***": ["a ***", ["x", 5, None]]}


def test_padding_of_a_value_is_no_secret():
    remember(b"not-for-logs" + bytes(52))
    assert hide(bytes(16).hex(" ")) == bytes(16).hex(" ")
    assert hide((b"not-for-logs" + bytes(4)).hex(" ")) == "***"


def test_thousands_of_values():
    forms = Forms(f"{number:04x}-password" for number in range(2000))
    text = "I (29) boot: ESP-IDF v5.2 2nd stage bootloader, passed: f\n" * 100
    assert forms.hide(text) == text
    assert forms.hide(text.replace("passed: f", "07cf-password")).count("***") == 100
    forms.add(["one more"])
    assert forms.hide("0000-password") == "0000-password"  # the oldest is forgotten


PIECES = st.lists(st.sampled_from([b"ab", b"a", b"b", b"\n", b"\x1b[0m", b"abba", b"x", b"baab"]), max_size=30)


@given(pieces=PIECES, values=st.lists(st.text("ab", min_size=4, max_size=7), min_size=1, max_size=3))
def test_in_whatever_pieces_it_comes_nothing_gets_through(pieces, values):
    secrets.forget()
    remember(*values)
    stream = Stream()
    shown = b"".join(map(stream.feed, pieces)) + stream.end()
    for value in values:
        assert value.encode() not in shown
        assert value.encode() not in shown.replace(b"\x1b[0m", b"")
    if not any(value.encode()[:3] in b"".join(pieces).replace(b"\x1b[0m", b"") for value in values):
        assert shown == b"".join(pieces)  # what has nothing of them comes as it is


def test_what_is_no_beginning_of_one_does_not_wait():
    remember("hunter22")
    stream = Stream()
    assert stream.feed(b"esp> ") == b"esp> "
    assert (stream.feed(b"pass: hunt"), stream.rest) == (b"pass: ", b"***")
    assert stream.feed(b"ing\n") == b"hunting\n"
