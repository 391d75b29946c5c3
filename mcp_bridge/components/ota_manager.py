"""Updates over the air: packages, deployed through the wire or over HTTP, and taken back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar, Literal

from mcp_bridge.components.base import Component
from mcp_bridge.tool import progress, tool
from pytest_esp.errors import OperationError, RefusedError
from pytest_esp.formats.files import resolve
from pytest_esp.operations.ota import package as packages
from pytest_esp.operations.ota.package import Package
from pytest_esp.operations.ota.slots import OtaReadiness, OtaUpdate
from pytest_esp.operations.ota.upload import Upload, upload
from pytest_esp.operations.registry import Effect


class OtaManager(Component):
    """Tools for updates over the air."""

    NAME: ClassVar[str] = "ota_manager"
    SUMMARY: ClassVar[str] = "updates over the air: packages, deployed over HTTP or through the wire, and taken back"

    @tool()
    def esp_ota_package_create(
        self,
        firmware_file: str,
        version: str,
        output_file: str | None = None,
        key_file: str | None = None,
        overwrite: bool = False,
    ) -> Package:
        """Make an update package (.espota) of an app's image or build folder: manifest, SHA-256, optional signature.

        key_file is a private key in PEM (Ed25519 or P-256). output_file is named by firmware_file and version if it
        is left out. Touches no board.
        """
        firmware = resolve(firmware_file)
        key = resolve(key_file) if key_file else None
        safe_version = re.sub(r"[^\w.+-]", "_", version)
        output = resolve(output_file or f"{firmware.with_suffix('')}-{safe_version}{packages.SUFFIX}", "write")
        return packages.create(firmware, version, output, key_file=key, overwrite=overwrite)

    @tool(Effect.WRITE, idempotent=True)
    def esp_ota_flash_prepare(self, port: str | None = None) -> OtaReadiness:
        """Check that a board can take an update (table, otadata, slots, bootloader), and mend damaged otadata.

        Tells which partition runs, which takes the next update, and how large that may be. A board without the right
        table needs esp_ota_partition_setup first.
        """
        with self.bridge.boards.use(port) as esp:
            return esp.ota.prepare()

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
        """Install an update package: through the wire of a board (port), or over HTTP(S) to a device (target_url).

        Through the wire it goes into the slot that does not run, otadata is changed last, and the boot log is checked.
        Over HTTP the image is sent to the device's own update server (form_field="update" for Arduino's). With
        public_key_file only a package signed with its key is taken. on_trial: a bootloader with rollback starts it
        once, and the old app again unless the new one says that it is well.
        """
        path, key = resolve(package), self._required_key(public_key_file)
        if target_url is not None:
            if port is not None:
                raise OperationError("there are two targets", hint="give port or target_url, not both")
            return upload(
                path, target_url, public_key_file=key, method=method, form_field=form_field, progress=progress
            )
        with self.bridge.boards.use(port) as esp:
            return esp.ota.deploy(path, public_key_file=key, on_trial=on_trial, progress=progress)

    @tool(Effect.WRITE, timeout=120.0)
    def esp_ota_rollback(self, port: str | None = None) -> OtaUpdate:
        """Go back to the app before the last update, by otadata's sequence and state; no app is erased.

        The boot log is checked. Fails, and changes nothing, where there is no app to go back to.
        """
        with self.bridge.boards.use(port) as esp:
            return esp.ota.rollback()

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
