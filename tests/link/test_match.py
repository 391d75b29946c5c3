"""Patterns of str match as `re` matches text, in any pieces; positions stay those of the bytes."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_esp.link.match import Search

PATTERNS = [
    r"R = \d+([Ωk])", r"\[(.)\] ok", r"═+", r"\w+", r"(?i)größe", r"°?C", r"\bé", r"[^a]b", r"(?<=é)x", r"^ok$",
    r"(?m)^ok", r"(?s)a.b", r"\Aé", r"\d", r"[à-ÿ]+!", r"(?a)\w+!", r"\s\S", "\ufffd+", r"(?P<unit>µ)s", r"\u2713",
    r"[\t-~]{3}", r"\N{CHECK MARK} ok",
]  # fmt: skip
TEXTS = ["R = 12Ω\n", "[✓] ok", "═══", "GRÖSSE", "größe", "Größe", "20 °C", "éa", "x", "ok", "\n", "a\nb", "é!", "µs",
         "\u0661", "\x1c", "ß!", "a!", " ", "🙂b"]  # fmt: skip
CHUNKS = st.lists(st.one_of(st.sampled_from(TEXTS).map(str.encode), st.binary(max_size=3)), max_size=8)


@pytest.mark.parametrize(
    ("pattern", "text", "groups"),
    [
        (re.compile(r"R = \d+([Ωk])"), "R = 47Ω", ("Ω",)),
        (re.compile(r"\[(.)\] ok"), "[✓] ok", ("✓",)),
        (re.compile("═+"), "╔═══╗", ()),
        (re.compile(r"(\w+) ready"), "größe ready", ("größe",)),
        (re.compile("GRÖSSE|größe", re.I), "GRÖßE", ()),
        (re.compile(r"20 °?C"), "20 C", ()),
        (re.compile(r"20 °?C"), "20 °C", ()),
        (re.compile(r"\W(\w)"), "a→b", ("b",)),
        (re.compile(r"(\w+)", re.ASCII), "éa", ("a",)),
        (re.compile(r"x (?#comment) (y)", re.X), "xy", ("y",)),
    ],
)
def test_as_on_text(pattern, text, groups):
    expected = pattern.search(text)
    hit = Search(pattern, 0).look(bytearray(text.encode()))
    assert hit.match.groups() == expected.groups() == groups
    assert (hit.start, hit.end) == tuple(len(text[:at].encode()) for at in expected.span())


@given(st.sampled_from(PATTERNS), CHUNKS)
@settings(max_examples=600, deadline=None)
def test_all_at_once_as_re_does(source, chunks):
    pattern, whole = re.compile(source), b"".join(chunks)
    text = whole.decode("utf-8", "replace")
    expected = pattern.search(text)
    hit = Search(pattern, 0).look(bytearray(whole), thorough=True)
    assert (hit and hit.match.span()) == (expected and expected.span())
    if hit:
        assert whole[: hit.start].decode("utf-8", "replace") == text[: expected.start()]
        assert whole[: hit.end].decode("utf-8", "replace") == text[: expected.end()]


@given(
    st.sampled_from([r"R = \d+([Ωk])", r"\[(.)\] ok", r"╔═+╗", r"é", r"(?<=é)x", r"\N{CHECK MARK}", r"a\nb"]), CHUNKS
)
@settings(max_examples=300, deadline=None)
def test_pieces_that_part_characters(source, chunks):
    """No match of half a character, and none is missed."""
    pattern, whole = re.compile(source), b"".join(chunks) + "[✓] ok\nR = 1Ω ╔═╗ éx a\nb\n".encode()
    expected = pattern.search(whole.decode("utf-8", "replace"))
    search, buffer, hit = Search(pattern, 0), bytearray(), None
    for byte in whole:
        buffer.append(byte)
        hit = hit or search.look(buffer)
    hit = hit or search.look(buffer, thorough=True)
    assert hit.match.group() == expected.group()
    assert whole[: hit.start].decode("utf-8", "replace").endswith(expected.string[: expected.start()][-64:])


def test_a_match_does_not_begin_at_the_search():
    text = "é ok\n"
    assert Search(re.compile("^ok"), 3).look(bytearray(text.encode())) is None
    assert Search(re.compile(r"(?<=é )ok"), 3).look(bytearray(text.encode())).start == 3


def test_strings_are_literal_and_bytes_are_bytes():
    buffer = bytearray("a.b [✓] é\n".encode() + b"\xff")
    assert Search("[✓]", 0).look(buffer).start == 4
    assert Search("a.c", 0).look(buffer) is None
    assert Search(re.compile(rb"\xc3."), 0).look(buffer).match.group() == "é".encode()
    assert Search("\ufffd", 0).look(buffer, thorough=True).start == len(buffer) - 1
