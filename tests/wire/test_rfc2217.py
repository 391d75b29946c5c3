"""The client of remote ports, with servers that other people wrote."""

import contextlib
import random
import socket
import threading

import pytest
import serial

from pytest_esp.wire import rfc2217
from pytest_esp.wire.endpoints import serve
from pytest_esp.wire.wire import Wire

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")

IAC, SB, SE, COM_PORT = b"\xff", b"\xfa", b"\xf0", b"\x2c"
PURGE_CONFIRMED, BAUDRATE_SET = b"\x70", b"\x65"


class Echo:
    """A device that sends back what it gets."""

    def __init__(self):
        self.wire = Wire()
        self.wire.device = self

    def receive(self, data):
        self.wire.transmit(data)

    def set_lines(self, dtr, rts):
        """It has none."""

    def set_baudrate(self, baudrate):
        """Any will do."""

    def host_left(self, control_lines):
        """Nothing stays."""


@pytest.fixture
def listen():
    """A function that serves one TCP client with *talk*, a function of its connection; returns the URL."""
    with contextlib.ExitStack() as stack:

        def make(talk):
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def accept():
                with contextlib.suppress(OSError), server.accept()[0] as connection:
                    talk(connection)

            thread = threading.Thread(target=accept)
            thread.start()
            stack.callback(thread.join, 10)
            return f"rfc2217://127.0.0.1:{server.getsockname()[1]}?timeout=0.3"

        yield make


@pytest.fixture
def behind(listen):
    """A function that returns the URL of a good port whose answers go through *change*, a function of bytes."""
    with contextlib.ExitStack() as stack:
        endpoint = serve(Echo().wire, "rfc2217://127.0.0.1:0")
        stack.callback(endpoint.close)

        def make(change):
            def talk(connection):
                port = int(endpoint.url.rpartition(":")[2])
                with socket.create_connection(("127.0.0.1", port)) as real:
                    up = threading.Thread(target=_pump, args=(connection, real, bytes))
                    up.start()
                    _pump(real, connection, change)
                    up.join(5)

            return listen(talk)

        yield make


def _pump(source, target, change):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(change(data))
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def without(answer, by=b""):
    """A change that replaces an answer of the com port option; what this server sends is never cut in pieces."""

    def change(data):
        parts = data.split(IAC + SB + COM_PORT + answer)
        return parts[0] + b"".join(by + part.partition(IAC + SE)[2] for part in parts[1:])

    return change


def opened(url):
    port = rfc2217.Serial(timeout=2)
    port.port = url
    port.open()
    return port


@pytest.mark.parametrize(
    "by", [b"", IAC + SB + COM_PORT + PURGE_CONFIRMED + b"\x09" + IAC + SE], ids=["never", "wrongly"]
)
def test_a_purge_that_is_not_confirmed(behind, by):
    with opened(behind(without(PURGE_CONFIRMED, by))) as port:
        port.reset_input_buffer()
        port.write(b"hello")
        assert port.read(5) == b"hello"


def test_settings_that_are_not_confirmed_or_refused(behind):
    with pytest.raises(serial.SerialException, match="did not confirm the port's settings"):
        opened(behind(without(BAUDRATE_SET)))
    refused = IAC + SB + COM_PORT + BAUDRATE_SET + b"\0\0\0\1" + IAC + SE
    with pytest.raises(serial.SerialException, match="refused the port's settings"):
        opened(behind(without(BAUDRATE_SET, refused)))


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.0 400 Bad Request\r\n\r\n",
        IAC + SB + b"x" * 100_000,
        IAC + SB + IAC + SE,
        (IAC + b"\xfc\x2c") * 50,
        b"\xff" * 1000,
        b"",
    ],
    ids=["ssh", "http", "endless", "empty", "wont", "marks", "nothing"],
)
def test_a_server_of_something_else(listen, answer):
    with pytest.raises(serial.SerialException):
        opened(listen(lambda connection: (connection.sendall(answer), connection.recv(1000))))


@pytest.mark.parametrize("seed", range(20))
def test_garbage_between_good_answers(behind, seed):
    chance = random.Random(seed)

    def change(data):
        return data + IAC + bytes(chance.randbytes(8)) if chance.random() < 0.5 else data

    with contextlib.suppress(serial.SerialException), opened(behind(change)) as port:
        port.write(b"hello")
        port.read(5)
        port.baudrate = 230400
