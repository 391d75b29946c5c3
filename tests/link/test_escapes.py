"""Escape sequences are removed from console output, and never hold text back for longer than a moment."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_esp.controls import without_controls
from pytest_esp.link.console import Console
from pytest_esp.link.escapes import EscapeFilter, without_escapes
from pytest_esp.wire.port import VirtualPort
from pytest_esp.wire.wire import Wire

SEQUENCES = [
    b"\x1bc", b"\x1b7", b"\x1b8", b"\x1b=", b"\x1b>", b"\x1b(B", b"\x1b)0", b"\x1b#8", b"\x1b%G",
    b"\x1b[0;32m", b"\x1b[2J", b"\x1b[?25l", b"\x1b[1;1H", b"\x1b[>4;2m", b"\x1b[ q",
    b"\x1b]0;title\x07", b"\x1b]52;c;Y2xpcGJvYXJk\x07", b"\x1b]8;;http://x\x1b\\", b"\x1bPq#0;2;0;0;0\x1b\\",
    b"\x1b_private\x1b\\", b"\x1b^note\x1b\\", b"\x1bXstring\x1b\\",
]  # fmt: skip
STRAY = [b"\x1b", b"\x1b\x1b", b"\x1b\x80\xff", b"\x1b\r\n", b"\x1b[\r\n", b"\x1b]", b"\x1bP", b"\x1b[12", b"\x1b("]
LINES = [b"ready", b"ESP-ROM:esp32c3", b"rst:0x1 (POWERON)", b"E (354) boot: no", b"MAC", b"Hello", b"I (1) x"]


@pytest.fixture
def board():
    wire = Wire()
    port = VirtualPort(wire, "board")
    port.open()
    console = Console(port, board="board")
    console.attach()
    console.transmit = wire.transmit
    yield console
    console.close()


@pytest.mark.parametrize("sequence", SEQUENCES, ids=repr)
def test_a_sequence_is_removed_wherever_it_is_cut(sequence):
    whole = b"before" + sequence + b"ready\r\n"
    for cut in range(len(whole)):
        escapes = EscapeFilter()
        assert escapes.feed(whole[:cut]) + escapes.feed(whole[cut:]) == b"beforeready\r\n"
    assert without_escapes(whole) == b"beforeready\r\n"


@pytest.mark.parametrize("sequence", SEQUENCES, ids=repr)
def test_text_after_a_sequence_is_there_at_once(board, sequence):
    board.transmit(sequence + b"ready\r\n")
    assert board.text == "ready\r\n"
    board.expect("ready", timeout=0)


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("stray", STRAY, ids=repr)
def test_text_after_a_stray_escape_arrives(board, stray, line):
    if stray == b"\x1b[12":
        stray += b"\n"  # with a letter, it would be a sequence
    board.transmit(b"noise" + stray + line)
    begun = time.monotonic()
    board.expect(line, timeout=2)
    assert time.monotonic() - begun < 0.5


def test_text_in_a_sequence_that_does_not_end_while_output_goes_on(board):
    board.transmit(b"\x1b]0;")
    for _ in range(20):
        time.sleep(0.05)
        board.transmit(b".")
    board.expect("0;........", timeout=0.0)


def test_a_sequence_in_slow_pieces_is_still_one(board):
    for byte in b"\x1b[0;32mgreen\x1b[0m\r\n":
        board.transmit(bytes([byte]))
        time.sleep(0.005)
    assert board.text == "green\r\n"


@given(st.lists(st.sampled_from([*SEQUENCES, *STRAY, *LINES, b"\n", b"m", b";", b"\x07"])), st.data())
def test_the_pieces_make_no_difference(parts, data):
    whole = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    for colours in (False, True):
        at_once, pieces = EscapeFilter(keeps_colours=colours), EscapeFilter(keeps_colours=colours)
        expected = at_once.feed(whole) + at_once.release()
        got = b"".join(pieces.feed(whole[a:b]) for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True))
        assert got + pieces.release() == expected
    assert b"\x1b" not in without_escapes(whole)


def test_only_colours_are_kept_for_the_echo():
    escapes = EscapeFilter(keeps_colours=True)
    said = b"".join(escapes.feed(sequence) for sequence in SEQUENCES) + escapes.feed(b"\x1b[38:5:1mred")
    assert said == b"\x1b[0;32m\x1b[38:5:1mred"


@pytest.mark.parametrize(
    "control", ["\x07", "\x08", "\x9b2J", "\x9d52;c;eA\x9c", "\x90q\x9c", "\r!", "\x7f", "\x1b]0;t"]
)
def test_what_a_terminal_gets_has_no_controls(control):
    shown = without_controls(f"a\t{control}b\r\n", colours=True)
    assert shown.startswith("a\t\\")
    assert shown.endswith("b\n")
    assert shown.replace("\t", "").replace("\n", "").isprintable()


def test_colours_on_a_terminal_and_elsewhere():
    assert without_controls("\x1b[0;31mred\x1b[0m", colours=True) == "\x1b[0;31mred\x1b[0m"
    assert without_controls("\x1b[0;31mred\x1b[0m") == "red"
