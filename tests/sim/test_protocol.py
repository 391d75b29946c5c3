"""The loaders' answers, byte for byte, to what a host should and should not send."""

import random
import struct
import zlib

import pytest

from pytest_esp.wire.framing import checksum, encode

SYNC = b"\x07\x07\x12\x20" + 32 * b"\x55"


def command(op, data=b"", check=0):
    return encode(struct.pack("<BBHI", 0, op, len(data), check) + data)


def block(op, content, sequence=0, check=None):
    check = checksum(content) if check is None else check
    return command(op, struct.pack("<IIII", len(content), sequence, 0, 0) + content, check)


def flash_begin(size, address, op=0x02, block_size=0x400):
    return command(op, struct.pack("<IIIII", size, 1, block_size, address, 0))


@pytest.fixture
def rom(bench):
    return bench.raw(bench.chip("esp32c3"))


@pytest.fixture
def stub(bench):
    chip = bench.chip("esp32c3")
    bench.esptool(chip, stub=True)
    return bench.raw(chip)


def test_eight_replies_to_a_sync(rom, stub):
    from_rom, from_stub = rom.send(command(0x08, SYNC)), stub.send(command(0x08, SYNC))
    assert from_rom == 8 * bytes.fromhex("c0 01 08 04 00 07 07 12 20 00 00 00 00 c0")
    assert from_stub == 8 * bytes.fromhex("c0 01 08 02 00 00 00 00 00 00 00 c0")


@pytest.mark.parametrize("op", [0x01, 0x15, 0x7F, 0xD0, 0xD2, 0xD5, 0xFF])
def test_the_rom_answers_an_unknown_command_under_another_number(rom, op):
    assert rom.send(command(op, bytes(16))) == bytes.fromhex("c0 01 00 04 00 00 00 00 00 01 05 00 00 c0")


@pytest.mark.parametrize("op", [0x01, 0x0E, 0x7F, 0xD3, 0xD5, 0xFF])
def test_the_stub_says_that_it_does_not_know_a_command(stub, op):
    assert stub.send(command(op, bytes(16))) == bytes([0xC0, 1, op, 2, 0, 0, 0, 0, 0, 0xFF, 0, 0xC0])


def test_a_wrong_checksum_changes_nothing(rom, stub):
    for host, status in ((rom, "01 07 00 00"), (stub, "c1 00")):
        host.send(flash_begin(0x400, 0x1000))
        answer = host.send(block(0x03, b"A" * 0x400, check=0x12))
        assert answer.endswith(bytes.fromhex(status) + b"\xc0")
        assert host.send(block(0x03, b"A" * 0x400)).endswith(b"\0\0\xc0")


def test_short_packets_are_refused(rom, stub):
    for host, status in ((rom, "01 05 00 00"), (stub, "db dc 00")):  # c0, in a frame
        for packet in (command(0x0A, b"\0\0"), command(0x09, bytes(15)), command(0x02, bytes(3)), command(0x08)):
            assert host.send(packet).endswith(bytes.fromhex(status) + b"\xc0")


def test_a_length_that_lies_is_refused(rom):
    packet = bytearray(command(0x0A, bytes(4)))
    packet[3] = 200
    assert rom.send(bytes(packet)).endswith(bytes.fromhex("01 05 00 00 c0"))


def test_data_before_begin_is_refused(stub, rom):
    assert stub.send(block(0x03, b"abcd")).endswith(b"\xc6\0\xc0")
    assert rom.send(block(0x03, b"abcd")).endswith(b"\x01\x06\0\0\xc0")


def test_bad_compressed_data_is_refused(stub, rom):
    for host, status in ((rom, "01 0b 00 00"), (stub, "c7 00")):
        host.send(flash_begin(0x400, 0, op=0x10))
        assert host.send(block(0x11, b"this is not deflated")).endswith(bytes.fromhex(status) + b"\xc0")


def test_the_stub_counts_what_it_was_promised(stub):
    packed = zlib.compress(b"A" * 0x800)
    stub.send(flash_begin(0x400, 0, op=0x10))
    assert stub.send(block(0x11, packed)).endswith(b"\xc9\0\xc0")
    stub.send(flash_begin(0x800, 0, op=0x10))
    assert stub.send(command(0x12, bytes(4))).endswith(b"\xc8\0\xc0")


def test_the_stub_writes_nothing_past_the_size(bench):
    chip = bench.chip("esp32c3")
    bench.esptool(chip, stub=True)
    chip.flash.program(0x2000, b"here before")
    host = bench.raw(chip)
    host.send(flash_begin(0x1000, 0x1000, block_size=0x4000))
    host.send(block(0x03, b"\0" * 0x4000))
    assert chip.flash.read(0x1FFF, 12) == b"\0here before"


def test_a_block_that_comes_twice_counts_once(bench):
    chip = bench.chip("esp32c3")
    bench.esptool(chip, stub=True)
    host = bench.raw(chip)
    data = random.Random(2).randbytes(0x1800)
    packed = zlib.compress(data)
    host.send(flash_begin(len(data), 0, op=0x10))
    for number, part in enumerate((packed[:1000], packed[:1000], packed[1000:])):
        assert host.send(block(0x11, part, sequence=number - (number > 0))).endswith(b"\0\0\xc0")
    assert chip.flash.read(0, len(data)) == data


def test_a_read_sends_no_more_than_its_window(stub):
    answer = stub.send(command(0xD2, struct.pack("<IIII", 0, 0x4000, 0x1000, 2)))
    assert len(answer) == 12 + 2 * 0x1002
    assert len(stub.send(encode(struct.pack("<I", 0x1000)))) == 0x1002
    assert len(stub.send(encode(struct.pack("<I", 0x2000)))) == 0x1002
    assert stub.send(encode(struct.pack("<I", 0x3000))) == b""
    assert len(stub.send(encode(struct.pack("<I", 0x4000)))) >= 16 + 2


def test_a_read_that_a_host_gives_up_ends_with_the_next_command(stub):
    stub.send(command(0xD2, struct.pack("<IIII", 0, 0x4000, 0x1000, 1)))
    assert stub.send(command(0x08, SYNC)).count(b"\xc0\x01\x08") == 8


@pytest.mark.parametrize(
    "packet",
    [
        command(0xD2, struct.pack("<IIII", 0, 0xFFFFFFFF, 0x1000, 64)),
        command(0xD2, struct.pack("<IIII", 0, 0x1000, 0xFFFFFFFF, 64)),
        command(0x13, struct.pack("<IIII", 0, 0xFFFFFFFF, 0, 0)),
        command(0xD1, struct.pack("<II", 1, 1)),
        command(0x0F, struct.pack("<II", 0, 0)),
    ],
    ids=["huge read", "huge block", "huge md5", "unaligned erase", "no baud rate"],
)
def test_numbers_that_cannot_be_are_refused(stub, packet):
    status = stub.send(packet)[-3:-1]
    assert status[0] >= 0xC0


def test_frames_in_pieces_and_between_noise(rom):
    packet = command(0x0A, struct.pack("<I", 0x3FC88000))
    whole = rom.send(packet)
    for cut in range(1, len(packet)):
        assert rom.send(packet[:cut]) + rom.send(packet[cut:]) == whole
    assert rom.send(b"\xc0\xc0noise\x00\xff\xc0" + packet) == whole
    assert rom.send(b"\r\nATZ\r\n" + packet) == whole


@pytest.mark.parametrize("name", ["esp32", "esp32s2", "esp32c2", "esp32c3", "esp32p4"])
def test_garbage_in_the_efuse_controller_never_breaks_a_loader(name, bench):
    chip = bench.chip(name)
    host = bench.raw(chip)
    source = random.Random(name)
    for _ in range(300):
        address = chip.efuses.base + source.randrange(chip.efuses.size)
        value = source.choice([1, 2, 0x5A5A, 0x5AA5, source.getrandbits(32)])
        host.send(command(0x09, struct.pack("<IIII", address, value, source.getrandbits(32), 0)))
    # Fuses that lock the loader act at the next reset only.
    assert host.send(command(0x08, SYNC)).count(b"\xc0\x01\x08") == 8


def test_a_burn_that_cannot_be_encoded_burns_nothing(bench):
    chip = bench.chip("esp32c3")
    esp = bench.esptool(chip)
    base = esp.EFUSE_BASE
    for word in range(8):
        esp.write_reg(base + 4 * word, 0x01234567)  # data for BLOCK_KEY0, without its Reed-Solomon code
    esp.write_reg(base + 0x1CC, 0x5A5A)
    esp.write_reg(base + 0x1D4, 4 << 2 | 2)  # program block 4
    assert chip.efuses.key("BLOCK_KEY0") == bytes(32)
    assert bytes(esp.read_mac()).hex(":") == chip.mac


@pytest.mark.parametrize("loader", ["rom", "stub"])
@pytest.mark.parametrize("seed", range(6))
def test_garbage_never_breaks_a_loader(loader, seed, request, bench):
    host = request.getfixturevalue(loader)
    source = random.Random(seed)
    for _ in range(150):
        op = source.choice([*range(0x20), 0xD0, 0xD1, 0xD2, 0xD4, source.randrange(256)])
        if op in (0x04, 0x06, 0x0F, 0x12):
            continue  # these leave the loader, or its baud rate, when they happen to be right
        body = source.randbytes(source.choice([0, 4, 8, 16, 20, source.randrange(600)]))
        packet = bytearray(struct.pack("<BBHI", 0, op, len(body), source.randrange(256)) + body)
        if source.random() < 0.3:
            packet[source.randrange(len(packet))] = source.randrange(256)
        if packet[1] in (0x04, 0x06, 0x0F, 0x12):
            continue
        host.send(encode(bytes(packet)) if source.random() < 0.8 else bytes(packet))
    host.send(b"\xc0\xc0")
    assert host.send(command(0x08, SYNC)).count(b"\xc0\x01\x08") == 8
