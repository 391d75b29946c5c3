"""The operations of `esp.encryption`."""

from __future__ import annotations

from pytest_esp.operations.faces.face import Face, bound
from pytest_esp.operations.security import encryption


class EncryptionFace(Face):
    """`pytest_esp.operations.security.encryption`."""

    status = bound(encryption.status)
    plan = bound(encryption.plan)
    enable = bound(encryption.enable)
    configure = bound(encryption.configure)
    encrypt_image = staticmethod(encryption.encrypt_image)
