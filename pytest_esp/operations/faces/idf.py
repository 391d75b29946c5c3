"""The operations of `esp.idf`."""

from __future__ import annotations

from pytest_esp.operations.faces.face import Face, bound
from pytest_esp.operations.idf import installation, project
from pytest_esp.operations.idf import tools as idf_tools


class IdfFace(Face):
    """`pytest_esp.operations.idf`: ESP-IDF, its tools and its projects."""

    environment = staticmethod(installation.environment)
    tools = staticmethod(idf_tools.tools)
    check = staticmethod(idf_tools.check)
    install = staticmethod(idf_tools.install)
    build = staticmethod(project.build)
    flash_project = bound(project.flash_project)
    monitor = bound(project.monitor)
