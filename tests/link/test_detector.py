"""Crashes are noticed in what a console says, whole, and the same whatever the pieces in which it comes."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_esp.link.crash import Kind, classify
from pytest_esp.link.detector import CrashDetector

DATA = Path(__file__).parent / "data"
CRASHES = tomllib.loads((DATA / "crashes.toml").read_text(encoding="utf-8"))
BOOT = b"ESP-ROM:esp32c3-api1-20210207\r\nBuild:Feb  7 2021\r\nrst:0x%x (%s),boot:0xc (SPI_FAST_FLASH_BOOT)\r\n"
LOG = b"I (312) cpu_start: Pro cpu start user code\r\nI (330) main_task: Calling app_main()\r\nHello world!\r\n"


def boot(code, name):
    return BOOT % (code, name)


def on_console(name):
    """The text of a crash as it comes from a UART."""
    return CRASHES[name]["text"].lstrip("\n").replace("\n", "\r\n").encode()


ABORT, PANIC, DAMAGED_APP = on_console("abort"), on_console("panic_xtensa"), on_console("damaged_app")


def found(pieces, **options):
    """What a detector finds: where each crash begins, what it is, and its text."""
    detector = CrashDetector(**options)
    for piece in pieces:
        detector.feed(piece)
    detector.quiet()
    return list(taken(detector))


def taken(detector):
    while crash := detector.take():
        yield crash.begin, crash.kind, bytes(crash.raw), crash.complete


@pytest.mark.parametrize("name", CRASHES)
def test_each_kind_is_found_whole(name):
    text = on_console(name)
    assert found([LOG, text]) == [(len(LOG), Kind(CRASHES[name]["kind"]), text, True)]


@pytest.mark.parametrize("name", CRASHES)
def test_each_kind_is_found_wherever_the_pieces_part(name):
    stream = LOG + on_console(name) + LOG
    whole = found([stream])
    assert len(whole) == 1
    for cut in range(len(stream) + 1):
        assert found([stream[:cut], stream[cut:]]) == whole


@pytest.mark.parametrize("name", CRASHES)
def test_each_kind_is_found_byte_by_byte(name):
    stream = LOG + on_console(name) + LOG
    assert found([bytes([byte]) for byte in stream]) == found([stream])


@settings(deadline=None)
@given(st.lists(st.integers(0, 8905), max_size=30).map(sorted), st.sampled_from(sorted(DATA.glob("*.log"))))
def test_real_consoles_in_any_pieces(cuts, path):
    stream = path.read_bytes()
    pieces = [stream[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert found(pieces) == found([stream])


def test_a_crash_loop_of_an_emulated_esp32c3():
    first, second = found([(DATA / "panic_esp32c3.log").read_bytes()])
    for _, kind, raw, _ in (first, second):
        assert kind is Kind.PANIC
        assert raw.startswith(b"Guru Meditation Error: Core  0 panic'ed (Store access fault)")
        assert raw.endswith(b"ELF file SHA256: a511d501e\r\n\r\nRebooting...\r\n")


def test_a_core_dump_belongs_to_the_crash():
    ((_, kind, raw, _),) = found([(DATA / "coredump_uart_esp32.log").read_bytes()])
    assert kind is Kind.PANIC
    assert raw.startswith(b"Guru Meditation Error: Core  0 panic'ed (StoreProhibited)")
    assert b"= CORE DUMP END =" in raw
    assert raw.endswith(b"Core dump has been written to uart.\r\nRebooting...\r\n")


def test_a_crash_on_a_console_that_lost_bytes_ends_with_the_next_boot():
    ((_, kind, raw, _),) = found([(DATA / "coredump_uart_esp32_lossy.log").read_bytes()])
    assert kind is Kind.PANIC
    assert b"Backtrace: 0x400d525d:0x3ffb46b0" in raw
    assert b"Rebooting" not in raw
    assert b"rst:0xc" not in raw


def test_a_crash_grows_until_its_end_mark():
    detector = CrashDetector()
    head, mark, _ = PANIC.partition(b"Rebooting")
    detector.feed(LOG + head)
    assert detector.crash is not None
    assert not detector.crash.complete
    detector.feed(mark + b"...\r\n")
    assert detector.crash.complete
    assert bytes(detector.crash.raw) == PANIC


def test_a_crash_that_nothing_ends_is_complete_when_the_console_is_quiet():
    detector = CrashDetector()
    detector.feed(PANIC[:400] + b"\r\nBackt")
    detector.quiet()
    assert detector.crash.complete
    assert bytes(detector.crash.raw) == PANIC[:400] + b"\r\nBackt"


def test_more_patience_in_the_middle_of_a_dump_than_after_it():
    detector = CrashDetector()
    detector.feed(PANIC[:400])
    assert detector.patience == 1.0
    detector.feed(PANIC[400:].partition(b"Rebooting")[0])
    assert not detector.crash.complete
    assert detector.patience == 0.1


def test_two_crashes_in_a_row():
    stream = LOG + PANIC + boot(0xC, b"RTC_SW_CPU_RST") + LOG + ABORT
    first, second = found([stream])
    assert first == (len(LOG), Kind.PANIC, PANIC, True)
    assert second == (len(stream) - len(ABORT), Kind.ABORT, ABORT, True)


def test_the_boot_ends_a_dump_that_was_cut_off_and_belongs_to_it():
    (crash,) = found([PANIC[:300] + b"\r\n" + boot(0x10, b"RTCWDT_RTC_RST") + LOG])
    assert crash[1:] == (Kind.PANIC, PANIC[:300] + b"\r\n", True)


def test_the_reset_after_a_brownout_is_the_same_brownout():
    (crash,) = found([on_console("brownout") + boot(0xF, b"RTCWDT_BROWN_OUT_RESET") + LOG])
    assert crash[1] is Kind.BROWNOUT


def test_the_next_watchdog_reset_is_a_crash_of_its_own():
    stream = PANIC + boot(0xC, b"RTC_SW_CPU_RST") + LOG + boot(0x7, b"TG0WDT_SYS_RST") + LOG
    assert [kind for _, kind, _, _ in found([stream])] == [Kind.PANIC, Kind.WATCHDOG_RESET]


def test_a_reset_that_the_caller_makes_is_no_crash():
    detector = CrashDetector()
    detector.expect_reset()
    detector.feed(boot(0x10, b"RTCWDT_RTC_RST") + LOG)
    assert detector.crash is None
    detector.feed(boot(0x10, b"RTCWDT_RTC_RST") + LOG)
    assert detector.crash.kind is Kind.WATCHDOG_RESET


@pytest.mark.parametrize(
    "reset",
    [(0x1, b"POWERON"), (0x3, b"RTC_SW_SYS_RST"), (0x5, b"DSLEEP"), (0xC, b"SW_CPU"), (0x15, b"USB_UART_CHIP_RESET")],
)
def test_other_resets_are_no_crashes(reset):
    assert found([boot(*reset) + LOG]) == []


def test_three_boots_without_a_crash_are_a_boot_loop():
    detector = CrashDetector()
    detector.feed((boot(0x3, b"RTC_SW_SYS_RST") + LOG) * 2)
    assert detector.crash is None
    detector.feed(boot(0x3, b"RTC_SW_SYS_RST"))
    assert detector.crash.kind is Kind.BOOT_LOOP
    assert detector.crash.complete
    assert detector.take().text.count("rst:0x3") == 3
    assert detector.crash is None


@pytest.mark.parametrize(
    "wake_up",
    [
        b"ets Jun  8 2016 00:22:57\r\n\r\nrst:0x5 (DEEPSLEEP_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)\r\n",
        boot(5, b"DSLEEP"),
        b"\r\n ets Jan  8 2013,rst cause:5, boot mode:(3,6)\r\n\r\n",
    ],
)
def test_waking_up_is_no_crash(wake_up):
    assert found([(wake_up + LOG) * 10]) == []
    assert found([(boot(1, b"POWERON") + wake_up) * 5]) == []


@pytest.mark.parametrize(("mode", "kinds"), [(1, [Kind.DOWNLOAD_MODE]), (3, [])])
def test_an_esp8266_in_its_loader_says_so_by_its_boot_mode(mode, kinds):
    line = b"\r\n ets Jan  8 2013,rst cause:1, boot mode:(%d,7)\r\n\r\n" % mode
    assert [kind for _, kind, *_ in found([line])] == kinds
    detector = CrashDetector()
    detector.expect_reset()  # it should have started the app
    detector.feed(line)
    assert [kind for _, kind, *_ in taken(detector)] == kinds


@pytest.mark.parametrize(
    "line",
    [
        b"I (1) ota: waiting for download\r\n",
        b"waiting for download to finish\r\n",
        b"E (1) http: Exception (28): no\r\n",
        b"Exception (timeout)\r\n",
        b"I (1) app: Soft WDT reset\r\n",
        b"I (9) ota: wrong chip id 0x0005\r\n",
    ],
)
def test_an_app_may_log_such_words(line):
    assert found([line]) == []


def test_boots_are_counted_anew_for_each_wait():
    detector = CrashDetector()
    for _ in range(5):
        detector.wait_anew()
        detector.feed((boot(0x3, b"RTC_SW_SYS_RST") + LOG) * 2)
    assert detector.crash is None


@pytest.mark.parametrize(("limit", "kinds"), [(None, []), (2, [Kind.BOOT_LOOP] * 3), (6, [Kind.BOOT_LOOP])])
def test_how_many_boots_are_a_loop_is_the_callers_choice(limit, kinds):
    stream = (boot(0x3, b"RTC_SW_SYS_RST") + LOG) * 6
    assert [kind for _, kind, _, _ in found([stream], boot_limit=limit)] == kinds


def test_a_blank_flash_is_said_once_a_boot():
    stream = (boot(0x10, b"RTCWDT_RTC_RESET") + b"invalid header: 0xffffffff\r\n" * 7) * 2
    assert [kind for _, kind, _, _ in found([stream])] == [Kind.WATCHDOG_RESET, *[Kind.NOT_BOOTABLE] * 2]


# What ROMs print of bootloaders that they do not start: from QEMU's ESP32-C3 and ESP32.
NOT_STARTED = [
    (b"Checksum failure. Calculated 0x8c stored 0x8d\r\nets_main.c 333 \r\n", "bootloader in flash is damaged"),
    (b"csum err:0x09!=0x08\r\nFalling back to built-in command interpreter.\r\n", "bootloader in flash is damaged"),
    (b"Invalid image block, can't boot.\r\nets_main.c 333 \r\n", "bootloader in flash is damaged"),
    (b"Invalid image block count: 17 (max 16)\r\nets_main.c 333 \r\n", "bootloader in flash is damaged"),
    (b"Invalid chip id. Expected 5 read 0. Bootloader for wrong chip?\r\nets_main.c 333 \r\n", "for another chip"),
    (b"wrong chip id 0x0005\r\n" * 8, "for another chip"),
    (
        b"Valid secure boot key blocks: 0\r\nNo signature block magic byte found at signature sector (found 0xff not "
        b"0xe7). Image not V2 signed?\r\nsecure boot verification failed\r\nets_main.c 333 \r\n",
        "not trusted: No signature block magic byte found at signature sector",
    ),
    (
        b"secure boot v2 enabled\r\nSig block 0 signed with untrusted key\r\nsecure boot verification failed\r\n",
        "not trusted: Sig block 0 signed with untrusted key",
    ),
    (b"SHA-256 simple hash comparison failed.\r\nsecure boot verification failed\r\n", "not trusted: SHA-256 simple"),
    (
        b"E (48) boot: ota_info partition size 4096 is too small (minimum 8192 bytes)\r\n",
        "ota_info partition size 4096",
    ),
]


@pytest.mark.parametrize(("said", "reason"), NOT_STARTED)
def test_a_bootloader_that_the_rom_does_not_start(said, reason):
    crashes = found([boot(0x1, b"POWERON") + b"SPIWP:0xee\r\nmode:DIO, clock div:1\r\n" + said])
    assert [kind for _, kind, _, _ in crashes] == [Kind.NOT_BOOTABLE]
    assert reason in classify(crashes[0][2].decode()).reason


def test_an_image_whose_hash_the_rom_ignores_is_no_crash():
    said = b"SHA-256 comparison failed:\r\nCalculated: 00\r\nExpected: 01\r\nAttempting to boot anyway...\r\n"
    assert found([boot(0x1, b"POWERON") + said + LOG]) == []


def test_an_image_that_another_slot_makes_up_for_is_no_crash():
    stream = (
        DAMAGED_APP[: DAMAGED_APP.index(b"E (360)")] + b"I (390) boot: Loaded app from partition at offset 0x150000\r\n"
    )
    assert found([stream + LOG]) == []


def test_a_task_watchdog_that_only_warns_is_no_crash():
    stream = (
        on_console("task_watchdog").replace(b"E (10325) task_wdt: Aborting.\r\n", b"").replace(b"Rebooting...", b"")
    )
    assert found([stream + LOG]) == []


@pytest.mark.parametrize(
    "line",
    [
        b"W (12) selftest: assert failed: is what it would say",
        b"first:0x7 (x)",
        b"Guru Meditation",
        b"abort() was called",
    ],
)
def test_words_in_a_log_are_no_crash(line):
    assert found([LOG + line + b"\r\n" + LOG]) == []


def test_a_damaged_heap_that_the_app_survives_does_not_swallow_its_log():
    head = b"CORRUPT HEAP: Bad tail at 0x3ffe270a. Expected 0xbaad5678 got 0xbaac5678\r\n"
    first, second = found([head + LOG * 1000 + ABORT])
    assert first[1] is Kind.HEAP_CORRUPTION
    assert first[2].startswith(head)
    assert len(first[2]) < 20_000
    assert second[1:] == (Kind.ABORT, ABORT, True)


def test_kinds_that_the_caller_ignores():
    detector = CrashDetector(ignored={Kind.ABORT})
    detector.feed(ABORT[:-10])
    assert detector.crash is None
    detector.feed(ABORT[-10:] + boot(0xC, b"SW_CPU_RESET") + PANIC)
    assert [kind for _, kind, _, _ in taken(detector)] == [Kind.PANIC]


def test_taking_a_crash_before_its_end():
    detector = CrashDetector()
    detector.feed(PANIC[:300])
    assert detector.take().complete
    detector.feed(PANIC[300:] + boot(0xC, b"SW_CPU_RESET") + LOG)
    assert detector.crash is None


@pytest.mark.parametrize("sequence", [b"\x1b[0;31m", b"\x1b[0m", b"\x1b[2K\x1b[1G"])
@pytest.mark.parametrize("name", CRASHES)
def test_colours_in_between_do_not_matter(name, sequence):
    text = on_console(name)
    coloured = b"".join(sequence + text[at : at + 7] for at in range(0, len(text), 7)) + sequence
    expected = found([LOG, text])
    assert found([LOG, coloured]) == expected
    assert found([LOG, *(bytes([byte]) for byte in coloured)]) == expected


@pytest.mark.parametrize("name", CRASHES)
def test_bare_line_feeds_do(name):
    text = CRASHES[name]["text"].lstrip("\n").encode()
    assert found([b"Hello world!\n", text]) == [(13, Kind(CRASHES[name]["kind"]), text, True)]


def test_noise_before_a_boot():
    (crash,) = found([b"\xff\x00\xfe\x80garbage" * 300 + boot(0x7, b"TG0WDT_SYS_RST")])
    assert crash[1] is Kind.WATCHDOG_RESET


def test_a_crash_after_a_flood():
    flood = b"I (4444) app_main: loop counter=123 heap=234567\r\n" * 1300
    detector = CrashDetector()
    for _ in range(200):
        detector.feed(flood)
    detector.feed(ABORT)
    assert list(taken(detector)) == [(200 * len(flood), Kind.ABORT, ABORT, True)]


def test_crashes_that_nobody_takes_do_not_pile_up():
    assert len(found([(PANIC + boot(0xC, b"SW_CPU_RESET")) * 100])) == 16


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(st.binary(max_size=300), st.sampled_from([ABORT, PANIC, LOG, boot(7, b"TG0WDT_SYS_RST"), b"\x1b["]))
    )
)
def test_anything_at_all_in_any_pieces(pieces):
    stream = b"".join(pieces)
    expected = found([stream])
    assert found(pieces) == expected
    assert found([stream[at : at + 37] for at in range(0, len(stream), 37)]) == expected
