"""The operations of `esp.chip`."""

from __future__ import annotations

from pytest_esp.operations.chip import connection, identity, reset, running
from pytest_esp.operations.diagnostics import recovery
from pytest_esp.operations.faces.face import Face, bound
from pytest_esp.operations.firmware import ram, ram_image
from pytest_esp.operations.security import details


class ChipFace(Face):
    """`pytest_esp.operations.chip.identity`, `reset`, `details`, `connection`, `ram`, `running` and `recovery`."""

    identify = bound(identity.identify)
    read_mac = bound(identity.read_mac)
    reset = bound(reset.reset)
    change_baudrate = bound(identity.change_baudrate)
    read_register = bound(identity.read_register)
    info = bound(details.info)
    connect = bound(connection.connect)
    check_connection = bound(connection.check_connection)
    elf_to_ram_image = staticmethod(ram_image.elf_to_ram_image)
    load_ram = bound(ram.load_ram)
    self_test = bound(ram.self_test)
    run_firmware = bound(running.run_firmware)
    monitor = bound(running.monitor)
    recover = bound(recovery.recover)
