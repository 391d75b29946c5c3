"""Tools for the ESP-IDF on the server's machine, and for building projects with it."""

from __future__ import annotations

from typing import Any, ClassVar

from mcp_bridge.components.base import Component
from mcp_bridge.tool import offer
from pytest_esp.operations.idf import installation, project
from pytest_esp.operations.idf import tools as idf_tools

_HOUR = 3600.0
_MARGIN = 60.0  # seconds; an operation that exceeds its own time-out reports it within them


class IdfIntegration(Component):
    """Tools for ESP-IDF."""

    NAME: ClassVar[str] = "idf_integration"
    SUMMARY: ClassVar[str] = "ESP-IDF: check and install it and its tools; build, flash and monitor projects"

    esp_idf_env_info = offer(installation.environment)
    esp_idf_tools_list = offer(idf_tools.tools)
    esp_idf_tools_check = offer(idf_tools.check, timeout=300.0)
    esp_idf_tools_install = offer(idf_tools.install, timeout=_HOUR + _MARGIN, idempotent=True)
    esp_idf_build_project = offer(project.build, timeout=_HOUR + _MARGIN, idempotent=True)
    esp_idf_flash_project = offer(project.flash_project, timeout=600.0)
    esp_idf_monitor = offer(project.monitor, timeout=330.0, long=True)

    def health_check(self) -> dict[str, Any]:
        """Look for an ESP-IDF. A missing one is not an error: only the tools of this component need it."""
        found = installation.environment()
        idf = found.idf
        return {
            "status": "healthy",
            "idf": str(idf.path) if idf else None,
            "version": idf.version if idf else None,
            "remarks": list(found.problems),
        }
