"""Ways of working that a client can offer to its user."""

from __future__ import annotations

from typing import Any

from fastmcp import FastMCP


def add_prompts(app: FastMCP[Any]) -> None:
    """Add all prompts to *app*."""

    # A description instead of a docstring: to parse one, FastMCP imports a whole parser at every start.
    @app.prompt(description="Plan a backup of a board's flash before anything is changed.")
    def esp_backup_plan(port: str, output_dir: str = "backup") -> str:
        return (
            f"Back up the board {port} before anything is changed on it.\n"
            f"1. esp_detect_chip(port={port!r}): note chip, MAC address and flash size.\n"
            f"2. esp_security_audit(port={port!r}): if flash encryption is on, say that the backup holds ciphertext, "
            "which only this chip can use.\n"
            f"3. esp_flash_backup(port={port!r}, output_dir={output_dir!r}); if it is interrupted, call it again: it "
            "goes on where it was.\n"
            "4. Report where the backup lies and its SHA-256, and how esp_flash_restore brings it back."
        )

    @app.prompt(description="Set up ESP-IDF for a chip, build a project for it, and run it on a board.")
    def esp_idf_setup_target(target: str = "esp32c3", project_path: str = ".", port: str = "") -> str:
        board = f"port={port!r}" if port else "port=NAME"
        return (
            f"Make the ESP-IDF project {project_path} run on an {target}.\n"
            "1. esp_idf_env_info(): which ESP-IDF is there? If there is none, say how to install it, and stop.\n"
            f"2. esp_idf_tools_check(target={target!r}): if a tool is missing or broken, ask the user (it is "
            f"hundreds of megabytes), then esp_idf_tools_install(targets=[{target!r}]).\n"
            f"3. esp_idf_build_project(project_path={project_path!r}, target={target!r}): another target than before "
            "renames sdkconfig to sdkconfig.old, so say so first. If it fails, show the first of `errors` by file and "
            "line with the hint, and mend that before the others.\n"
            f"4. esp_detect_chip({board}): its chip_type must be {target!r}.\n"
            f"5. esp_idf_flash_project(project_path={project_path!r}, {board}), then "
            f"esp_idf_monitor(project_path={project_path!r}, {board}): report whether the app starts, or its crash."
        )
