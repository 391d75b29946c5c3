"""The operations of `esp.flash`."""

from __future__ import annotations

from pytest_esp.operations.backup import restoring, saving
from pytest_esp.operations.faces.face import Face, bound
from pytest_esp.operations.flash import analysis, flash_chip, reading, tuning, writing


class FlashFace(Face):
    """`pytest_esp.operations.flash`, `saving`, `restoring`, `analysis`, `flash_chip` and `tuning`."""

    info = bound(reading.info)
    read = bound(reading.read)
    write = bound(writing.write)
    erase = bound(writing.erase)
    verify = bound(writing.verify)
    md5 = bound(reading.md5)
    backup = bound(saving.backup)
    restore = bound(restoring.restore)
    smart_backup = bound(saving.smart_backup)
    smart_restore = bound(restoring.smart_restore)
    analyze = bound(analysis.analyze)
    status = bound(flash_chip.status)
    sfdp_read = bound(flash_chip.sfdp_read)
    size_detect = bound(flash_chip.size_detect)
    optimize = bound(tuning.optimize)
