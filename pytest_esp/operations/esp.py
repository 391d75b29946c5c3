"""The operations bound to one board: the fixture `esp`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from pytest_esp.link.link import Link
from pytest_esp.operations import faces
from pytest_esp.operations.registry import OPERATIONS, Operation

if TYPE_CHECKING:
    from pytest_esp.operations.faces.chip import ChipFace
    from pytest_esp.operations.faces.diagnostics import DiagnosticsFace
    from pytest_esp.operations.faces.efuse import EfuseFace
    from pytest_esp.operations.faces.encryption import EncryptionFace
    from pytest_esp.operations.faces.firmware import FirmwareFace
    from pytest_esp.operations.faces.flash import FlashFace
    from pytest_esp.operations.faces.idf import IdfFace
    from pytest_esp.operations.faces.nvs import NvsFace
    from pytest_esp.operations.faces.ota import OtaFace
    from pytest_esp.operations.faces.partitions import PartitionsFace
    from pytest_esp.operations.faces.production import ProductionFace
    from pytest_esp.operations.faces.products import ProductsFace
    from pytest_esp.operations.faces.security import SecurityFace
    from pytest_esp.operations.faces.unity import UnityFace


class Esp:
    """Everything that can be done to one board. A group of operations is imported on first use.

    Attributes:
        link: the open link, for what no operation covers (``link.session.use(...)`` yields esptool's own object).
    """

    def __init__(self, link: Link) -> None:
        self.link = link

    @cached_property
    def chip(self) -> ChipFace:
        """Identity, connection, resets, the running app, recovery."""
        from pytest_esp.operations.faces.chip import ChipFace

        return ChipFace(self.link)

    @cached_property
    def flash(self) -> FlashFace:
        """Reading, writing, erasing, backups, the flash chip."""
        from pytest_esp.operations.faces.flash import FlashFace

        return FlashFace(self.link)

    @cached_property
    def efuse(self) -> EfuseFace:
        """eFuses: read, plan, burn."""
        from pytest_esp.operations.faces.efuse import EfuseFace

        return EfuseFace(self.link)

    @cached_property
    def security(self) -> SecurityFace:
        """Lock state of the chip; secure boot."""
        from pytest_esp.operations.faces.security import SecurityFace

        return SecurityFace(self.link)

    @cached_property
    def encryption(self) -> EncryptionFace:
        """Flash encryption."""
        from pytest_esp.operations.faces.encryption import EncryptionFace

        return EncryptionFace(self.link)

    @cached_property
    def partitions(self) -> PartitionsFace:
        """Partition tables, and the contents of partitions."""
        from pytest_esp.operations.faces.partitions import PartitionsFace

        return PartitionsFace(self.link)

    @cached_property
    def nvs(self) -> NvsFace:
        """Non-volatile storage: create and read it."""
        from pytest_esp.operations.faces.nvs import NvsFace

        return NvsFace(self.link)

    @cached_property
    def ota(self) -> OtaFace:
        """Over-the-air updates: packages, slots, uploads."""
        from pytest_esp.operations.faces.ota import OtaFace

        return OtaFace(self.link)

    @cached_property
    def diagnostics(self) -> DiagnosticsFace:
        """Memory, registers, core dumps, profiles, reports."""
        from pytest_esp.operations.faces.diagnostics import DiagnosticsFace

        return DiagnosticsFace(self.link)

    @cached_property
    def firmware(self) -> FirmwareFace:
        """Firmware files: convert, merge, analyze."""
        from pytest_esp.operations.faces.firmware import FirmwareFace

        return FirmwareFace(self.link)

    @cached_property
    def idf(self) -> IdfFace:
        """ESP-IDF: its tools and its projects."""
        from pytest_esp.operations.faces.idf import IdfFace

        return IdfFace(self.link)

    @cached_property
    def products(self) -> ProductsFace:
        """The catalogue of chips and modules."""
        from pytest_esp.operations.faces.products import ProductsFace

        return ProductsFace(self.link)

    @cached_property
    def production(self) -> ProductionFace:
        """Factory programming, provisioning, tests of many boards."""
        from pytest_esp.operations.faces.production import ProductionFace

        return ProductionFace(self.link)

    @cached_property
    def unity(self) -> UnityFace:
        """Unity test cases on the chip."""
        from pytest_esp.operations.faces.unity import UnityFace

        return UnityFace(self.link)

    @property
    def transcript(self) -> str:
        """Return what esptool and espefuse have printed for this board so far."""
        return self.link.transcript.text


def load_all() -> Mapping[str, Operation]:
    """Import every group and return all operations, by name."""
    for group in pkgutil.iter_modules(faces.__path__):
        importlib.import_module(f"{faces.__name__}.{group.name}")
    return OPERATIONS
