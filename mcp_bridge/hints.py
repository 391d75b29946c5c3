"""Hints that a client can follow: operations by the names of their tools, and calls instead of command-line options."""

from __future__ import annotations

import re
from collections.abc import Mapping

_TOOLS: Mapping[str, str] = {
    "chip-identify": "esp_detect_chip",
    "flash-write": "esp_flash_firmware",
    "flash-read": "esp_flash_read",
    "flash-erase": "esp_flash_erase",
    "flash-verify": "esp_flash_verify",
    "efuse-read": "esp_efuse_read",
    "ota-deploy": "esp_ota_deploy",
}
"""The tools that offer an operation with other parameters."""

_HELD = "call again later, or use another board: esp_rack_status shows who holds which board"
_BURNS = "only the user can allow it: restart the server with --allow-burn; burning cannot be undone"
_OTHER_FACES = (
    (re.compile(r".*\block timeout\b.*|.*\bend the (?:process|holder)\b.*", re.DOTALL), _HELD),
    (re.compile(r".*--esp-allow-burn.*", re.DOTALL), _BURNS),
    (re.compile(r"(?:start|restart) the server with", re.DOTALL), "the user can restart the server with"),
)
"""What hints for other users say, and what they say to a client of the server."""


class Hints:
    """Words hints for clients.

    Args:
        tools: the tool that offers an operation, by the operation's name.
    """

    def __init__(self, tools: Mapping[str, str]) -> None:
        self._tools = {**_TOOLS, **tools}
        names = "|".join(sorted(self._tools, key=len, reverse=True))
        self._operation = re.compile(rf"(?<![\w-])(?:pytest-esp op )?({names})(?![\w-])")

    def for_clients(self, hint: str) -> str:
        """Return *hint* in a client's words."""
        for pattern, words in _OTHER_FACES:
            if words not in hint:
                hint = pattern.sub(words, hint, count=1)
        return self._operation.sub(lambda found: self._tools[found[1]], hint)
