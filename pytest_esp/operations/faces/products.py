"""The operations of `esp.products`."""

from __future__ import annotations

from pytest_esp.operations.catalogue import queries, refresh
from pytest_esp.operations.faces.face import Face


class ProductsFace(Face):
    """`pytest_esp.operations.catalogue`: chips and modules, independent of the board."""

    search = staticmethod(queries.search)
    info = staticmethod(queries.info)
    compare = staticmethod(queries.compare)
    recommend = staticmethod(queries.recommend)
    availability = staticmethod(queries.availability)
    refresh = staticmethod(refresh.refresh)
