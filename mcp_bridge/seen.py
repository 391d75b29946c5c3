"""The last answers of boards, for resources, which do not touch boards."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any


class Seen:
    """The last successful answer of each tool about each board."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, str], tuple[float, dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def remember(self, board: str, tool: str, answer: dict[str, Any]) -> None:
        """Store an answer."""
        with self._lock:
            self._answers[board, tool] = (time.monotonic(), answer)

    def of(self, board: str, tools: Iterable[str]) -> dict[str, Any]:
        """Return the answers of *tools* about *board*, each with its age in seconds."""
        now = time.monotonic()
        with self._lock:
            found = {tool: self._answers[board, tool] for tool in tools if (board, tool) in self._answers}
        return {tool: {"age_seconds": round(now - at, 1), **answer} for tool, (at, answer) in found.items()}
