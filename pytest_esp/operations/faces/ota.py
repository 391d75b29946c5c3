"""The operations of `esp.ota`."""

from __future__ import annotations

from pytest_esp.operations.faces.face import Face, bound
from pytest_esp.operations.ota import package, slots, upload


class OtaFace(Face):
    """`pytest_esp.operations.ota`: slots of a board, and packages and uploads, which take none."""

    create = staticmethod(package.create)
    read = staticmethod(package.read)
    upload = staticmethod(upload.upload)
    prepare = bound(slots.prepare)
    deploy = bound(slots.deploy)
    rollback = bound(slots.rollback)
