"""SLIP frames and the checksum."""

from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from pytest_esp.formats.checksum import checksum
from pytest_esp.wire.framing import Decoder, encode

packets = st.lists(st.binary(min_size=1, max_size=300), max_size=8)


@given(packets, st.integers(1, 40))
def test_frames_survive_any_cutting(sent, size):
    stream = b"".join(map(encode, sent))
    decoder = Decoder()
    received = []
    for start in range(0, len(stream), size):
        received += decoder.feed(stream[start : start + size])
    assert received == sent
    assert decoder.leftover == b""


@given(st.binary(max_size=50).filter(lambda noise: b"\xc0" not in noise), st.binary(min_size=1, max_size=50))
def test_noise_before_a_frame_is_kept_aside(noise, packet):
    decoder = Decoder()
    assert decoder.feed(noise + encode(packet)) == [packet]
    assert decoder.leftover == noise


def test_after_a_lost_end_the_stream_finds_itself_again():
    decoder = Decoder()
    broken = encode(b"one")[:-1]
    assert b"three" in decoder.feed(broken + encode(b"two") + encode(b"three") + encode(b"four"))[-2:]


@given(st.binary(max_size=3000))
def test_the_checksum_is_the_exclusive_or_of_all_bytes(data):
    assert checksum(data) == reduce(lambda a, b: a ^ b, data, 0xEF)
