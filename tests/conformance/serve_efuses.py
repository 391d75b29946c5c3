"""Serves a simulated chip for test_espefuse.py: the chip's UART on one socket, "clear its eFuses" on another.

The second stands for the wire that clears the eFuses of Espressif's FPGA boards. Prints one JSON object when ready.
"""

from __future__ import annotations

import json
import socket
import sys

from pytest_esp.sim.chip import SimChip
from pytest_esp.wire.endpoints import serve


def main(chip_name: str) -> None:
    chip = SimChip(chip_name, revision=300 if chip_name in ("esp32", "esp32p4") else None)
    chip.reset(bootloader=True)
    endpoint = serve(chip.wire, "socket://127.0.0.1:0")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"reset://127.0.0.1:{server.getsockname()[1]}"
        print(json.dumps({"endpoints": [endpoint.url], "reset_port": address}), flush=True)
        while True:
            connection, _ = server.accept()
            with connection, chip.wire.lock:
                assert chip.efuses is not None
                chip.efuses.clear()
                chip.reset(bootloader=True)


if __name__ == "__main__":
    main(sys.argv[1])
