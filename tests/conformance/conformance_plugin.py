"""Runs inside the pytest that runs esptool's tests: drops the tests of the list, counts, and lends a reset port.

It lives in that pytest's environment, so it imports nothing of this project. `run.py` loads it with ``-p`` and
configures it through environment variables:

CONFORMANCE_DESELECT: JSON list of ``Class::test`` (or ``Class::test[parameters]``) to leave out.
CONFORMANCE_ONLY: JSON list of what alone is to run; empty means all.
CONFORMANCE_RESULT: file for the result, as JSON.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import serial

_outcomes: dict[str, str] = {}
_deselected: list[str] = []


class _ResetPort:
    """What test_espefuse.py toggles to clear an FPGA's eFuses, for ``--reset-port reset://HOST:PORT``.

    The lines going down again tell the server of the simulated chip to do it.
    """

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("reset://").split(":")
        self._address = (host, int(port))
        self._rts = False
        self.dtr = False

    @property
    def rts(self) -> bool:
        return self._rts

    @rts.setter
    def rts(self, value: bool) -> None:
        if self._rts and not value:
            with socket.create_connection(self._address) as connection:
                connection.recv(1)  # closed by the server once it is done
        self._rts = value


class _Serial(serial.Serial):
    """pyserial's class, which makes a `_ResetPort` where the URL asks for one."""

    def __new__(cls, port=None, *args, **kwargs):
        return _ResetPort(port) if str(port).startswith("reset://") else super().__new__(cls)


def pytest_configure():
    serial.Serial = _Serial


def pytest_collection_modifyitems(config, items):
    dropped = json.loads(os.environ["CONFORMANCE_DESELECT"])
    only = json.loads(os.environ["CONFORMANCE_ONLY"])
    kept, gone = [], []
    for item in items:
        if _is_listed(item, dropped):
            gone.append(item)
            if not any(mark.args[0] if mark.args else True for mark in item.iter_markers("skipif")):
                _deselected.append(_name(item))
        else:
            (kept if not only or _is_listed(item, only) else gone).append(item)
    config.hook.pytest_deselected(items=gone)
    items[:] = kept


def _name(item):
    return item.nodeid.split("::", 1)[1]


def _is_listed(item, names):
    name = _name(item)
    return name in names or name.partition("[")[0] in names


def pytest_runtest_logreport(report):
    if report.outcome == "rerun":
        _outcomes.pop(report.nodeid, None)
    elif report.failed:
        _outcomes[report.nodeid] = "failed"
    elif report.skipped:
        _outcomes[report.nodeid] = "skipped"
    elif report.when == "call":
        _outcomes.setdefault(report.nodeid, "passed")


def pytest_sessionfinish():
    result = {
        outcome: [name.split("::", 1)[1] for name, its in _outcomes.items() if its == outcome]
        for outcome in ("passed", "failed", "skipped")
    }
    Path(os.environ["CONFORMANCE_RESULT"]).write_text(json.dumps({**result, "deselected": _deselected}))
