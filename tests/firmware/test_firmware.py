"""The real program on QEMU and its stand-in on a simulated chip say the same to the same commands."""

import os
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
RECORD = "PYTEST_ESP_RECORD_PANICS"

READY = "see the list of tests.\r\n"
MENU = "Enter test for running.\r\n"
DONE = "Enter next test, or 'enter' to see menu\r\n"
QUESTION = '\t(2)\t"{}"\r\n'

DIALOGUES = {
    "commands": [
        ("echo hello\n", "hello\r\n"),
        ("echo  two  spaces \n", "\r\n"),
        ("echo typoo\b\n", "typo\r\n"),
        ("echo \xfc\xff\r\n", "\r\n"),
        ("mac\n", "7c:df:a1:c0:ff:ee\r\n"),
        ("flood 200\necho end\n", "end\r\n"),
        ("reboot\n", READY),
        ("hang\n", "hanging\r\n"),
    ],
    "menu": [
        ("\n", MENU),
        ("1\n", DONE),
        ("2\r\n", DONE),
        ("3\n", DONE),
        ("4\n", DONE),
        ("99\n", DONE),
        ("nonsense\n", DONE),
        ('"one is two"\n', DONE),
        ('"no such case"\n', DONE),
        ("[math]\n", DONE),
        ("[memory]\n", DONE),
        ("[nothing]\n", DONE),
        ("\n", MENU),
    ],
    "two stages": [
        ("7\n", QUESTION.format("find_what_was_stored")),
        ("\n", QUESTION.format("find_what_was_stored")),
        ("3\n", DONE),
        ("7\n", QUESTION.format("find_what_was_stored")),
        ("1\n", READY),
        ("7\n", QUESTION.format("find_what_was_stored")),
        ("2\n", DONE),
        ("[multi_stage]\n", QUESTION.format("find_what_was_stored")),
        ("2\n", DONE),
    ],
    "signals": [
        ("8\n", QUESTION.format("answer")),
        ("1\n", "once any board send this signal.\r\n"),
        ("\n", DONE),
        ('"two boards talk"\n', QUESTION.format("answer")),
        ("2\n", "once any board send this signal.\r\n"),
        ("\n", DONE),
    ],
    "inverted tag": [("![fatal]\n", QUESTION.format("find_what_was_stored"))],
    "a case crashes": [("5\n", "Rebooting...\r\n")],
    "a case hangs": [("6\n", "Running case hangs...\r\n")],
    "all cases, up to the one that crashes": [("*\n", "Running case crashes...\r\n")],
}


def hold(dialogue, steps):
    """Return what is said from the banner on."""
    dialogue.until("Calling app_main()")
    dialogue.until("\r\n")
    return [dialogue.until(READY), *(dialogue.say(text, end) for text, end in steps)]


@pytest.mark.parametrize("steps", DIALOGUES.values(), ids=DIALOGUES)
def test_both_say_the_same(chip, boards, firmware_flash, essence, steps):
    real = hold(boards.real(chip, firmware_flash), steps)
    simulated = hold(boards.simulated(chip, firmware_flash), steps)
    assert [essence(answer) for answer in simulated] == [essence(answer) for answer in real]


def test_boot_logs_agree_on_partitions_slot_and_app(chip, boards, firmware_flash, essence):
    real = essence(boards.real(chip, firmware_flash).until(READY))
    simulated = essence(boards.simulated(chip, firmware_flash).until(READY))
    assert "boot: Loaded app from partition at offset 0x10000" in real
    assert simulated == real


@pytest.mark.parametrize("kind", ["real", "simulated"])
def test_what_hangs_is_silent_until_it_is_reset(chip, boards, firmware_flash, kind):
    dialogue = getattr(boards, kind)(chip, firmware_flash)
    dialogue.until(READY)
    dialogue.say("hang\n", "hanging\r\n")
    assert not dialogue.say_and_listen("echo anybody\n", seconds=0.3)
    dialogue.board.reset(bootloader=False)
    dialogue.until(READY)


@pytest.mark.parametrize("kind", ["real", "simulated"])
def test_a_flood_is_as_long_as_it_was_asked_for(chip, boards, firmware_flash, kind):
    dialogue = getattr(boards, kind)(chip, firmware_flash)
    dialogue.until(READY)
    for size in (1, 2, 63, 64, 100_003):
        flood = dialogue.say(f"flood {size}\necho end\n", "end\r\n").removesuffix("end\r\n")
        assert len(flood) == size
        assert [int(line[:8]) for line in flood.split("\r\n") if len(line) >= 8] == list(range((size + 54) // 64))


@pytest.mark.parametrize("kind", ["real", "simulated"])
def test_a_boot_loop_ends_after_as_many_boots_as_were_asked_for(chip, boards, firmware_flash, kind):
    dialogue = getattr(boards, kind)(chip, firmware_flash)
    dialogue.until(READY)
    loop = dialogue.say("loop 3\n", READY)
    assert loop.count("Rebooting...") == 4
    assert loop.count(f"pytest-esp test firmware 1.0.0 on {chip}") == 4


@pytest.mark.parametrize("kind", ["real", "simulated"])
def test_a_boot_loop_without_end_ends_with_a_reset(chip, boards, firmware_flash, kind):
    dialogue = getattr(boards, kind)(chip, firmware_flash)
    dialogue.until(READY)
    dialogue.say("loop\n", "Rebooting...\r\n")
    for _ in range(3):
        assert "ready" not in dialogue.until("Rebooting...\r\n")
    dialogue.board.reset(bootloader=False)
    dialogue.until(READY)


@pytest.mark.parametrize("how", {"crash": "crash\n", "abort": "abort\n", "case": "5\n"}.items(), ids=lambda how: how[0])
def test_panics_are_what_was_recorded(chip, boards, firmware_flash, essence, how):
    """To record them anew after a change of the program, run this test with PYTEST_ESP_RECORD_PANICS=1."""
    name, command = how
    real = boards.real(chip, firmware_flash)
    real.until(READY)
    panic = real.say(command, "Rebooting...\r\n").replace("\r\n", "\n")
    panic = panic.partition("Running case crashes...\n")[2] or panic
    recorded = FOLDER / "panics" / f"{chip}-{name}.txt"
    if os.environ.get(RECORD):
        recorded.write_text(panic, encoding="utf-8")
    assert essence(recorded.read_text(encoding="utf-8")) == essence(panic)
