"""The operations of `esp.efuse`."""

from __future__ import annotations

from pytest_esp.operations.faces.face import Face, bound
from pytest_esp.operations.security import efuse


class EfuseFace(Face):
    """`pytest_esp.operations.security.efuse`."""

    read_all = bound(efuse.read_all)
    read = bound(efuse.read)
    summary = bound(efuse.summary)
    plan = bound(efuse.plan)
    burn = bound(efuse.burn)
