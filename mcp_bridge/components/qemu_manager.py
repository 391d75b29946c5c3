"""Tools for QEMU machines and simulated chips: start, list, flash, stop, inject faults."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ValidationError

from mcp_bridge.calls import progress
from mcp_bridge.components.base import Component, Instance, Shared
from mcp_bridge.tool import tool
from pytest_esp.boards.board import Board
from pytest_esp.boards.faults import BoardFaults
from pytest_esp.boards.qemu import QemuBoard
from pytest_esp.boards.sim import SimBoard
from pytest_esp.errors import BackendError, EspError, OperationError
from pytest_esp.formats.files import resolve
from pytest_esp.names import ChipName, ChipSpelling
from pytest_esp.qemu.find import VARIABLES, find_all
from pytest_esp.qemu.machines import machine_for
from pytest_esp.rack.spec import BoardSpec, FaultSpec
from pytest_esp.wire.endpoints import Endpoint
from pytest_esp.wire.reset import SLOW_HOST_RISE_TIME

_BASE_PORT = "QEMU_BASE_PORT"
_MAX_INSTANCES = "QEMU_MAX_INSTANCES"
_ARGUMENTS = {"psram"}
"""Allowed ``extra_args``: features of the module. QEMU's own options would let a caller run any program."""


@dataclass(frozen=True)
class InstanceList:
    """The running virtual boards of one kind."""

    instances: list[Instance]
    count: int


@dataclass(frozen=True)
class InstanceStatus:
    """One virtual board: whether it runs, and how many clients are connected to its endpoints."""

    instance: Instance
    running: bool
    clients: int


@dataclass(frozen=True)
class Stopped:
    """The virtual boards that were stopped."""

    stopped: list[str]


@dataclass(frozen=True)
class Flashed:
    """What was written to a virtual board's flash."""

    instance_id: str
    bytes_written: int
    bytes_skipped: int


@dataclass(frozen=True)
class FaultReport:
    """The faults of a virtual board; *faults* has all that are switched on."""

    instance_id: str
    direction: str
    lose: float
    corrupt: float
    double: float
    silent_after: int | None
    faults: dict[str, Any]


@dataclass
class _Running:
    """A virtual board and its endpoints."""

    board: Board
    kind: str
    folder: Path
    flash: Path
    boot_mode: str
    raw: Endpoint
    rfc2217: Endpoint
    faults: BoardFaults | None = None

    def describe(self) -> Instance:
        port = int(self.raw.url.rpartition(":")[2])
        return Instance(
            instance_id=self.board.name,
            chip_type=self.board.chip,
            tcp_port=port,
            socket_uri=self.raw.url,
            rfc2217_uri=self.rfc2217.url,
            flash_image=str(self.flash),
            boot_mode=self.boot_mode,
            pid=self.board.pid if isinstance(self.board, QemuBoard) else os.getpid(),
            hint=f'use port="{self.board.name}" here, or esptool --port {self.rfc2217.url}',
        )


class QemuManager(Component):
    """Tools for this server's virtual boards."""

    NAME: ClassVar[str] = "qemu_manager"
    SUMMARY: ClassVar[str] = "start, list, flash and stop QEMU machines and simulated chips, and inject faults"

    def __init__(self, bridge: Shared) -> None:
        super().__init__(bridge)
        self._running: dict[str, _Running] = {}

    # -- QEMU

    @tool(timeout=60.0, read_only=False)
    def esp_qemu_start(
        self,
        chip_type: Annotated[Literal["esp32", "esp32s3", "esp32c3"], ChipSpelling()] = "esp32",
        flash_image: str | None = None,
        flash_size_mb: Literal[2, 4, 8, 16] = 4,
        tcp_port: int | None = None,
        boot_mode: Literal["flash", "download"] = "flash",
        extra_args: list[str] | None = None,
    ) -> Instance:
        """Start a QEMU machine that runs real firmware, until esp_qemu_stop or the end of this server.

        Without flash_image its flash is blank (0xFF).

        Args:
            chip_type: the chip, as esptool names it, e.g. esp32c3.
            flash_image: file with the initial contents of the flash; it is copied, not changed.
            flash_size_mb: size of the flash in MB.
            tcp_port: TCP port; by default a free one.
            boot_mode: start the app, or wait in the ROM's loader for esptool.
            extra_args: features of the module; "psram" is the only one.
        """
        unknown = set(extra_args or ()) - _ARGUMENTS
        if unknown:
            raise OperationError(
                f"extra_args: {', '.join(sorted(unknown))} not allowed",
                hint=f"use only {', '.join(sorted(_ARGUMENTS))}",
            )
        machine_for(chip_type)
        return self._start("qemu", chip_type, flash_image, flash_size_mb, tcp_port, boot_mode, extra_args or [])

    @tool(idempotent=True, read_only=False, uses="instance_id")
    def esp_qemu_stop(self, instance_id: str | None = None) -> Stopped:
        """Stop a QEMU machine, or all of them.

        Args:
            instance_id: the id that esp_qemu_start returned; by default all machines are stopped.
        """
        return self._stop("qemu", instance_id)

    @tool()
    def esp_qemu_list(self) -> InstanceList:
        """List the QEMU machines that this server runs."""
        return self._list("qemu")

    @tool()
    def esp_qemu_status(self, instance_id: str) -> InstanceStatus:
        """Return whether a QEMU machine runs, and its endpoints.

        Args:
            instance_id: the id that esp_qemu_start returned.
        """
        return self._status("qemu", instance_id)

    @tool(timeout=120.0, read_only=False, uses="instance_id")
    def esp_qemu_flash(self, instance_id: str, firmware_path: str, address: int | str | None = None) -> Flashed:
        """Write firmware to a QEMU machine's flash and start it.

        Args:
            instance_id: the id that esp_qemu_start returned.
            firmware_path: an image, or an ESP-IDF build folder.
            address: the address of an image; not needed for files that contain it.
        """
        path = resolve(firmware_path)
        self._find("qemu", instance_id)
        with self.bridge.boards.use(instance_id) as esp:
            result = esp.flash.write(path, address, progress=progress)
            esp.link.reset(bootloader=False)
        states = [(region.size, region.state) for region in result.regions]
        return Flashed(
            instance_id,
            sum(size for size, state in states if state == "written"),
            sum(size for size, state in states if state == "unchanged"),
        )

    # -- simulated chips

    @tool(read_only=False)
    def esp_sim_start(
        self,
        chip_type: ChipName = "esp32",
        flash_image: str | None = None,
        flash_size_mb: Literal[1, 2, 4, 8, 16, 32] = 4,
        tcp_port: int | None = None,
        boot_mode: Literal["flash", "download"] = "flash",
        secure_download: bool = False,
    ) -> Instance:
        """Start a simulated chip, until esp_sim_stop or the end of this server.

        It has loader, flash, eFuses and boot log, but runs no machine code. All operations are allowed. Without
        flash_image its flash is blank (0xFF).

        Args:
            chip_type: any chip that esptool supports, e.g. esp32c3.
            flash_image: file with the initial contents of the flash; it is copied, not changed.
            flash_size_mb: size of the flash in MB.
            tcp_port: TCP port; by default a free one.
            boot_mode: start the app, or wait in the ROM's loader for esptool.
            secure_download: start in secure download mode.
        """
        return self._start(
            "sim", chip_type, flash_image, flash_size_mb, tcp_port, boot_mode, [], secure_download=secure_download
        )

    @tool(idempotent=True, read_only=False, uses="instance_id")
    def esp_sim_stop(self, instance_id: str | None = None) -> Stopped:
        """Stop a simulated chip, or all of them.

        Args:
            instance_id: the id that esp_sim_start returned; by default all chips are stopped.
        """
        return self._stop("sim", instance_id)

    @tool()
    def esp_sim_list(self) -> InstanceList:
        """List the simulated chips that this server runs."""
        return self._list("sim")

    @tool()
    def esp_sim_status(self, instance_id: str) -> InstanceStatus:
        """Return whether a simulated chip runs, and its endpoints.

        Args:
            instance_id: the id that esp_sim_start returned.
        """
        return self._status("sim", instance_id)

    @tool(read_only=False, uses="instance_id")
    def esp_sim_fault(
        self,
        instance_id: str,
        direction: Literal["to_host", "to_device"] = "to_host",
        lose: float = 0.0,
        corrupt: float = 0.0,
        double: float = 0.0,
        silent_after: int | None = None,
        seed: int = 0,
        cut: float = 0.0,
        latency: float = 0.0,
        vanish_after: int | None = None,
        vanish_seconds: float | None = None,
        reset_after: int | None = None,
        reset_cause: Literal["reset", "brownout"] = "reset",
        boot_loop: float | None = None,
        secure_download: bool = False,
        stuck: dict[str, int] | None = None,
        wrong_chip: ChipName | None = None,
    ) -> FaultReport:
        """Inject faults into a simulated chip or QEMU machine. A call without faults ends all of them.

        Args:
            instance_id: the id that the start returned.
            direction: the direction to which lose, corrupt, double, cut, latency and silent_after apply.
            lose: probability that a byte is lost.
            corrupt: probability that a byte is changed.
            double: probability that a byte is sent twice.
            silent_after: number of bytes after which all others are lost.
            seed: seed of the random numbers.
            cut: probability that a write loses its end.
            latency: delay of all bytes in seconds.
            vanish_after: number of bytes from the host after which the port vanishes; 0 means at the next byte.
            vanish_seconds: seconds until the port returns; by default it does not return.
            reset_after: number of bytes from the host after which the chip resets; 0 means at the next byte.
            reset_cause: the reset reason in the boot log after that reset.
            boot_loop: period in seconds at which the app crashes and restarts.
            secure_download: simulated chips only: put the ROM in secure download mode.
            stuck: simulated chips only: flash bits that stay 0, as a mask for each address: {"0x10000": 255}.
            wrong_chip: simulated chips only: answer as this chip.
        """
        running = self._running.get(instance_id) or self._find("sim", instance_id)
        one_way = {"lose": lose, "corrupt": corrupt, "double": double, "cut": cut, "latency": latency, "seed": seed}
        wanted = {
            direction: {**one_way, "silent_after": silent_after},
            "vanish_after": vanish_after,
            "vanish_seconds": vanish_seconds,
            "reset_after": reset_after,
            "reset_cause": reset_cause if reset_after is not None else None,
            "boot_loop": boot_loop,
            "secure_download": secure_download or None,
            "stuck": stuck,
            "wrong_chip": wrong_chip,
        }
        try:
            spec = FaultSpec.model_validate(wanted)
        except ValidationError as error:
            first = error.errors()[0]
            raise OperationError(f"{first['loc'][-1]}: {first['msg']}") from error
        report = {key: value for key, value in spec.model_dump(exclude_defaults=True).items() if value != {}}
        with self.bridge.boards.use(instance_id) as esp:
            self._spoil(running, spec if report else None, direction)
            if not report or secure_download or wrong_chip:
                esp.link.session.drop()
        return FaultReport(instance_id, direction, lose, corrupt, double, silent_after, report)

    @staticmethod
    def _spoil(running: _Running, spec: FaultSpec | None, direction: str) -> None:
        """Add faults to those that are switched on; None ends all of them."""
        old = running.faults
        if spec is None:
            if old is not None:
                old.end()
            running.faults = None
            return
        if old is None:
            old = running.faults = BoardFaults(running.board)
        other = "to_device" if direction == "to_host" else "to_host"
        kept = getattr(old, other)
        old.switch_on(spec)
        setattr(old, other, kept)

    # -- inside

    def _start(
        self,
        kind: str,
        chip: str,
        image: str | None,
        megabytes: int,
        tcp_port: int | None,
        boot_mode: str,
        features: list[str],
        **settings: Any,
    ) -> Instance:
        most = int(os.environ.get(_MAX_INSTANCES, "8"))
        if len(self._running) >= most:
            raise OperationError(f"{most} instances are running", hint=f"stop one, or raise {_MAX_INSTANCES}")
        source = resolve(image) if image else None
        folder = Path(tempfile.mkdtemp(prefix="pytest-esp-instance-"))
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            flash = _private_flash(source, megabytes << 20, folder)
            name = self._free_name(kind, chip)
            entry = {"name": name, "backend": kind, "chip": chip, "flash_size": megabytes << 20, "flash_file": flash}
            spec = BoardSpec.model_validate({**entry, "features": features, **settings})
            board = QemuBoard(spec, self.bridge.rack) if kind == "qemu" else SimBoard(spec, self.bridge.rack)
            board.rise_time = SLOW_HOST_RISE_TIME
            if isinstance(board, QemuBoard):
                board.folder = folder
            self.bridge.boards.add(board, bootloader=boot_mode == "download")
            undo.callback(self.bridge.boards.remove, name)
            raw = board.serve(f"socket://127.0.0.1:{_port(tcp_port)}")
            undo.callback(raw.close)
            rfc2217 = board.serve("rfc2217://127.0.0.1:0")
            undo.pop_all()
        running = self._running[name] = _Running(board, kind, folder, flash, boot_mode, raw, rfc2217)
        return running.describe()

    def _free_name(self, kind: str, chip: str) -> str:
        number = 1
        while (name := f"{kind}-{chip}-{os.getpid()}-{number}") in self._running:
            number += 1
        return name

    def _find(self, kind: str, instance_id: str) -> _Running:
        running = self._running.get(instance_id)
        if running is None or running.kind != kind:
            known = ", ".join(name for name, other in self._running.items() if other.kind == kind) or "none"
            raise OperationError(f"unknown instance {instance_id!r}", hint=f"running: {known}")
        return running

    def _stop(self, kind: str, instance_id: str | None) -> Stopped:
        if instance_id is not None:
            self._find(kind, instance_id)
        chosen = [
            name for name, running in self._running.items() if running.kind == kind and instance_id in (None, name)
        ]
        for name in chosen:
            running = self._running.pop(name)
            running.raw.close()
            running.rfc2217.close()
            self.bridge.boards.remove(name)
            shutil.rmtree(running.folder, ignore_errors=True)
        return Stopped(chosen)

    def instances(self, kind: str | None = None) -> list[Instance]:
        """Return the running virtual boards, of one kind or of both."""
        return [running.describe() for running in self._running.values() if kind in (None, running.kind)]

    def _list(self, kind: str) -> InstanceList:
        found = self.instances(kind)
        return InstanceList(found, len(found))

    def _status(self, kind: str, instance_id: str) -> InstanceStatus:
        running = self._find(kind, instance_id)
        board = running.board
        alive = board.pid is not None if isinstance(board, QemuBoard) else True
        return InstanceStatus(running.describe(), alive, running.raw.client_count + running.rfc2217.client_count)

    def health_check(self) -> dict[str, Any]:
        """Look for QEMU. A missing QEMU is not an error, as simulated chips do not need it, but a wrong setting is."""
        builds = find_all()
        qemu = [str(found.path) for found in builds if found.qemu is not None]
        wrong = [
            f"{found.origin} is set to {found.path}, which {found.problem}"
            for found in builds
            if found.qemu is None and found.origin in VARIABLES.values()
        ]
        report = {"status": "degraded", "problem": "; ".join(wrong)} if wrong else {"status": "healthy"}
        return {**report, "qemu": qemu, "instances": len(self._running)}

    def close(self) -> None:
        """Stop all instances."""
        for kind in ("qemu", "sim"):
            with contextlib.suppress(EspError):
                self._stop(kind, None)


def _port(asked: int | None) -> int:
    if asked is not None and not 0 <= asked < 65536:
        raise OperationError(f"{asked} is not a TCP port", hint="leave it out to use a free one")
    return asked if asked is not None else int(os.environ.get(_BASE_PORT, "0"))


def _private_flash(source: Path | None, size: int, folder: Path) -> Path:
    """Return a new file of *size* bytes with the contents of *source*, padded with 0xFF."""
    try:
        contents = source.read_bytes() if source else b""
    except OSError as error:
        raise BackendError(f"cannot read {source}: {error.strerror}") from error
    if len(contents) > size:
        raise BackendError(
            f"{source} ({len(contents)} bytes) does not fit into the flash ({size} bytes)", hint="use a larger flash"
        )
    flash = folder / "flash.bin"
    flash.write_bytes(contents.ljust(size, b"\xff"))
    return flash
