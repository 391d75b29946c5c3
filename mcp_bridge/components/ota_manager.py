"""Tools for updates over the air: make packages, deploy them over the serial port or HTTP, roll back."""

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
    SUMMARY: ClassVar[str] = "updates over the air: make packages, deploy over HTTP or the serial port, roll back"

    esp_ota_package_create = offer(packages.create)
    esp_ota_flash_prepare = offer(slots.prepare, idempotent=True)
    esp_ota_rollback = offer(
        slots.rollback,
        words="Roll back to the app before the last update, by otadata's sequence and state. No app is erased.",
        timeout=120.0,
    )

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
        """Install an update package on a board over its serial port, or on a device over HTTP(S).

        Over the serial port, it is written to the inactive slot, otadata is changed last, and the boot log is checked.

        Args:
            package: the package file (.espota).
            target_url: instead of port: the http or https URL to which the device takes updates.
            public_key_file: a public key in PEM; the package must be signed with its private key.
            on_trial: serial port only: a bootloader with rollback starts the new app once, and returns to the old app
                unless the new one confirms itself.
            method: HTTP only: the request's method.
            form_field: HTTP only: the form field that takes the image, e.g. "update" for Arduino.
        """
        key = self._required_key(public_key_file)
        if target_url is not None:
            if port is not None:
                raise OperationError("port and target_url cannot be used together", hint="leave one of them out")
            return upload(
                package, target_url, public_key_file=key, method=method, form_field=form_field, progress=progress
            )
        with self.bridge.boards.use(port) as esp:
            return esp.ota.deploy(package, public_key_file=key, on_trial=on_trial, progress=progress)

    def _required_key(self, name: str | None) -> Path | None:
        """Return the public key to check an update with. A caller cannot replace the server's own key."""
        required = self.bridge.settings.update_key
        if required is not None and name is not None and resolve(name) != required:
            raise RefusedError(
                "this server checks all updates with its own key",
                hint="leave out public_key_file",
            )
        return required or (resolve(name) if name else None)

    def health_check(self) -> dict[str, Any]:
        """Check that the key for updates exists."""
        key = self.bridge.settings.update_key
        if key is not None and not key.is_file():
            return {"status": "degraded", "problem": f"the key for updates {key} does not exist"}
        return {"status": "healthy", "signed_updates_only": key is not None}
