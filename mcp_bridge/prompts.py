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
