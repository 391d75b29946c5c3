"""Backups of QEMU machines: past the chip and through it."""

import random


def test_a_backup_past_the_chip_is_one_through_it(qemu_esp, build_of, tmp_path):
    esp = qemu_esp("esp32c3")
    esp.flash.write(build_of("esp32c3"))
    past = esp.flash.backup(tmp_path / "past")
    wire = esp.flash.smart_backup(tmp_path / "wire", over="wire")
    assert (past.sha256, past.mac, past.regions) == (wire.sha256, wire.mac, wire.regions)
    esp.flash.write(random.Random(1).randbytes(5000), 0x9000)
    esp.flash.erase(0x10000, "64KB")
    assert esp.flash.restore(tmp_path / "wire").verified
    assert esp.flash.verify(build_of("esp32c3")).matches
    assert esp.flash.restore(tmp_path / "past", over="wire").bytes_unchanged == 2 << 20


def test_what_is_in_it_and_what_its_flash_says(qemu_esp, build_of):
    esp = qemu_esp("esp32")
    esp.flash.write(build_of("esp32"))
    assert [image.region for image in esp.flash.analyze().images] == ["bootloader", "factory"]
    assert esp.flash.status().protection == "none"
    size = esp.flash.size_detect()
    assert (size.by_id, size.size) == (2 << 20, 2 << 20)
