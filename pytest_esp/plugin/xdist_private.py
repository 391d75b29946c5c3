"""What the scheduler uses of pytest-xdist that is not in its documented API; imported only under xdist."""

from __future__ import annotations

from xdist.scheduler import LoadScheduling

from pytest_esp.versions import required


def have_same_collection(scheduling: LoadScheduling) -> bool:
    """Return whether all workers found the same tests; if not, the differences are reported.

    Raises:
        VersionError: if the installed pytest-xdist has changed.
    """
    return required(scheduling, "_check_nodes_have_same_collection", "pytest-xdist")()
