"""The operations of `esp.unity`."""

from __future__ import annotations

from pytest_esp.operations import unity
from pytest_esp.operations.faces.face import Face, bound


class UnityFace(Face):
    """`pytest_esp.operations.unity`."""

    menu = bound(unity.menu)
    run = bound(unity.run)
    run_all = bound(unity.run_all)
