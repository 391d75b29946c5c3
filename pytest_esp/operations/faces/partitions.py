"""The operations of `esp.partitions`."""

from __future__ import annotations

from pytest_esp.operations.faces.face import Face, bound
from pytest_esp.operations.flash import tables
from pytest_esp.operations.partitions import analysis, new_table


class PartitionsFace(Face):
    """`pytest_esp.operations.partitions`."""

    read = bound(tables.read)
    find = bound(tables.find)
    otadata = bound(tables.otadata)
    app = bound(tables.app)
    create = staticmethod(new_table.create)
    create_ota = staticmethod(new_table.create_ota)
    write = bound(new_table.write)
    setup_ota = bound(new_table.setup_ota)
    analyze = bound(analysis.analyze)
