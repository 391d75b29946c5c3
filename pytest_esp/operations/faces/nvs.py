"""The operations of `esp.nvs`."""

from __future__ import annotations

from pytest_esp.operations.faces.face import Face, bound
from pytest_esp.operations.partitions import nvs


class NvsFace(Face):
    """`pytest_esp.operations.partitions.nvs`."""

    create = staticmethod(nvs.create)
    read = bound(nvs.read)
