"""Endpoints as other programs see them: real sockets, ptys and pyserial's own clients."""

import contextlib
import os
import socket
import threading
import time
from pathlib import Path

import pytest
import serial

from pytest_esp.errors import PortError
from pytest_esp.wire import rfc2217
from pytest_esp.wire.endpoints import serve
from pytest_esp.wire.wire import Wire

rfc2217.register()


class Echo:
    """A device that sends back what it gets, and notes what happens to its lines."""

    def __init__(self):
        self.wire = Wire()
        self.wire.device = self
        self.lines = []
        self.baudrates = []
        self.left = []
        self.got = bytearray()

    def receive(self, data):
        self.got += data
        self.wire.transmit(data)

    def set_lines(self, dtr, rts):
        self.lines.append((dtr, rts))

    def set_baudrate(self, baudrate):
        self.baudrates.append(baudrate)

    def host_left(self, control_lines):
        self.left.append(control_lines)


@pytest.fixture
def echo():
    return Echo()


def until(condition, timeout=5.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


@pytest.fixture(params=["socket://127.0.0.1:0", "rfc2217://127.0.0.1:0", "pty:"])
def endpoint(request, echo):
    served = serve(echo.wire, request.param)
    yield served
    served.close()


def open_client(endpoint):
    return serial.serial_for_url(endpoint.url.removeprefix("pty:"), timeout=5)


def test_every_byte_goes_both_ways(endpoint):
    data = bytes(range(256)) * 512  # with IAC, XON, XOFF, ^C, ^D and CR
    with open_client(endpoint) as client:
        received = bytearray()

        def drain():
            while len(received) < len(data):
                received.extend(client.read(max(1, client.in_waiting)))

        reader = threading.Thread(target=drain)
        reader.start()
        for start in range(0, len(data), 4096):
            client.write(data[start : start + 4096])
        reader.join(20)
    assert bytes(received) == data


def test_clients_come_and_go(endpoint, echo):
    for count in range(1, 4):
        with open_client(endpoint) as client:
            client.write(b"hello")
            assert client.read(5) == b"hello"
        until(lambda count=count: len(echo.left) == count)
    assert endpoint.client_count == 0


def test_nothing_stays_behind(echo, tmp_path):
    serve(echo.wire, "socket://127.0.0.1:0").close()
    before = len(os.listdir("/proc/self/fd"))
    for url in ("socket://127.0.0.1:0", "rfc2217://127.0.0.1:0", f"pty:{tmp_path / 'port'}"):
        endpoint = serve(echo.wire, url)
        with open_client(endpoint) as client:
            client.write(b"x")
            client.read(1)
            endpoint.close()
        endpoint.close()
    until(lambda: len(os.listdir("/proc/self/fd")) <= before)
    assert not list(tmp_path.iterdir())


def test_a_second_client_is_refused_and_the_first_goes_on(echo):
    endpoint = serve(echo.wire, "socket://127.0.0.1:0")
    address = ("127.0.0.1", int(endpoint.url.rpartition(":")[2]))
    with socket.create_connection(address) as first, socket.create_connection(address) as second:
        first.sendall(b"a")
        assert first.recv(1) == b"a"
        second.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert second.recv(1) == b""
        first.sendall(b"b")
        assert first.recv(1) == b"b"
    endpoint.close()


def test_clients_follow_each_other_at_once(echo):
    """Each is there before the server has noticed the end of the one before."""
    endpoint = serve(echo.wire, "socket://127.0.0.1:0")
    address = ("127.0.0.1", int(endpoint.url.rpartition(":")[2]))
    before = None
    for number in range(50):
        client = socket.create_connection(address, timeout=5)
        if before is not None:
            before.close()
        client.sendall(b"%02d" % number)
        assert client.recv(2) == b"%02d" % number
        before = client
    client.close()
    endpoint.close()


def test_lines_and_baud_rate_reach_the_device_over_rfc2217(echo):
    endpoint = serve(echo.wire, "rfc2217://127.0.0.1:0")
    client = open_client(endpoint)
    assert type(client) is rfc2217.Serial
    client.baudrate = 460800
    client.dtr = False
    client.rts = True
    client.rts = False
    until(lambda: (False, True) in echo.lines and echo.lines[-1] == (False, False))
    assert echo.baudrates[-1] == 460800
    client.close()
    until(lambda: echo.left == [True])
    endpoint.close()


def test_a_client_that_sets_no_lines_leaves_them_as_a_kernel_opens_a_port(echo):
    """Both asserted while it is there, both released after it; a client without lines changes none."""
    for scheme, lines in (("rfc2217", [(True, True), (False, False)]), ("socket", [])):
        echo.lines.clear()
        endpoint = serve(echo.wire, f"{scheme}://127.0.0.1:0")
        with socket.create_connection(("127.0.0.1", int(endpoint.url.rpartition(":")[2]))):
            until(lambda endpoint=endpoint: endpoint.client_count)
            until(lambda lines=lines: echo.lines == lines[:1])
        until(lambda endpoint=endpoint: not endpoint.client_count)
        until(lambda lines=lines: echo.lines == lines)
        endpoint.close()


def test_a_setting_that_stays_the_same_costs_nothing(echo):
    endpoint = serve(echo.wire, "rfc2217://127.0.0.1:0")
    with open_client(endpoint) as client:
        count = len(echo.baudrates)
        for number in range(100):
            client.timeout = 1 + number
        assert len(echo.baudrates) == count
    endpoint.close()


def test_a_server_that_dies_is_an_error_and_not_a_hang(echo):
    endpoint = serve(echo.wire, "rfc2217://127.0.0.1:0")
    client = open_client(endpoint)
    threading.Timer(0.05, endpoint.close).start()
    with pytest.raises(serial.SerialException, match="lost"):
        client.read(1)
    client.close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff",
        b"\xff\xfa",
        b"\xff\xfa\x2c\x01",
        b"\xff\xfa\x2c\x01\x00\x00\xff\xf0",
        b"\xff\xfb\x63\xff\xfd\x2c\xff\xf6\xff\xf1",
        b"\xff\xfa\xff\xf0" * 50,
        os.urandom(3000),
    ],
)
def test_hostile_telnet_does_not_stop_the_server(echo, garbage):
    endpoint = serve(echo.wire, "rfc2217://127.0.0.1:0")
    with socket.create_connection(("127.0.0.1", int(endpoint.url.rpartition(":")[2]))) as raw:
        raw.sendall(garbage)
        raw.settimeout(0.05)
        with contextlib.suppress(TimeoutError, ConnectionError):
            while raw.recv(4096):
                pass
    until(lambda: endpoint.client_count == 0)
    with open_client(endpoint) as client:
        client.write(b"still there")
        assert client.read(11) == b"still there"
    endpoint.close()


def test_a_pty_is_found_at_its_link_and_a_dead_link_is_replaced(echo, tmp_path):
    link = tmp_path / "ttyESP"
    link.symlink_to(tmp_path / "gone")
    endpoint = serve(echo.wire, f"pty:{link}")
    assert endpoint.url == f"pty:{link}"
    assert Path(os.readlink(link)).exists()
    with pytest.raises(PortError, match="ttyESP"):
        serve(echo.wire, f"pty:{link}")
    endpoint.close()
    assert not link.is_symlink()


@pytest.mark.parametrize(
    "url", ["tcp://127.0.0.1:1", "socket://127.0.0.1", "nonsense", "rfc2217://:4000", "socket://x:y"]
)
def test_an_address_that_is_none(echo, url):
    with pytest.raises(PortError, match=r"not an address|not a valid address"):
        serve(echo.wire, url)


def test_a_taken_port_is_named(echo):
    endpoint = serve(echo.wire, "socket://127.0.0.1:0")
    with pytest.raises(PortError, match=r"cannot listen on .*127\.0\.0\.1"):
        serve(echo.wire, endpoint.url)
    endpoint.close()


# -- a port that vanishes and returns


@pytest.mark.parametrize("scheme", ["socket", "rfc2217"])
def test_a_vanished_port_drops_its_client_and_refuses_others_until_it_returns(echo, scheme):
    endpoint = serve(echo.wire, f"{scheme}://127.0.0.1:0")
    try:
        client = open_client(endpoint)
        echo.wire.vanish()
        with pytest.raises(serial.SerialException):
            client.read(1)
        client.close()
        if scheme == "rfc2217":
            begun = time.monotonic()
            with pytest.raises(serial.SerialException):
                open_client(endpoint)
            assert time.monotonic() - begun < 1  # pyserial itself would wait for 3 s
        echo.wire.come_back()
        with open_client(endpoint) as client:
            client.write(b"again")
            assert client.read(5) == b"again"
    finally:
        endpoint.close()


def test_a_vanished_pty_is_linked_again(echo, tmp_path):
    path = tmp_path / "port"
    endpoint = serve(echo.wire, f"pty:{path}")
    try:
        for _ in range(3):
            client = open_client(endpoint)
            client.write(b"x")
            assert client.read(1) == b"x"
            echo.wire.vanish()
            with pytest.raises(OSError):  # noqa: PT011 - pyserial passes some errors on as they are
                client.read(1)
            until(lambda: not path.is_symlink())
            client.close()
            echo.wire.come_back()
            until(path.exists)
    finally:
        endpoint.close()
    assert not path.is_symlink()


@pytest.mark.parametrize("url", ["rfc2217://127.0.0.1:0", "pty:"])
def test_a_client_whose_port_vanishes_has_not_left(echo, url):
    """Else a chip that just started its app would be put back into its loader, for the next client."""
    endpoint = serve(echo.wire, url)
    try:
        with open_client(endpoint) as client:
            client.write(b"x")
            client.read(1)
            echo.wire.vanish()
            until(lambda: echo.left)
        assert echo.left == [True]
    finally:
        endpoint.close()


def test_a_usb_device_keeps_a_little_for_its_next_host():
    wire, heard = Wire(fifo_size=4), []
    wire.transmit(b"abc")
    wire.transmit(b"def")
    host = wire.connect(heard.append, control_lines=True)
    wire.transmit(b"g")
    wire.vanish()
    wire.transmit(b"h")
    host.close()
    wire.come_back()
    wire.connect(heard.append, control_lines=True)
    assert heard == [b"abcd", b"g", b"h"]
    uart, heard = Wire(), []
    uart.transmit(b"abc")
    uart.connect(heard.append, control_lines=True)
    assert heard == []
