"""The operations bound to one board: what the fixture `esp` is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from pytest_esp.link.link import Link
from pytest_esp.operations import (
    analysis,
    chip,
    connection,
    details,
    diagnostics,
    efuse,
    encryption,
    flash,
    flash_chip,
    nvs,
    partitions,
    ram,
    recovery,
    restoring,
    running,
    saving,
    secure_boot,
    security,
    tuning,
    unity,
)
from pytest_esp.operations.building import (
    bootloader_image,
    elf_image,
    image_report,
    merging,
    preparing,
    ram_image,
    size_analysis,
    splitting,
)
from pytest_esp.operations.catalogue import queries, refresh
from pytest_esp.operations.idf import installation, project
from pytest_esp.operations.idf import tools as idf_tools
from pytest_esp.operations.ota import package, slots, upload
from pytest_esp.operations.production import batch, factory, provisioning, quality, testing

P = ParamSpec("P")
R = TypeVar("R")


class bound(Generic[P, R]):  # noqa: N801 - used like a decorator
    """Makes an operation (a function over a `Link`) a method of a face, with its signature and docstring."""

    def __init__(self, function: Callable[Concatenate[Link, P], R]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    @overload
    def __get__(self, face: None, owner: type[Any]) -> bound[P, R]: ...
    @overload
    def __get__(self, face: Face, owner: type[Any]) -> Callable[P, R]: ...
    def __get__(self, face: Face | None, owner: type[Any]) -> bound[P, R] | Callable[P, R]:
        """Return the operation with the face's link filled in."""
        if face is None:
            return self

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            __tracebackhide__ = True  # pytest shows the arguments of frames, and some are secret
            return self.function(face.link, *args, **kwargs)

        call.__name__ = self.function.__name__
        call.__doc__ = self.__doc__
        return call


class Face:
    """The operations of one module, on one board."""

    def __init__(self, link: Link) -> None:
        self.link = link


class ChipFace(Face):
    """`pytest_esp.operations.chip`, `details`, `connection`, `ram`, `running` and `recovery`."""

    identify = bound(chip.identify)
    reset = bound(chip.reset)
    change_baudrate = bound(chip.change_baudrate)
    read_register = bound(chip.read_register)
    info = bound(details.info)
    connect = bound(connection.connect)
    check_connection = bound(connection.check_connection)
    elf_to_ram_image = staticmethod(ram_image.elf_to_ram_image)
    load_ram = bound(ram.load_ram)
    self_test = bound(ram.self_test)
    run_firmware = bound(running.run_firmware)
    monitor = bound(running.monitor)
    recover = bound(recovery.recover)


class FlashFace(Face):
    """`pytest_esp.operations.flash`, `saving`, `restoring`, `analysis`, `flash_chip` and `tuning`."""

    info = bound(flash.info)
    read = bound(flash.read)
    write = bound(flash.write)
    erase = bound(flash.erase)
    verify = bound(flash.verify)
    md5 = bound(flash.md5)
    backup = bound(saving.backup)
    restore = bound(restoring.restore)
    smart_backup = bound(saving.smart_backup)
    smart_restore = bound(restoring.smart_restore)
    analyze = bound(analysis.analyze)
    status = bound(flash_chip.status)
    sfdp_read = bound(flash_chip.sfdp_read)
    size_detect = bound(flash_chip.size_detect)
    optimize = bound(tuning.optimize)


class EfuseFace(Face):
    """`pytest_esp.operations.efuse`."""

    read_all = bound(efuse.read_all)
    read = bound(efuse.read)
    summary = bound(efuse.summary)
    plan = bound(efuse.plan)
    burn = bound(efuse.burn)


class SecurityFace(Face):
    """`pytest_esp.operations.security`, and `secure_boot`."""

    info = bound(security.info)
    posture = bound(security.posture)
    plan_secure_boot = bound(secure_boot.plan_secure_boot)
    enable_secure_boot = bound(secure_boot.enable_secure_boot)


class EncryptionFace(Face):
    """`pytest_esp.operations.encryption`."""

    status = bound(encryption.status)
    plan = bound(encryption.plan)
    enable = bound(encryption.enable)
    configure = bound(encryption.configure)


class PartitionsFace(Face):
    """`pytest_esp.operations.partitions`."""

    read = bound(partitions.read)
    find = bound(partitions.find)
    otadata = bound(partitions.otadata)
    app = bound(partitions.app)
    create = bound(partitions.create)
    create_ota = bound(partitions.create_ota)
    write = bound(partitions.write)
    setup_ota = bound(partitions.setup_ota)
    analyze = bound(partitions.analyze)


class NvsFace(Face):
    """`pytest_esp.operations.nvs`."""

    create = bound(nvs.create)
    read = bound(nvs.read)


class OtaFace(Face):
    """`pytest_esp.operations.ota`: slots of a board, and packages and uploads, which take none."""

    create = staticmethod(package.create)
    read = staticmethod(package.read)
    upload = staticmethod(upload.upload)
    prepare = bound(slots.prepare)
    deploy = bound(slots.deploy)
    rollback = bound(slots.rollback)


class DiagnosticsFace(Face):
    """`pytest_esp.operations.diagnostics`."""

    memory_dump = bound(diagnostics.memory_dump)
    register_dump = bound(diagnostics.register_dump)
    core_dump = bound(diagnostics.core_dump)
    rf_calibration_check = bound(diagnostics.rf_calibration_check)
    thermal_status = bound(diagnostics.thermal_status)
    power_analysis = bound(diagnostics.power_analysis)
    performance_profile = bound(diagnostics.performance_profile)
    diagnostic_report = bound(diagnostics.diagnostic_report)
    core_dump_of = staticmethod(diagnostics.core_dump_of)


class FirmwareFace(Face):
    """`pytest_esp.operations.building`: over files alone, whatever the board."""

    elf_to_image = staticmethod(elf_image.elf_to_image)
    prepare = staticmethod(preparing.prepare)
    merge = staticmethod(merging.merge)
    optimize = staticmethod(splitting.optimize)
    analyze = staticmethod(image_report.analyze)
    size = staticmethod(size_analysis.size)
    bootloader = staticmethod(bootloader_image.bootloader)


class IdfFace(Face):
    """`pytest_esp.operations.idf`: ESP-IDF, its tools and its projects."""

    environment = staticmethod(installation.environment)
    tools = staticmethod(idf_tools.tools)
    check = staticmethod(idf_tools.check)
    install = staticmethod(idf_tools.install)
    build = staticmethod(project.build)
    flash_project = bound(project.flash_project)


class ProductsFace(Face):
    """`pytest_esp.operations.catalogue`: chips and modules, whatever the board."""

    search = staticmethod(queries.search)
    info = staticmethod(queries.info)
    compare = staticmethod(queries.compare)
    recommend = staticmethod(queries.recommend)
    availability = staticmethod(queries.availability)
    refresh = staticmethod(refresh.refresh)


class ProductionFace(Face):
    """`pytest_esp.operations.production`. Those that lease boards by name need no link: they may be of other boards."""

    factory_program = bound(factory.factory_program)
    factory_reset = bound(factory.factory_reset)
    inspect = bound(quality.inspect)
    provision = bound(provisioning.provision)
    write_calibration_data = bound(provisioning.write_calibration_data)
    write_manufacturing_data = bound(provisioning.write_manufacturing_data)
    batch_program = staticmethod(batch.batch_program)
    run_tests = staticmethod(testing.run_tests)


class UnityFace(Face):
    """`pytest_esp.operations.unity`."""

    menu = bound(unity.menu)
    run = bound(unity.run)
    run_all = bound(unity.run_all)


class Esp:
    """Everything that can be done to one board.

    Attributes:
        link: the open wire, for what no operation covers (``esp.link.session.use(...)`` yields esptool's own object).
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self.chip = ChipFace(link)
        self.flash = FlashFace(link)
        self.efuse = EfuseFace(link)
        self.security = SecurityFace(link)
        self.encryption = EncryptionFace(link)
        self.partitions = PartitionsFace(link)
        self.nvs = NvsFace(link)
        self.ota = OtaFace(link)
        self.diagnostics = DiagnosticsFace(link)
        self.firmware = FirmwareFace(link)
        self.idf = IdfFace(link)
        self.products = ProductsFace(link)
        self.production = ProductionFace(link)
        self.unity = UnityFace(link)

    @property
    def transcript(self) -> str:
        """What esptool and espefuse have said on this board so far."""
        return self.link.transcript.text
