"""Completion of the arguments of prompts and resources. It opens no board."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

import mcp_types as types

from mcp_bridge.components.base import Shared
from pytest_esp.errors import EspError

_MOST = 100  # by the protocol
_TABLES = ("esp_partition_read", "esp_partition_analyze")


class Completion:
    """Completes arguments by their names."""

    def __init__(self, bridge: Shared) -> None:
        self._bridge = bridge
        self._known = {
            "port": self._boards,
            "board": self._boards,
            "ports": self._boards,
            "partition": self._partitions,
            "region": self._partitions,
            "efuse_name": self._efuses,
            "test_suite": self._suites,
            "chip_type": self._chips,
            "target": self._chips,
        }

    def complete(
        self,
        _reference: types.PromptReference | types.ResourceTemplateReference,
        argument: types.CompletionArgument,
        context: types.CompletionContext | None,
    ) -> types.Completion | None:
        """Return the values of an argument that begin with its text; of a list, its last item is completed."""
        find = self._known.get(argument.name)
        if find is None:
            return None
        given = (context.arguments if context else None) or {}
        before, comma, last = argument.value.rpartition(",") if argument.name == "ports" else ("", "", argument.value)
        names = dict.fromkeys(name for name in find(given) if name.lower().startswith(last.strip().lower()))
        values = [f"{before}{comma}{name}" for name in names]
        return types.Completion(values=values[:_MOST], total=len(values), has_more=len(values) > _MOST)

    def _boards(self, _given: Mapping[str, Any]) -> Iterable[str]:
        from pytest_esp.rack.ports import plugged_in

        yield from self._bridge.rack.boards
        for component in self._bridge.components.values():
            yield from (one.instance_id for one in component.instances())
        yield from (port.device for port in plugged_in())

    def _chosen(self, given: Mapping[str, Any]) -> list[str]:
        """Return the board that another argument names; all boards if none does."""
        named = given.get("port") or given.get("board")
        return [named] if named else list(self._bridge.rack.boards)

    def _partitions(self, given: Mapping[str, Any]) -> Iterable[str]:
        """Yield the partitions of the last table that was read."""
        for board in self._chosen(given):
            for answer in self._bridge.seen.of(board, _TABLES).values():
                yield from (row.get("partition", row)["name"] for row in answer.get("partitions", ()))

    def _efuses(self, given: Mapping[str, Any]) -> Iterable[str]:
        for board in self._chosen(given):
            try:
                chip = self._bridge.boards.resolve(board).chip
                definition: Any = importlib.import_module(f"espefuse.efuse.{chip}.mem_definition")
            except (EspError, ImportError):  # no such board; an ESP8266 has no eFuses
                continue
            yield from (field.name for field in definition.EfuseDefineFields(None).EFUSES)

    @staticmethod
    def _suites(_given: Mapping[str, Any]) -> Iterable[str]:
        from pytest_esp.operations.production.testing import suites

        return ("all", *suites())

    @staticmethod
    def _chips(_given: Mapping[str, Any]) -> Iterable[str]:
        from esptool.targets import CHIP_DEFS

        return CHIP_DEFS
