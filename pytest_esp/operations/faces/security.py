"""The operations of `esp.security`."""

from __future__ import annotations

from pytest_esp.operations.faces.face import Face, bound
from pytest_esp.operations.security import audit, posture, secure_boot


class SecurityFace(Face):
    """`pytest_esp.operations.security.posture`, `audit` and `secure_boot`."""

    info = bound(posture.info)
    audit = bound(audit.audit)
    posture = bound(posture.posture)
    plan_secure_boot = bound(secure_boot.plan_secure_boot)
    enable_secure_boot = bound(secure_boot.enable_secure_boot)
