"""A device behind a pty, as a process of its own: it does what it is told, as fast as its pty takes it.

With ``--socket`` it is behind a TCP socket, for one client at a time. Its first line of output is the name of its port.
It ends with its standard input. A line sent to it is an order: ``boot`` prints a boot log,
``flood BYTES`` that many bytes of log lines and `FLOOD_END`, anything else is echoed.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import tty
from collections.abc import Generator
from contextlib import contextmanager

BOOT_LOG = b"".join(
    line + b"\r\n"
    for line in (
        b"ESP-ROM:esp32c3-api1-20210207",
        b"Build:Feb  7 2021",
        b"rst:0x1 (POWERON),boot:0xc (SPI_FAST_FLASH_BOOT)",
        b"SPIWP:0xee",
        b"mode:DIO, clock div:1",
        b"load:0x3fcd5820,len:0x1574",
        b"load:0x403cc710,len:0xc30",
        b"load:0x403ce710,len:0x2f64",
        b"entry 0x403cc71a",
        *(b"I (%d) boot: part %d of what a bootloader has to say about partitions" % (20 + n, n) for n in range(20)),
        *(b"I (%d) cpu_start: part %d of what an app says before it starts" % (60 + n, n) for n in range(15)),
        b"I (99) main_task: Calling app_main()",
        b"Hello world!",
    )
)
BOOT_END = "Hello world!"
FLOOD = b"".join(
    line + b"\r\n"
    for line in (
        b"I (123456) wifi:state: run -> init (0x0)",
        b"D (123460) httpd_txrx: httpd_recv_with_opt: requested length = 128",
        b"W (123471) BT_HCI: hcif conn complete: hdl 0x81, st 0x0",
        b"I (123480) sensor: sample 4711: temperature 23.45, pressure 1013.25 hPa, state running",
        b"I (123492) heap: free 187432, largest block 110592, minimum ever 152008",
        b"D (123499) i2c.master: 3f 80 00 00 41 42 43 44 55 AA 7E 12 00 FF 10 20",
        b"I (123503) MQTT_CLIENT: Sending MQTT PUBLISH, id: 812, topic: lab/bench/4, len=64",
        b"V (123511) event: posting to default loop, base WIFI_EVENT, id 21, queue 3 of 32",
        b"I (123520) esp_netif_handlers: sta ip: 192.168.4.2, mask: 255.255.255.0, gw: 192.168.4.1",
        b"cycle 98765 done in 12345 us",
    )
)
FLOOD_END = b"flood finished with code 42\r\n"


@contextmanager
def device(*options: str) -> Generator[str]:
    """Run a device, and yield the name of its port."""
    command = [sys.executable, __file__, *options]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def main() -> None:
    """Be the device."""
    if "--socket" in sys.argv:
        with socket.create_server(("127.0.0.1", 0)) as server:
            print(f"socket://127.0.0.1:{server.getsockname()[1]}", flush=True)
            while sys.stdin not in select.select([server, sys.stdin], [], [])[0]:
                with server.accept()[0] as client:
                    serve(client.fileno())
    else:
        # The device's own end stays open: a port that is closed is no cable that is pulled.
        master, slave = os.openpty()
        tty.setraw(slave)
        print(os.ttyname(slave), flush=True)
        serve(master)


def serve(descriptor: int) -> None:
    """Obey what comes, until the client is gone or the standard input ends."""
    received = b""
    while sys.stdin not in select.select([descriptor, sys.stdin], [], [])[0]:
        try:
            data = os.read(descriptor, 1 << 16)
        except ConnectionError:
            return
        if not data:
            return
        received += data
        *orders, received = received.split(b"\n")
        for order in orders:
            obey(descriptor, order)


def obey(descriptor: int, order: bytes) -> None:
    """Do what a line says."""
    word, _, argument = order.partition(b" ")
    if word == b"boot":
        send(descriptor, BOOT_LOG)
    elif word == b"flood":
        block = FLOOD * 90
        left = int(argument) - len(FLOOD_END)
        while left > 0:
            send(descriptor, block[:left])
            left -= len(block)
        send(descriptor, FLOOD_END)
    else:
        send(descriptor, order + b"\r\n")


def send(descriptor: int, data: bytes) -> None:
    """Write all of *data*."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


if __name__ == "__main__":
    main()
