"""The console: what it finds, how fast it gives up, what it keeps."""

import os
import re
import threading
import time

import pytest
import serial
from hypothesis import given
from hypothesis import strategies as st

from pytest_esp.boards.registry import make_board
from pytest_esp.errors import PortError
from pytest_esp.link.console import Console, ConsoleError, CrashError
from pytest_esp.link.link import Link
from pytest_esp.rack.config import load_rack
from pytest_esp.wire.loop import loop, settle
from pytest_esp.wire.port import VirtualPort
from pytest_esp.wire.wire import Wire

PANIC = (
    b"Guru Meditation Error: Core  0 panic'ed (Store access fault). Exception was unhandled.\r\n\r\n"
    b"Core  0 register dump:\r\n"
    b"MEPC    : 0x42007a1e  RA      : 0x42007a1e  SP      : 0x3fc91f60  GP      : 0x3fc8b400\r\n\r\n"
    b"ELF file SHA256: 0123456789\r\n\r\nRebooting...\r\n"
)


class Board:
    """A virtual board that says what the test lets it say."""

    def __init__(self, **settings):
        self.wire = Wire()
        self.port = VirtualPort(self.wire, "board")
        self.port.open()
        self.console = Console(self.port, board="board", **settings)
        self.console.attach()

    def say(self, *chunks):
        for chunk in chunks:
            self.wire.transmit(chunk.encode() if isinstance(chunk, str) else chunk)

    def say_later(self, *chunks, delay=0.03):
        def say():
            for chunk in chunks:
                time.sleep(delay)
                self.say(chunk)

        thread = threading.Thread(target=say)
        thread.start()
        return thread


@pytest.fixture
def board():
    made = Board()
    yield made
    made.console.close()


# -- expect


def test_text_bytes_and_expressions(board):
    board.say("one two 33 four\r\n")
    assert board.console.expect("two").text == "two"
    assert board.console.expect(re.compile(r"(\d)(?P<second>\d)")).groupdict() == {"second": "3"}
    match = board.console.expect(re.compile(rb"f(.*)r"))
    assert (match.group(1), match[0], match.index) == (b"ou", b"four", 0)


def test_what_was_matched_is_passed(board):
    board.say("ready\r\nready\r\n")
    board.console.expect("ready")
    board.console.expect("ready")
    with pytest.raises(ConsoleError, match=r"timed out after 0.01 s waiting for 'ready'"):
        board.console.expect("ready", timeout=0.01)


def test_a_pattern_may_come_in_pieces(board):
    thread = board.say_later("Hello", " wor", "ld!", "\r\n")
    assert board.console.expect("Hello world!\r\n", timeout=5).text == "Hello world!\r\n"
    thread.join()


@given(st.data())
def test_how_it_is_cut_makes_no_difference(data):
    said = b"\x1b[0;32mI (29) boot: chip\x1b[0m\r\nfree heap: 12345 bytes\r\n\xc3\xa9\r\nEND"
    board = Board()
    begin = 0
    while begin < len(said):
        end = data.draw(st.integers(begin + 1, len(said)))
        board.say(said[begin:end])
        begin = end
    assert board.console.expect(re.compile(r"heap: (\d+) bytes"), 0).group(1) == "12345"
    assert board.console.expect("é", 0)
    assert board.console.text == "I (29) boot: chip\r\nfree heap: 12345 bytes\r\né\r\nEND"
    assert b"\x1b[0;32m" in board.console.log
    board.console.close()


def test_the_first_of_several(board):
    board.say("b then a\r\n")
    assert board.console.expect(["a", "b"]).index == 1
    assert board.console.expect(["a", "b"]).index == 0


def test_all_in_any_order(board):
    board.say_later("second\r\n", "first\r\n", "third\r\n").join()
    first, second = board.console.expect_all(["first", "second"])
    assert (first.text, second.text) == ("first", "second")
    assert second.time < first.time
    board.console.expect("third")


def test_unless_something_else_comes(board):
    board.say("an ERROR, then done\r\n")
    with pytest.raises(ConsoleError, match="'ERROR' came before 'done'"):
        board.console.expect("done", unless="ERROR")
    assert board.console.expect("done", unless="FATAL")


def test_not_before(board):
    thread = board.say_later("tick", delay=0.05)
    with pytest.raises(ConsoleError, match=r"'tick' came after 0.\d+ s, not before 1 s"):
        board.console.expect("tick", not_before=1.0)
    thread.join()
    thread = board.say_later("tick", delay=0.05)
    assert board.console.expect("tick", not_before=0.02)
    thread.join()


def test_read_until(board):
    board.say("menu:\r\n(1) one\r\n(2) two\r\n> rest")
    assert board.console.read_until("> ") == "menu:\r\n(1) one\r\n(2) two\r\n> "


def test_an_expression_over_many_lines_that_come_one_by_one(board):
    lines = [f"line {number}\r\n" for number in range(200)]
    thread = board.say_later("BEGIN\r\n", *lines, "END\r\n", delay=0.0)
    assert board.console.expect(re.compile(r"BEGIN(.*)END", re.DOTALL), timeout=5).text.count("line") == 200
    thread.join()


def test_a_long_line_without_end(board):
    board.say(b"x" * 300_000)
    thread = board.say_later("needle", b"y" * 300_000)
    assert board.console.expect(re.compile("needle"), timeout=5)
    thread.join()


def test_lines_have_times(board):
    board.say_later("one\r\n", "two\r\nthr", "ee\r\n", delay=0.05).join()
    one, two, three = board.console.lines()
    assert [line.text for line in (one, two, three)] == ["one", "two", "three"]
    assert 0.04 < two.time - one.time < 1
    assert two.time == three.time  # when its first byte came


def test_skip(board):
    board.say("old news")
    board.console.skip()
    with pytest.raises(ConsoleError):
        board.console.expect("news", timeout=0)


def test_a_miss_says_what_came_and_when(board):
    board.say("I (30) boot: nothing\r\n")
    with pytest.raises(ConsoleError) as caught:
        board.console.expect("Hello", timeout=0.02)
    assert "boot: nothing" in str(caught.value)
    assert "nothing more for 0." in str(caught.value)


def test_nothing_to_expect(board):
    with pytest.raises(ValueError, match="the pattern is empty"):
        board.console.expect("")
    with pytest.raises(ValueError, match="no pattern given"):
        board.console.expect([])


def test_listening(board):
    """For a time, whatever is said, bytes of 0 included; or until a text, or a crash; or until the caller stops it."""
    board.say("one\0\0two\r\n")
    assert board.console.listen(0.05) is None
    assert board.console.listen(5, "two").text == "two"
    assert board.console.listen(0.05, "two") is None
    thread = board.say_later(PANIC)
    with pytest.raises(CrashError):
        board.console.listen(10)
    thread.join()
    assert board.console.listen(0.05, "unheard of", ignore_crashes=True) is None


def test_whoever_listens_is_asked_every_second(board):
    asked = []

    def tick():
        asked.append(time.monotonic())
        if len(asked) == 2:
            raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        board.console.listen(60, tick=tick)
    assert 1 < asked[0] - begun < asked[1] - begun
    board.say("still here")
    assert board.console.expect("still here", 5)


def test_two_threads_wait_at_once(board):
    found = []
    threads = [
        threading.Thread(target=lambda text=text: found.append(board.console.expect(text, 5).text)) for text in "ab"
    ]
    for thread in threads:
        thread.start()
    board.say_later("a", "b").join()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["a", "b"]


# -- the log


def test_the_log_file_has_everything_with_times(tmp_path):
    path = tmp_path / "new" / "board.log"
    board = Board(journal=path)
    board.say("\x1b[0;31mE (1) x: y\x1b[0m\r\n", "half", " and half\r\n")
    board.console.close()
    lines = path.read_bytes().splitlines()
    assert re.fullmatch(rb"\[ +\d+\.\d{3}\] \x1b\[0;31mE \(1\) x: y\x1b\[0m", lines[0])
    assert re.fullmatch(rb"\[ +\d+\.\d{3}\] half and half", lines[1])
    board.say("after the end")


def test_a_miss_names_the_log(tmp_path):
    board = Board(journal=tmp_path / "board.log")
    with pytest.raises(ConsoleError, match=r"log: .*board\.log"):
        board.console.expect("x", timeout=0)
    board.console.close()


def test_memory_has_a_limit_the_log_has_none(monkeypatch, tmp_path):
    monkeypatch.setattr("pytest_esp.link.console._KEPT", 10_000)
    board = Board(journal=tmp_path / "log")
    for number in range(5000):
        board.say(f"line {number:5}\r\n")
        if number == 10:
            assert board.console.expect("line    10")
    assert len(board.console.text) <= 20_020
    assert board.console.expect("line  4990")
    assert board.console.lines()[-1].text == "line  4999"
    assert (tmp_path / "log").read_bytes().count(b"line") == 5000
    board.console.close()


def test_a_log_that_nobody_asked_for_is_bounded_and_says_so(monkeypatch):
    monkeypatch.setattr("pytest_esp.link.journal._MOST_TEMPORARY", 10_000)
    board = Board()
    for number in range(2000):
        board.say(f"line {number:5}\r\n")
    log = board.console.log
    first, _, rest = log.partition(b"\n")
    dropped = int(re.fullmatch(rb"\[\.\.\. (\d+) bytes dropped \.\.\.\]", first)[1])
    assert dropped + len(rest) == 2000 * len("[    0.000] line     0\r\n")
    assert 5_000 <= len(rest) <= 11_000
    assert rest.endswith(b"line  1999\r\n")
    board.console.close()


def test_lines_begin_at_the_mark(board):
    board.say("the middle of a li")
    mark = board.console.mark()
    board.say("ne\r\nnext\r\n")
    assert [line.text for line in board.console.lines(mark)] == ["ne", "next"]
    assert [line.text for line in board.console.lines(board.console.line_start(mark))] == ["next"]
    assert board.console.line_start(0) == 0
    assert board.console.line_start(board.console.mark()) == board.console.mark()
    assert [line.text for line in board.console.last_lines(1)] == ["next"]
    assert len(board.console.last_lines(99)) == 2
    assert board.console.last_lines(0) == []


def test_echo(capsys):
    said = []
    board = Board(echo=said.append)
    board.say(b"\x1b[1mcaf\xc3", b"\xa9\r\n")
    assert "".join(said) == "\x1b[1mcafé\r\n"
    board.console.close()


# -- crashes


def test_a_panic_ends_the_wait_at_once(board):
    thread = board.say_later("I (3) app: working\r\n", PANIC)
    begun = time.monotonic()
    with pytest.raises(CrashError, match="Store access fault") as caught:
        board.console.expect("done", timeout=30)
    assert time.monotonic() - begun < 2
    assert caught.value.crash.backtrace[0].pc == 0x42007A1E
    assert "0x42007a1e" in str(caught.value)
    thread.join()


def test_a_dump_that_was_cut_off_ends_it_too(board):
    board.say(PANIC[:130])
    with pytest.raises(CrashError):
        board.console.expect("done", timeout=30)


def test_a_crash_can_be_waited_for(board):
    board.say(
        PANIC, "ESP-ROM:esp32c3-api1-20210207\r\nrst:0xc (RTC_SW_CPU_RST),boot:0xd (SPI_FAST_FLASH_BOOT)\r\nready\r\n"
    )
    board.console.expect("Guru Meditation Error")
    board.console.expect("Rebooting...")
    board.console.expect("ready")


def test_a_crash_between_two_waits_is_told_once(board):
    board.say("one\r\n", PANIC, "ready\r\n")
    board.console.expect("one")
    with pytest.raises(CrashError):
        board.console.expect("ready")
    board.console.expect("ready")


def test_crashes_can_be_ignored(board):
    board.say(PANIC, "ready\r\n")
    board.console.expect("ready", ignore_crashes=True)


def test_what_comes_after_a_crash_is_no_success(board):
    board.say(PANIC, "ESP-ROM:x\r\nHello world!\r\n")
    with pytest.raises(CrashError):
        board.console.expect("Hello world!")


def test_blank_flash_is_told_at_once(board):
    board.say("ESP-ROM:esp32c3\r\nrst:0x1 (POWERON),boot:0xd (SPI_FAST_FLASH_BOOT)\r\ninvalid header: 0xffffffff\r\n")
    with pytest.raises(CrashError, match="invalid header: 0xffffffff"):
        board.console.expect("Hello", timeout=30)


def test_a_boot_loop(board):
    board.say(*["ESP-ROM:esp32c3\r\nrst:0x3 (RTC_SW_SYS_RST),boot:0xd (SPI_FAST_FLASH_BOOT)\r\nstarting\r\n"] * 5)
    with pytest.raises(CrashError, match="boot"):
        board.console.expect("never", timeout=30)


# -- ports


def test_a_board_that_is_lost_ends_the_wait(board):
    threading.Timer(0.05, board.port.lose, ["QEMU was killed by SIGKILL"]).start()
    begun = time.monotonic()
    with pytest.raises(PortError, match="QEMU was killed by SIGKILL"):
        board.console.expect("x", timeout=30)
    assert time.monotonic() - begun < 1


@pytest.fixture
def terminal():
    main, device = os.openpty()
    name = os.ttyname(device)
    port = serial.Serial(name, 115200, exclusive=True)
    os.close(device)
    yield main, port
    port.close()


def test_a_real_port(terminal):
    main, port = terminal
    console = Console(port, board="real")
    console.attach()
    os.write(main, b"hello from the board\r\n")
    assert console.expect("hello")
    console.write("ping\n")
    assert os.read(main, 100) == b"ping\n"
    console.detach()
    os.write(main, b"for somebody else")
    assert port.read(17) == b"for somebody else"
    console.attach()
    os.write(main, b"again")
    assert console.expect("again")
    console.close()
    os.close(main)


def test_no_byte_is_lost_or_doubled_from_one_console_to_the_next(terminal):
    main, port = terminal
    said = b"".join(b"line %d\n" % number for number in range(20000))
    device = threading.Thread(target=lambda: [os.write(main, said[at : at + 999]) for at in range(0, len(said), 999)])
    device.start()
    heard = ""
    while not heard.endswith("line 19999\n"):
        console = Console(port, board="real")
        console.attach()
        time.sleep(0.0005)
        console.close()
        heard += console.text
    device.join()
    assert heard.encode() == said
    os.close(main)


def test_a_port_is_closed_when_the_loop_has_let_go_of_it(terminal, tmp_path, caplog):
    main, port = terminal
    port.close()
    (tmp_path / "boards.toml").write_text(f'[boards.real]\nbackend="serial"\nchip="esp32c3"\nport="{port.port}"\n')
    rack = load_rack(tmp_path / "boards.toml")
    link = Link(make_board(rack.board("real"), rack))
    loop().call_soon_threadsafe(time.sleep, 0.05)
    console = link.console
    os.write(main, b"the last word")
    link.close()
    settle()
    assert console.text == "the last word"
    assert not caplog.records  # of the loop, about a descriptor that it does not know
    os.close(main)


def test_a_real_port_that_vanishes(terminal):
    main, port = terminal
    console = Console(port, board="real")
    console.attach()
    threading.Timer(0.05, os.close, [main]).start()
    with pytest.raises(PortError, match="real: the port was lost"):
        console.expect("x", timeout=30)
    console.close()


def test_waiting_costs_nothing(terminal):
    main, port = terminal
    console = Console(port, board="real")
    console.attach()
    before = time.process_time()
    with pytest.raises(ConsoleError):
        console.expect(re.compile("x[^y]*z"), timeout=1.0)
    assert time.process_time() - before < 0.1
    console.close()
    os.close(main)
