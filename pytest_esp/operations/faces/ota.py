"""The operations of `esp.ota`."""

from __future__ import annotations

from pytest_esp.operations.faces.face import Face, bound
from pytest_esp.operations.ota import package, slots, upload


class OtaFace(Face):
    """`pytest_esp.operations.ota`: slots of a board; packages and uploads need no board."""

    create = staticmethod(package.create)
    read = staticmethod(package.read)
    upload = staticmethod(upload.upload)
    prepare = bound(slots.prepare)
    deploy = bound(slots.deploy)
    rollback = bound(slots.rollback)
