"""Updates over the air: packages, deployed through the wire or over HTTP, and taken back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from mcp_bridge.components.base import Component
from mcp_bridge.tool import offer, progress, tool
from pytest_esp.errors import OperationError, RefusedError
from pytest_esp.formats.files import resolve
from pytest_esp.operations.ota import package as packages
from pytest_esp.operations.ota import slots
from pytest_esp.operations.ota.slots import OtaUpdate
from pytest_esp.operations.ota.upload import Upload, upload
from pytest_esp.operations.registry import Effect


class OtaManager(Component):
    """Tools for updates over the air."""

    NAME: ClassVar[str] = "ota_manager"
    SUMMARY: ClassVar[str] = "updates over the air: packages, deployed over HTTP or through the wire, and taken back"

    esp_ota_package_create = offer(packages.create)
    esp_ota_flash_prepare = offer(slots.prepare, idempotent=True)
    esp_ota_rollback = offer(slots.rollback, timeout=120.0)

    @tool(Effect.WRITE, timeout=600.0, boardless_with="target_url")
    def esp_ota_deploy(
        self,
        package: str,
        port: str | None = None,
        target_url: str | None = None,
        public_key_file: str | None = None,
        on_trial: bool = False,
        method: Literal["POST", "PUT"] = "POST",
        form_field: str | None = None,
    ) -> OtaUpdate | Upload:
        """Install an update package: through the wire of a board, or over HTTP(S) on a device that has its own server.

        Through the wire it goes into the slot that does not run, otadata is changed last, and the boot log is checked.

        Args:
            package: its file (.espota).
            target_url: instead of port: where the device takes updates, http or https.
            public_key_file: a public key in PEM; then the package must be signed with its private key.
            on_trial: through the wire: a bootloader with rollback starts the app once, and the old one again unless the
                new one has confirmed itself.
            method: over HTTP.
            form_field: over HTTP: the field of a form that takes the image, e.g. "update" for Arduino.
        """
        key = self._required_key(public_key_file)
        if target_url is not None:
            if port is not None:
                raise OperationError("there are two targets", hint="give port or target_url, not both")
            return upload(
                package, target_url, public_key_file=key, method=method, form_field=form_field, progress=progress
            )
        with self.bridge.boards.use(port) as esp:
            return esp.ota.deploy(package, public_key_file=key, on_trial=on_trial, progress=progress)

    def _required_key(self, name: str | None) -> Path | None:
        """Return the key that an update must be signed for: the server's own cannot be replaced by a caller."""
        required = self.bridge.settings.update_key
        if required is not None and name is not None and resolve(name) != required:
            raise RefusedError(
                "this server takes updates for one key only",
                hint="leave out public_key_file; its own key is checked in any case",
            )
        return required or (resolve(name) if name else None)

    def health_check(self) -> dict[str, Any]:
        """Look whether the key that updates are checked with can be read."""
        key = self.bridge.settings.update_key
        if key is not None and not key.is_file():
            return {"status": "degraded", "problem": f"the key for updates {key} is gone: none can be installed"}
        return {"status": "healthy", "signed_updates_only": key is not None}
