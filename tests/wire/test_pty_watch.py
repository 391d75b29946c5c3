"""A pty notices every client that comes and goes, however fast."""

import os
import sys
import threading
import time

import pytest

from pytest_esp.wire.endpoints import serve
from pytest_esp.wire.pty_watch import PtyWatch
from pytest_esp.wire.wire import Wire

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")


class Counter:
    """Counts its hosts and keeps what they say."""

    def __init__(self, wanted):
        self.wire = Wire()
        self.wire.device = self
        self.heard = []
        self.left = 0
        self._wanted = wanted
        self.done = threading.Event()

    def receive(self, data):
        self.heard.append(data)

    def set_lines(self, dtr, rts):
        raise AssertionError("a pty has no lines")

    def set_baudrate(self, baudrate):
        raise AssertionError("a pty tells no baud rate")

    def host_left(self, control_lines):
        assert not control_lines
        self.left += 1
        if self.left == self._wanted:
            self.done.set()


def test_clients_that_follow_each_other_at_once_are_told_apart(tmp_path):
    device = Counter(wanted=100)
    endpoint = serve(device.wire, f"pty:{tmp_path / 'port'}")
    for _ in range(100):
        os.close(os.open(tmp_path / "port", os.O_RDWR | os.O_NOCTTY))
    assert device.done.wait(10)
    assert device.left == 100
    endpoint.close()
    assert device.left == 100


def test_a_client_that_comes_as_the_one_before_is_being_seen_off(tmp_path, monkeypatch):
    device = Counter(wanted=2)
    endpoint = serve(device.wire, f"pty:{tmp_path / 'port'}")
    look, second = endpoint._is_hung_up, []

    def come_now():  # after the first client's close was read, before the port is looked at
        if not second:
            second.append(os.open(tmp_path / "port", os.O_RDWR | os.O_NOCTTY))
        return look()

    monkeypatch.setattr(endpoint, "_is_hung_up", come_now)
    client = os.open(tmp_path / "port", os.O_RDWR | os.O_NOCTTY)
    while not endpoint.client_count:
        time.sleep(0.001)
    os.close(client)
    while not second:
        time.sleep(0.001)
    os.close(second[0])
    assert device.done.wait(10)
    endpoint.close()
    assert device.left == 2


def test_the_last_words_of_a_client_are_heard(tmp_path):
    device = Counter(wanted=1)
    endpoint = serve(device.wire, f"pty:{tmp_path / 'port'}")
    client = os.open(tmp_path / "port", os.O_RDWR | os.O_NOCTTY)
    os.write(client, b"run this")
    os.close(client)
    assert device.done.wait(10)
    assert b"".join(device.heard) == b"run this"
    endpoint.close()


def test_a_second_look_at_the_port_is_not_the_end_of_the_first(tmp_path):
    device = Counter(wanted=1)
    endpoint = serve(device.wire, f"pty:{tmp_path / 'port'}")
    client = os.open(tmp_path / "port", os.O_RDWR | os.O_NOCTTY)
    os.close(os.open(tmp_path / "port", os.O_RDWR | os.O_NOCTTY))
    assert not device.done.wait(0.1)
    os.close(client)
    assert device.done.wait(10)
    endpoint.close()


def test_a_watch_leaves_no_descriptor():
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        PtyWatch("/dev/pts/no-such-device")
    PtyWatch("/dev/null").close()
    assert len(os.listdir("/proc/self/fd")) == before
