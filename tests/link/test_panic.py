"""The text of a crash becomes kind, reason, registers and frames; with the right ELF, functions and lines."""

import itertools
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_esp.link.crash import Frame, Kind
from pytest_esp.link.detector import CrashDetector
from pytest_esp.link.panic import decode, find_elf_sha256

DATA = Path(__file__).parent / "data"
CRASHES = tomllib.loads((DATA / "crashes.toml").read_text(encoding="utf-8"))
# Our own test firmware: its images, and what it printed on QEMU when it crashed.
FIRMWARE = Path(__file__).parents[1] / "firmware"


def first_crash(path):
    detector = CrashDetector()
    detector.feed(path.read_bytes())
    return detector.take().text


C3_CRASH = first_crash(DATA / "panic_esp32c3.log")
ESP32_CRASH = first_crash(DATA / "coredump_uart_esp32.log")
LOSSY_CRASH = first_crash(DATA / "coredump_uart_esp32_lossy.log")


@pytest.fixture
def c3_elf(firmware_folder):
    return firmware_folder / "panic_esp32c3" / "hello_world.elf"


@pytest.fixture
def esp32_elf(firmware_folder):
    return firmware_folder / "coredump_uart_esp32" / "hello_world.elf"


def functions(crash):
    return [frame.function for frame in crash.backtrace]


@pytest.mark.parametrize("name", CRASHES)
def test_each_kind_is_named_with_its_reason(name):
    expected = CRASHES[name]
    crash = decode(expected["text"])
    assert (crash.kind, crash.reason, crash.task) == (expected["kind"], expected["reason"], expected.get("task"))
    if "core" in expected:
        assert crash.core == expected["core"]
    assert crash.describe().startswith(f"{expected['kind']}: {expected['reason']}")


def test_a_riscv_stack_is_unwound_with_the_apps_elf(c3_elf):
    crash = decode(C3_CRASH, c3_elf)
    assert crash.elf_matches
    assert crash.describe().splitlines() == [
        "panic: Store access fault at address 0x00000000, on core 0",
        "#0 0x42005440 in app_main (hello_world_main.c:17)",
        "#1 0x420046d6 in main_task (app_startup.c:199)",
        "#2 0x4200a878 in vPortTaskWrapper (port.c:259)",
    ]
    assert [frame.sp for frame in crash.backtrace] == [0x3FC8C5D0, 0x3FC8C5F0, 0x3FC8C610]
    assert len(crash.registers) == 37
    assert crash.registers["MEPC"] == 0x42005440
    assert crash.registers["S0/FP"] == 0x3C012000
    assert crash.registers["MHARTID"] == 0


def test_an_xtensa_backtrace_is_named_with_the_apps_elf(esp32_elf):
    crash = decode(ESP32_CRASH, esp32_elf)
    assert crash.elf_matches
    assert crash.describe().splitlines() == [
        "panic: StoreProhibited at address 0x00000000, on core 0",
        "#0 0x400d5260 in app_main (hello_world_main.c:17)",
        "#1 0x400d316e in main_task (app_startup.c:199)",
        "#2 0x400daa61 in vPortTaskWrapper (port.c:143)",
    ]
    assert len(crash.registers) == 24
    assert crash.registers["EXCCAUSE"] == 0x1D


def test_a_dump_that_lost_bytes_is_decoded_as_far_as_it_goes(esp32_elf):
    crash = decode(LOSSY_CRASH, esp32_elf)
    assert functions(crash) == ["app_main", "main_task", "vPortTaskWrapper"]
    assert crash.elf_matches is None  # the line with the hash is among what was lost
    assert crash.elf_sha256 is None
    assert "does not show whether it is the firmware's ELF" in crash.describe()


def test_the_hash_that_the_boot_log_showed_stands_in_for_a_lost_one(esp32_elf, c3_elf):
    sha256 = find_elf_sha256((DATA / "coredump_uart_esp32_lossy.log").read_text(encoding="utf-8"))
    assert sha256 == "ab81a733d"
    assert decode(LOSSY_CRASH, esp32_elf, elf_sha256=sha256).elf_matches is True
    assert decode(LOSSY_CRASH, c3_elf, elf_sha256=sha256).elf_matches is False


def test_another_apps_elf_names_nothing(c3_elf, esp32_elf):
    crash = decode(C3_CRASH, esp32_elf)
    assert crash.elf_matches is False
    assert crash.backtrace == (Frame(0x42005440, 0x3FC8C5D0),)
    assert re.search(
        r"no names: .*coredump_uart_esp32.hello_world\.elf is not the ELF of the firmware that crashed\. "
        r"Its SHA-256 begins with ab81a733d, that of the firmware's ELF with a511d501e",
        crash.describe(),
    )


CHAIN = ["store_through", "pass_null", "crash"]


@pytest.mark.parametrize("chip", ["esp32", "esp32c3"])
@pytest.mark.parametrize(
    ("how", "kind", "names"),
    [
        ("crash", Kind.PANIC, [*CHAIN, "run", "main"]),
        ("case", Kind.PANIC, [*CHAIN, "crashes", "run_stage"]),
        ("abort", Kind.ABORT, ["abort", "run", "main"]),
    ],
)
def test_crashes_of_the_test_firmware(chip, how, kind, names):
    text = (FIRMWARE / "panics" / f"{chip}-{how}.txt").read_text(encoding="utf-8")
    crash = decode(text, FIRMWARE / "build" / chip / "pytest_esp_test.elf")
    assert (crash.kind, crash.core, crash.elf_matches) == (kind, 0, True)
    assert functions(crash)[: len(names)] == names


def test_calls_that_the_compiler_inlined_are_frames_of_their_own():
    text = (FIRMWARE / "panics" / "esp32c3-case.txt").read_text(encoding="utf-8")
    frames = decode(text, FIRMWARE / "build" / "esp32c3" / "pytest_esp_test.elf").backtrace
    inlined = [frame for frame in frames if frame.inlined]
    assert "run_selected" in [frame.function for frame in inlined]
    for frame, outer in itertools.pairwise(frames):
        assert not frame.inlined or (outer.pc, outer.sp) == (frame.pc, frame.sp)
    assert str(inlined[0]).endswith("(inlined)")


def test_without_an_elf_there_are_addresses_and_a_hint():
    crash = decode(ESP32_CRASH)
    assert crash.elf_matches is None
    assert crash.describe().splitlines() == [
        "panic: StoreProhibited at address 0x00000000, on core 0",
        "#0 0x400d5260",
        "#1 0x400d316e",
        "#2 0x400daa61",
        "hint: provide the ELF file of this build (its SHA-256 begins with ab81a733d) to see functions and lines",
    ]


def test_both_cores_of_a_dump():
    crash = decode(CRASHES["interrupt_watchdog"]["text"])
    assert crash.core == 0
    assert [frame.pc for frame in crash.backtrace] == [0x400D1F2A, 0x400D20F1]
    assert crash.registers["EPC4"] == 0x400D1F2A
    (other,) = crash.others
    assert other.core == 1
    assert other.registers["A0"] == 0x8008B6A9
    assert [frame.pc for frame in other.backtrace] == [0x4008C0EE, 0x4008B6A6]
    assert "also on core 1:\n#0 0x4008c0ee\n" in crash.describe()


def test_a_backtrace_of_esp_idf_4_has_no_spaces():
    crash = decode(CRASHES["panic_xtensa_v4"]["text"])
    assert [(frame.pc, frame.sp) for frame in crash.backtrace] == [(0x4008A123, 0x3FFB8260), (0x400D20F1, 0x3FFB8280)]
    assert crash.is_cut
    assert crash.elf_sha256 is None  # all zeros: that build has none
    assert "outer frames are missing" in crash.describe()


def test_return_addresses_of_register_windows_become_those_of_the_calls():
    text = "Guru Meditation Error: Core  0 panic'ed (LoadProhibited).\nCore  0 register dump:\n"
    registers = (
        "PC      : 0x400d1f2a  PS      : 0x00060f30  A0      : 0x800d20f4  A1      : 0x3ffb8260\nEXCCAUSE: 0x0000001c\n"
    )
    assert [frame.pc for frame in decode(text + registers).backtrace] == [0x400D1F2A, 0x400D20F1]
    raw = registers + "Backtrace: 0x400d1f27:0x3ffb8260 0x800d20f4:0x3ffb8280\n"
    assert [frame.pc for frame in decode(text + raw).backtrace] == [0x400D1F2A, 0x400D20F1]


def test_a_backtrace_that_a_riscv_chip_printed_itself(c3_elf):
    text = C3_CRASH.partition("Stack memory:")[0] + "Backtrace: 0x42005440:0x3fc8c5d0 0x420046d6:0x3fc8c5f0\r\n"
    assert functions(decode(text, c3_elf)) == ["app_main", "main_task"]


def test_where_the_cpu_was_when_a_watchdog_reset_it():
    crash = decode(CRASHES["watchdog_reset_esp32s3"]["text"])
    assert crash.backtrace == (Frame(0x40043AC8),)


def test_a_boot_loop_tells_what_the_boots_were_caused_by():
    boot = "rst:0x3 (SW_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)\r\n"
    crash = decode(boot * 3)
    assert crash.kind is Kind.BOOT_LOOP
    assert crash.describe() == "boot loop: 3 boots in a row: rst:0x3 (SW_RESET), rst:0x3 (SW_RESET), rst:0x3 (SW_RESET)"


def test_colours_and_bytes_do_not_matter():
    coloured = b"\x1b[0;31m" + C3_CRASH.replace(" register", "\x1b[0m register").encode() + b"\xff\xfe"
    assert decode(coloured) == decode(C3_CRASH)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "image"])
def test_an_elf_that_cannot_be_used_costs_the_names_only(damage, tmp_path):
    elf = tmp_path / "app.elf"
    whole = (FIRMWARE / "build" / "esp32c3" / "pytest_esp_test.elf").read_bytes()
    if damage != "missing":
        elf.write_bytes({"empty": b"", "cut": whole[:3000], "image": b"\xe9" + bytes(5000)}[damage])
    crash = decode(C3_CRASH, elf)
    assert crash.kind is Kind.PANIC
    assert crash.backtrace == (Frame(0x42005440, 0x3FC8C5D0),)
    assert str(elf) in crash.note
    assert crash.note in crash.describe()


def test_every_beginning_of_a_dump_can_be_decoded(c3_elf):
    whole = decode(C3_CRASH, c3_elf).backtrace
    lines = C3_CRASH.splitlines(keepends=True)
    for count in range(len(lines)):
        crash = decode("".join(lines[:count]), c3_elf)
        assert crash.backtrace == whole[: len(crash.backtrace)]


@settings(deadline=None)
@given(st.data())
def test_a_dump_with_damage_anywhere_can_be_decoded(data):
    text = bytearray(data.draw(st.sampled_from([C3_CRASH, ESP32_CRASH[:1500]])).encode())
    for _ in range(data.draw(st.integers(1, 20))):
        at = data.draw(st.integers(0, len(text) - 40))
        text[at : at + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=10))
    elf = FIRMWARE / "build" / "esp32c3" / "pytest_esp_test.elf"
    assert decode(bytes(text)).describe()
    assert decode(bytes(text), elf, elf_sha256=None).describe()


@settings(deadline=None)
@given(st.one_of(st.text(), st.binary()))
def test_anything_at_all_can_be_decoded(text):
    assert decode(text).describe()
