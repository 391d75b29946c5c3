"""The loaders' answers, byte for byte, to what a host should and should not send."""

import hashlib
import random
import struct
import zlib

import pytest

from pytest_esp.formats.checksum import checksum
from pytest_esp.wire.framing import encode

SYNC = b"\x07\x07\x12\x20" + 32 * b"\x55"


def command(op, data=b"", check=0):
    return encode(struct.pack("<BBHI", 0, op, len(data), check) + data)


def block(op, content, sequence=0, check=None):
    check = checksum(content) if check is None else check
    return command(op, struct.pack("<IIII", len(content), sequence, 0, 0) + content, check)


def flash_begin(size, address, op=0x02, block_size=0x400):
    return command(op, struct.pack("<IIIII", size, 1, block_size, address, 0))


def md5(address, size):
    return command(0x13, struct.pack("<IIII", address, size, 0, 0))


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
def test_the_rom_answers_an_unknown_command_as_if_it_were_a_sync(rom, op):
    assert rom.send(command(op, bytes(16))) == 8 * bytes.fromhex("c0 01 08 04 00 00 00 00 00 01 05 00 00 c0")


@pytest.mark.parametrize(("op", "status"), [(0x01, 0xC3), (0x0E, 0xC3), (0xD4, 0xC3), (0xD5, 0xFF), (0xFF, 0xC3)])
def test_the_stub_says_that_it_does_not_know_a_command(stub, op, status):
    """0xD5 is a command of a plugin that is not loaded."""
    assert stub.send(command(op, bytes(16))) == bytes([0xC0, 1, op, 2, 0, 0, 0, 0, 0, status, 0, 0xC0])


def test_a_wrong_checksum_changes_nothing(rom, stub):
    for host, status in ((rom, "01 07 00 00"), (stub, "c1 00")):
        host.send(flash_begin(0x400, 0x1000))
        answer = host.send(block(0x03, b"A" * 0x400, check=0x12))
        assert answer.endswith(bytes.fromhex(status) + b"\xc0")
        assert host.send(md5(0x1000, 0x1000)) == host.send(md5(0x2000, 0x1000))


def test_what_has_a_wrong_checksum_can_be_sent_again_to_the_stub_only(rom, stub):
    """The ROM has counted it."""
    for host, status in ((rom, "01 05 00 00"), (stub, "00 00")):
        host.send(flash_begin(0x400, 0x1000))
        host.send(block(0x03, b"A" * 0x400, check=0x12))
        assert host.send(block(0x03, b"A" * 0x400)).endswith(bytes.fromhex(status) + b"\xc0")


def test_short_packets_are_refused_by_the_stub(stub):
    for packet in (command(0x0A, b"\0\0"), command(0x02, bytes(3)), command(0x08)):
        assert stub.send(packet).endswith(b"\xdb\xdc\0\xc0")  # c0, in a frame
    assert stub.send(command(0x09, bytes(15))).endswith(b"\xc8\0\xc0")


def test_the_rom_looks_at_few_lengths(rom):
    for packet in (command(0x0A, b"\0\0"), command(0x09, bytes(15)), command(0x08), command(0x0D)):
        assert rom.send(packet).endswith(b"\0\0\0\0\xc0")
    for packet in (command(0x02, bytes(16)), command(0x05, bytes(12)), command(0x0B, bytes(8))):
        assert rom.send(packet).endswith(b"\x01\x05\0\0\xc0")


def test_a_length_that_lies_is_refused_by_the_stub_only(rom, stub):
    packet = bytearray(command(0x0A, bytes(4)))
    packet[3] = 200
    assert rom.send(bytes(packet)).endswith(bytes(4) + b"\xc0")
    assert stub.send(bytes(packet)).endswith(b"\xdb\xdc\0\xc0")


def test_data_before_begin_is_refused(stub, rom):
    assert stub.send(block(0x03, b"abcd")).endswith(b"\xc6\0\xc0")
    assert rom.send(block(0x03, b"abcd")).endswith(b"\x01\x05\0\0\xc0")


def test_bad_compressed_data_is_refused(stub, rom):
    """The stub inflates after its answer: the next command, whatever it is, has the error."""
    for host in (rom, stub):
        host.send(flash_begin(0x400, 0, op=0x10))
    assert rom.send(block(0x11, b"this is not deflated")).endswith(b"\x01\x0b\0\0\xc0")
    assert stub.send(block(0x11, b"this is not deflated")).endswith(b"\0\0\xc0")
    assert stub.send(command(0x08, SYNC)) == bytes.fromhex("c0 01 08 02 00 00 00 00 00 c7 00 c0")
    assert stub.send(command(0x08, SYNC)).count(b"\xc0\x01\x08") == 8


def test_the_stub_counts_what_it_was_promised(stub):
    for promised in (0x400, 0x1000):
        stub.send(flash_begin(promised, 0, op=0x10))
        assert stub.send(block(0x11, zlib.compress(b"A" * 0x800))).endswith(b"\0\0\xc0")
        assert stub.send(command(0x12, bytes(4))).endswith(b"\xdb\xdc\0\xc0")


def test_the_rom_wants_its_blocks_in_order_and_none_too_long(rom):
    statuses = []
    rom.send(flash_begin(0x1000, 0))
    for sequence, size in ((1, 0x400), (0, 0x401), (0, 0x200), (0, 0x400), (1, 0x400)):
        statuses.append(rom.send(block(0x03, b"A" * size, sequence))[-5:-3].hex())
    assert statuses == ["0105", "0105", "0000", "0105", "0000"]
    assert rom.send(md5(0, 0x600)) == rom.send(md5(0, 0x600))


def test_nothing_is_read_beyond_the_flash(rom, stub):
    beyond = 4 * 1024 * 1024 - 16
    assert rom.send(md5(beyond, 32)).endswith(b"\x01\x09\0\0\xc0")
    assert rom.send(command(0x0E, struct.pack("<II", beyond, 32))).endswith(b"\x01\x09\0\0\xc0")
    assert rom.send(command(0x0E, struct.pack("<II", 0, 65))).endswith(b"\x01\x0a\0\0\xc0")
    assert stub.send(md5(beyond, 32)).endswith(b"\xc4\0\xc0")
    assert stub.send(command(0xD2, struct.pack("<IIII", beyond, 32, 0x1000, 1))).endswith(b"\0\0\xc0")
    assert stub.send(command(0x0A, bytes(4))).endswith(b"\xc4\0\xc0")


@pytest.mark.parametrize(("address", "size"), [(0x100, 0x400), (0x3FF000, 0x1001), (0x400000, 0x400)])
def test_the_rom_erases_no_part_of_a_sector_and_nothing_beyond_the_flash(rom, address, size):
    assert rom.send(flash_begin(size, address)).endswith(b"\x01\x06\0\0\xc0")


@pytest.mark.parametrize(("stay", "mode"), [(1, "app"), (0, "bootloader")])
def test_the_rom_leaves_or_reboots_with_an_error_if_blocks_are_missing(bench, stay, mode):
    chip = bench.chip("esp32c3")
    host = bench.raw(chip)
    host.send(flash_begin(0x400, 0))
    answer = host.send(command(0x04, bytes([stay, 0, 0, 0])))
    assert bytes.fromhex("04 04 00 00 00 00 00 01 06 00 00 c0") in answer
    assert (b"RTC_SW_SYS_RST" in answer) or stay
    assert chip.mode == mode


@pytest.mark.parametrize(
    ("chip", "mode", "reason"),
    [("esp32", "bootloader", b"rst:0x3 (SW_RESET)"), ("esp32c3", "bootloader", b"rst:0x3 (RTC_SW_SYS_RST)"),
     ("esp8266", "app", b"rst cause")],
)  # fmt: skip
def test_a_reboot_by_the_rom_finds_the_boot_strap_as_it_was_latched(bench, chip, mode, reason):
    """As QEMU's ROMs do (esp32, esp32c3)."""
    chip = bench.chip(chip)
    host = bench.raw(chip)
    host.send(flash_begin(0, 0))
    said = host.send(command(0x04, bytes(4)))
    if chip.chip == "esp8266":  # its ROM prints at another baud rate than its loader
        host.port.baudrate = 74880
        host.port.timeout = 5
        said = host.port.read(40)
    assert reason in said
    assert chip.mode == mode


def test_the_stub_writes_nothing_past_the_size(bench):
    chip = bench.chip("esp32c3")
    bench.esptool(chip, stub=True)
    chip.flash.program(0x2000, b"here before")
    host = bench.raw(chip)
    host.send(flash_begin(0x1000, 0x1000, block_size=0x4000))
    host.send(block(0x03, b"\0" * 0x4000))
    assert chip.flash.read(0x1FFF, 12) == b"\0here before"


def test_the_stub_takes_a_plain_block_that_comes_twice_for_two(bench):
    """It does not look at the numbers: after a lost answer, only the MD5 tells."""
    chip = bench.chip("esp32c3")
    bench.esptool(chip, stub=True)
    host = bench.raw(chip)
    host.send(flash_begin(0x800, 0))
    for _ in range(2):
        assert host.send(block(0x03, b"A" * 0x400)).endswith(b"\0\0\xc0")
    assert chip.flash.read(0, 0x801) == b"A" * 0x800 + b"\xff"


def test_a_read_sends_one_frame_at_a_time(stub):
    """The window that the host allows is not used."""
    assert len(stub.send(command(0xD2, struct.pack("<IIII", 0, 0x3000, 0x1000, 64)))) == 12 + 0x1002
    assert len(stub.send(encode(struct.pack("<I", 0x1000)))) == 0x1002
    assert len(stub.send(encode(struct.pack("<I", 0x2000)))) == 0x1002
    assert 18 <= len(stub.send(encode(struct.pack("<I", 0x3000)))) <= 34


def test_a_read_that_a_host_gives_up_takes_the_next_command_with_it(stub):
    stub.send(command(0xD2, struct.pack("<IIII", 0, 0x4000, 0x1000, 1)))
    assert stub.send(command(0x08, SYNC)) == encode(hashlib.md5(b"\xff" * 0x1000).digest())
    assert stub.send(command(0x08, SYNC)).count(b"\xc0\x01\x08") == 8


@pytest.mark.parametrize(
    "packet",
    [
        command(0x13, struct.pack("<IIII", 0, 0xFFFFFFFF, 0, 0)),
        command(0xD1, struct.pack("<II", 1, 1)),
    ],
    ids=["huge md5", "unaligned erase"],
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
