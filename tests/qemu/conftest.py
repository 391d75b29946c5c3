"""QEMU as a program: the command line of a machine with the test firmware in its flash."""

import pytest

from pytest_esp.qemu.find import find
from pytest_esp.qemu.machines import machine_for
from pytest_esp.qemu.process import command_line


@pytest.fixture
def c3_command(need_qemu, build_of, flash_of, tmp_path):
    """How to start an ESP32-C3 that boots the test firmware; its files are in *tmp_path*."""
    need_qemu("esp32c3")
    machine = machine_for("esp32c3")
    flash, efuse = tmp_path / "flash.bin", tmp_path / "efuse.bin"
    flash.write_bytes(flash_of(build_of("esp32c3")))
    efuse.write_bytes(bytes(machine.efuse_size))
    qemu = find(machine.architecture, machine.name)
    return command_line(qemu, machine, flash, efuse, strap=machine.strap_flash, psram=False)
