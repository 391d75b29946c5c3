"""ESP-IDF on the server's machine: its tools, and projects that are built with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mcp_bridge.components.base import Component
from mcp_bridge.tool import progress, tool
from pytest_esp.formats.files import resolve
from pytest_esp.operations.chip.running import ConsoleText
from pytest_esp.operations.idf import installation, project
from pytest_esp.operations.idf import tools as idf_tools
from pytest_esp.operations.idf.installation import EnvironmentInfo
from pytest_esp.operations.idf.project import ProjectBuild
from pytest_esp.operations.idf.tools import ToolList, ToolsCheck, ToolsInstall
from pytest_esp.operations.registry import Effect

_BUILD_TIME = 1800.0  # seconds
_INSTALL_TIME = 3600.0  # seconds; a toolchain has some 300 MB
_MARGIN = 60.0  # seconds beyond those, in which a build that takes too long says so itself


@dataclass(frozen=True)
class ProjectFlashReport:
    """What was flashed; regions are (address, size, written or unchanged)."""

    build_dir: str
    target: str | None
    name: str | None
    version: str | None
    bytes_written: int
    bytes_skipped: int
    verified: bool
    elapsed_seconds: float
    regions: list[tuple[str, int, str]]


class IdfIntegration(Component):
    """Tools for ESP-IDF."""

    NAME: ClassVar[str] = "idf_integration"
    SUMMARY: ClassVar[str] = "ESP-IDF: what is installed, its tools, projects built, flashed and listened to"

    @tool()
    def esp_idf_env_info(self) -> EnvironmentInfo:
        """Return which ESP-IDF is installed on this machine, where its tools are, and what is missing. Runs nothing."""
        return installation.environment()

    @tool()
    def esp_idf_tools_list(self, target: str | None = None) -> ToolList:
        """List the tools that this ESP-IDF wants, their versions, and which are installed. target is a chip."""
        return idf_tools.tools(target)

    @tool(timeout=300.0)
    def esp_idf_tools_check(self, target: str | None = None) -> ToolsCheck:
        """Check the tools of ESP-IDF: each is asked for its version; says what is missing, outdated or broken."""
        return idf_tools.check(target)

    @tool(Effect.WRITE, timeout=_INSTALL_TIME + _MARGIN, idempotent=True)
    def esp_idf_tools_install(self, tools: list[str] | None = None, targets: list[str] | None = None) -> ToolsInstall:
        """Install tools of ESP-IDF with its own installer, which downloads them; what is there is kept.

        Without tools (NAME or NAME@VERSION) all that builds need, and the Python environment; targets are chips.
        """
        return idf_tools.install(tools, targets, timeout=_INSTALL_TIME, progress=progress)

    @tool(Effect.WRITE, timeout=2 * _BUILD_TIME + _MARGIN, idempotent=True)
    def esp_idf_build_project(
        self,
        project_path: str,
        target: str | None = None,
        build_dir: str = "build",
        clean: bool = False,
        arguments: list[str] | None = None,
        timeout_seconds: float = _BUILD_TIME,
    ) -> ProjectBuild:
        """Build an ESP-IDF project; its build scripts run on this machine. Errors come by file and line.

        target is a chip: another one than the project is configured for configures it anew (sdkconfig becomes
        sdkconfig.old). arguments are options of idf.py such as -v and -DSDKCONFIG_DEFAULTS=FILE.
        """
        return project.build(
            resolve(project_path),
            target,
            build_dir=build_dir,
            clean=clean,
            arguments=arguments,
            timeout=min(timeout_seconds, 2 * _BUILD_TIME),
            progress=progress,
        )

    @tool(Effect.WRITE, timeout=600.0)
    def esp_idf_flash_project(
        self, project_path: str, port: str | None = None, build_dir: str = "build"
    ) -> ProjectFlashReport:
        """Flash the last build of an ESP-IDF project: all its images; regions that are there already are skipped.

        It does not build: call esp_idf_build_project first. A build for another chip is refused.
        """
        folder = resolve(project_path)
        with self.bridge.boards.use(port) as esp:
            result = esp.idf.flash_project(folder, build_dir, progress=progress)
        write = result.write
        return ProjectFlashReport(
            build_dir=str(result.build_dir),
            target=result.target,
            name=result.name,
            version=result.version,
            bytes_written=write.bytes_written,
            bytes_skipped=write.bytes_skipped,
            verified=write.verified,
            elapsed_seconds=round(write.elapsed_seconds, 3),
            regions=[(f"{region.address:#x}", region.size, region.state) for region in write.regions],
        )

    @tool(Effect.READ, timeout=330.0)
    def esp_idf_monitor(
        self,
        project_path: str,
        port: str | None = None,
        duration_seconds: float = 10.0,
        until: str | None = None,
        reset: bool = True,
        build_dir: str = "build",
    ) -> ConsoleText:
        """Start a project's app and return what it prints within duration_seconds (300 at most), or until a text comes.

        A crash ends it and is decoded with the ELF file of the build. Like esp_serial_monitor with that elf_file.
        """
        firmware = project.built_firmware(resolve(project_path), build_dir)
        with self.bridge.boards.use(port) as esp:
            return esp.chip.monitor(duration_seconds, until, reset=reset, elf=firmware.elf, progress=progress)

    def health_check(self) -> dict[str, Any]:
        """Look for an ESP-IDF; without one these tools say so, and all others work."""
        found = installation.environment()
        idf = found.idf
        return {
            "status": "healthy",
            "idf": str(idf.path) if idf else None,
            "version": idf.version if idf else None,
            "remarks": list(found.problems),
        }
