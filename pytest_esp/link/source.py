"""Reads ports for consoles: the process's loop reads every port as soon as data arrives."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

import serial

from pytest_esp.boards.port import Port
from pytest_esp.wire.loop import loop

Sink = Callable[[bytes], None]
OnLoss = Callable[[str], None]

# Bytes to read before they are processed. Pieces above 128 KB would be mapped and unmapped in memory each time.
_AT_ONCE = 64 * 1024
_THREAD_TIMEOUT = 0.2  # seconds after which a thread that reads a Windows port checks whether to end


class Source(Protocol):
    """Reads a port exclusively, from `start` to `stop`."""

    def start(self) -> None:
        """Start passing data to the sink."""
        ...

    def stop(self) -> None:
        """Pass on what has arrived, and stop. The sink is not called after that.

        Call `loop.settle` before closing the port.
        """
        ...


def source_of(port: Port, sink: Sink, on_loss: OnLoss) -> Source:
    """Return a source for *port*, using its events, its descriptor, or a thread if it has neither (Windows).

    Args:
        port: the open port.
        sink: called with the bytes, on any thread.
        on_loss: called once with the reason when no more data will arrive.
    """
    if hasattr(port, "divert"):
        return _DivertedSource(port, sink, on_loss)
    if sys.platform != "win32" and hasattr(port, "fileno"):
        return _DescriptorSource(port, sink, on_loss)
    return _ThreadSource(port, sink, on_loss)


class _DivertedSource:
    """A port that calls back with its data: `wire.port.VirtualPort`, `wire.rfc2217.Serial`."""

    def __init__(self, port: Any, sink: Sink, on_loss: OnLoss) -> None:
        self._port = port
        self._sink = sink
        self._on_loss = on_loss

    def start(self) -> None:
        self._port.divert(self._sink, self._on_loss)

    def stop(self) -> None:
        self._port.divert(None, None)


class _DescriptorSource:
    """A port with a file descriptor: a device node or a socket."""

    def __init__(self, port: Any, sink: Sink, on_loss: OnLoss) -> None:
        self._port = port
        self._descriptor = -1
        self._sink = sink
        self._on_loss = on_loss
        self._lock = threading.Lock()
        self._is_reading = False

    def start(self) -> None:
        self._descriptor = self._port.fileno()
        os.set_blocking(self._descriptor, False)
        self._is_reading = True
        loop().call_soon_threadsafe(loop().add_reader, self._descriptor, self._readable)

    def stop(self) -> None:
        # Does not wait for the loop's thread: every test stops a console, and on a busy machine each thread switch
        # takes milliseconds. The code that closes the port waits (`loop.settle`).
        with self._lock:
            if self._is_reading:
                self._take_what_is_there()
                self._is_reading = False
        loop().call_soon_threadsafe(loop().remove_reader, self._descriptor)

    def _readable(self) -> None:
        with self._lock:
            if not self._is_reading:
                return
            loss = self._take_what_is_there()
            self._is_reading = not loss
        if loss:
            loop().remove_reader(self._descriptor)
            self._on_loss(loss)

    def _take_what_is_there(self) -> str:
        """Pass on what can be read from a readable descriptor; return why the port was lost, if it was."""
        chunks: list[bytes] = []
        size = 0
        loss = ""
        while size < _AT_ONCE:
            try:
                data = os.read(self._descriptor, 1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                loss = error.strerror or str(error)
                break
            if not data:  # also the case for a terminal without data
                loss = "" if chunks else "it was disconnected, or another program has opened it"
                break
            chunks.append(data)
            size += len(data)
        if chunks:
            self._sink(b"".join(chunks))
        return loss


class _ThreadSource:
    """A port that must be read in a thread."""

    def __init__(self, port: Port, sink: Sink, on_loss: OnLoss) -> None:
        self._port = port
        self._sink = sink
        self._on_loss = on_loss
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._stopping = False
        self._thread = threading.Thread(target=self._read, name="pytest-esp-console", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        cancel = getattr(self._port, "cancel_read", None)
        if cancel is not None:
            cancel()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def _read(self) -> None:
        port = self._port
        port.timeout = _THREAD_TIMEOUT
        try:
            while not self._stopping:
                data = port.read(1)
                if data:
                    self._sink(data + port.read(port.in_waiting))
            if waiting := port.in_waiting:
                self._sink(port.read(waiting))
        except (serial.SerialException, OSError) as error:
            if not self._stopping:
                self._on_loss(str(error))
