"""Tools for production: program one or many boards, test them, write their data, reset them."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

from mcp_bridge.components.base import Component
from mcp_bridge.tool import offer, progress, tool
from pytest_esp.errors import EspError, LeaseError, OperationError, RefusedError
from pytest_esp.formats.files import ReadPath, WritePath, resolve
from pytest_esp.link.link import Link
from pytest_esp.operations.production import factory, provisioning
from pytest_esp.operations.production.batch import DEFAULT_FOLDER, BatchResult, checked, run_batch
from pytest_esp.operations.production.config import FactoryConfig, Given
from pytest_esp.operations.production.plan import make_plan
from pytest_esp.operations.production.testing import EVERYTHING, QualityReport, TestRun, run_suite, suites
from pytest_esp.operations.registry import Effect
from pytest_esp.rack.lease import holder_of
from pytest_esp.rack.rack import Rack
from pytest_esp.secrets import MASK

_HOUR = 3600.0
# Arguments whose values are not shown to the user, only their keys.
_SECRET = ("config", "data", "devices")


class ProductionTools(Component):
    """Tools for a production line."""

    NAME: ClassVar[str] = "production_tools"
    SUMMARY: ClassVar[str] = "factory and batch programming, production tests, provisioning, factory reset"

    esp_factory_program = offer(factory.factory_program, timeout=_HOUR, idempotent=True)
    esp_factory_reset = offer(factory.factory_reset, timeout=600.0, idempotent=True)
    esp_calibration_data_write = offer(provisioning.write_calibration_data, timeout=120.0, idempotent=True)
    esp_manufacturing_data_write = offer(provisioning.write_manufacturing_data, timeout=120.0, idempotent=True)
    esp_provision_device = offer(provisioning.provision, timeout=120.0, idempotent=True)

    @tool(Effect.ERASE, timeout=_HOUR, idempotent=True, uses="ports")
    def esp_batch_program(
        self,
        ports: list[str],
        firmware: ReadPath | None = None,
        config: Given | None = None,
        devices: list[dict[str, Any]] | None = None,
        serial_number: str | None = None,
        first_index: int = 1,
        output_dir: WritePath = DEFAULT_FOLDER,
        look: bool = True,
        wait_s: float = 0.0,
    ) -> BatchResult:
        """Program many boards at the same time, each like esp_factory_program; if one fails, the others continue.

        The answer lists the failed boards with stage, error and state. "success" only means that the batch ran.

        Args:
            ports: names of boards of the rack, or ports.
            firmware: a build folder or a merged image, instead of the one in config.
            config: as for esp_factory_program.
            devices: data of each board: {"board", "serial_number", "nvs"}; entries without board are used in order.
            serial_number: a template, e.g. "SN{index:05d}"; {mac} and {board} are also replaced.
            first_index: index of the first board.
            output_dir: folder of the record (boards.jsonl, boards.csv); new boards are appended to it.
            look: whether to inspect finished boards.
            wait_s: seconds to wait for boards that are held.
        """
        names = self._boards_of(ports)
        plan, own = checked(names, firmware, config, devices, serial_number, first_index)
        folder = resolve(output_dir, "write")
        pool = self.bridge.boards
        if any(pool.is_own(name) for name in names):

            @contextlib.contextmanager
            def use(name: str) -> Generator[Link]:
                with pool.use(name, wait=wait_s) as esp:
                    yield esp.link

            return run_batch(self._rack(names), plan, own, folder, look=look, open_board=use, progress=progress)
        with pool.lend(names):
            return run_batch(self._rack(names), plan, own, folder, look=look, wait=wait_s, progress=progress)

    @tool(Effect.BURN, timeout=_HOUR, idempotent=True, without={"allow_burn": Effect.WRITE})
    def esp_production_test(
        self,
        test_suite: str,
        port: str | None = None,
        keyword: str | None = None,
        allow_burn: bool = False,
        timeout_seconds: float = 600.0,
    ) -> TestRun:
        """Run a pytest suite on a board and return the result of each test.

        The tests run in a separate process, which leases the board and ends with this call.

        Args:
            test_suite: "all", names of built-in suites separated by commas (baud, efuse, flash_roundtrip, identity,
                partitions, reset, security, verify), or a suite that --suites of the server names (see esp://config).
            keyword: select tests, like pytest's -k.
            allow_burn: also run tests that burn eFuses; this has to be confirmed.
            timeout_seconds: seconds after which the tests are stopped.
        """
        effects = self.bridge.settings.allow - (frozenset() if allow_burn else {Effect.BURN})
        return self._run(self._suite(test_suite), port, keyword, timeout_seconds, effects)

    @tool(Effect.WRITE, timeout=_HOUR, idempotent=True)
    def esp_quality_control(
        self,
        port: str | None = None,
        serial_number: str | None = None,
        expect: str | None = None,
        boot_wait_seconds: float = 3.0,
        tests: bool = True,
        timeout_seconds: float = 600.0,
    ) -> QualityReport:
        """Inspect a finished board (chip, flash, partition table, app, NVS, serial number, boot), then run tests.

        The tests are those of the built-in suites that neither erase nor burn.

        Args:
            serial_number: the serial number that NVS must contain; not checked by default.
            expect: text that the app must print when it starts.
            boot_wait_seconds: seconds to wait for the boot output.
            tests: whether to run the tests.
            timeout_seconds: seconds after which the tests are stopped.
        """
        with self.bridge.boards.use(port) as esp:
            seen = esp.production.inspect(serial_number, expect=expect, boot_wait_seconds=boot_wait_seconds)
        run = self._run("all", port, None, timeout_seconds, frozenset({Effect.READ})) if tests else None
        return QualityReport.of(seen, run)

    # -- consent

    def plan(self, tool: str, arguments: Mapping[str, Any]) -> str:
        """Return what a call would do, with the keys of the data that it writes, but not the values."""
        if tool == "esp_batch_program":
            return self._plan_of_batch(arguments)
        shown = {key: _keys(value) if key in _SECRET and value else value for key, value in arguments.items()}
        words = super().plan(tool, shown)
        if tool == "esp_production_test":
            spec = self.bridge.boards.resolve(arguments.get("port"))
            allowed = "any" if spec.virtual else ", ".join(spec.allow_burn) or "none"
            return f"{words}; its tests may burn eFuses permanently: {allowed}"
        if tool == "esp_factory_program":
            config = FactoryConfig.load(arguments["config"])
            return f"{words}; all of the flash is erased, then {make_plan(config).firmware.name} is written"
        if tool in ("esp_calibration_data_write", "esp_manufacturing_data_write"):
            with self.bridge.boards.use(arguments.get("port")) as esp:
                burn = provisioning.plan_user_block(esp.link, arguments["data"])
            return f"{words}; {burn.new_bits} bit(s) of {burn.efuse_name} would be burnt permanently"
        return words

    def mac_of(self, tool: str, board: str) -> str:
        """Return the MAC address of a board; of a batch also without one, as the others continue if one fails."""
        try:
            return super().mac_of(tool, board)
        except EspError:
            if tool != "esp_batch_program":
                raise
            return ""

    def _plan_of_batch(self, arguments: Mapping[str, Any]) -> str:
        names = self._boards_of(arguments["ports"])
        given = (arguments.get(key) for key in ("firmware", "config", "devices", "serial_number"))
        plan, devices = checked(names, *given, first_index=arguments.get("first_index") or 1)
        real = sum(not self.bridge.boards.resolve(name).virtual for name in names)
        return (
            f"esp_batch_program on {len(names)} boards ({real} real): {', '.join(names)}; all of their flash is "
            f"erased, then {plan.firmware.name} is written; serial numbers: {devices[0].serial_number or 'none'}"
        )

    # -- arguments

    def _boards_of(self, ports: list[str]) -> list[str]:
        specs = {spec.name: spec for spec in map(self.bridge.boards.resolve, ports)}
        if not specs:
            raise OperationError("no boards were named", hint="esp_rack_status lists them")
        for spec in specs.values():
            self.bridge.policy.check(Effect.ERASE, spec, "esp_batch_program")
        return list(specs)

    def _rack(self, names: list[str]) -> Rack:
        """Return the rack extended by boards that were named by their ports."""
        rack = self.bridge.rack
        boards = {**rack.boards, **{name: self.bridge.boards.resolve(name) for name in names}}
        return Rack(rack.name, rack.path, boards, rack.lock_dir)

    def _suite(self, name: str) -> str | Path:
        """Return a suite that this server offers: clients must not choose the code that runs."""
        own = self.bridge.suites
        built_in = [EVERYTHING, *suites()]
        if name in own:
            return own[name]
        wrong = next((part for part in map(str.strip, name.split(",")) if part not in built_in), None)
        if wrong is not None:
            raise RefusedError(
                f"this server does not offer the suite {wrong!r}",
                attempted="esp_production_test",
                hint=f"suites: {', '.join((*built_in, *own))}; the server's option --suites adds others",
            )
        return name

    def _run(
        self, suite: str | Path, port: str | None, keyword: str | None, timeout: float, effects: frozenset[Effect]
    ) -> TestRun:
        """Release the board, and run the tests in a process that leases it."""
        settings, rack = self.bridge.settings, self.bridge.rack
        with self.bridge.boards.use(port):
            pass  # waits until no other process holds it
        with self.bridge.boards.lend([port]) as (spec,):
            holder = holder_of(spec, rack)
            if holder is not None:
                raise LeaseError(holder.describe(), board=spec.name, hint="wait for it, or use another board")
            return run_suite(
                spec,
                rack,
                suite,
                keyword=keyword,
                effects=effects,
                allow_burn=settings.burns_enabled and Effect.BURN in effects,
                timeout=timeout,
                progress=progress,
            )


def _keys(value: Any) -> Any:
    """Return a table with every value masked except the firmware's name."""
    if isinstance(value, Mapping):
        table = cast("Mapping[str, Any]", value)
        return {key: item if key == "firmware" else _keys(item) for key, item in table.items()}
    if isinstance(value, list):
        return [_keys(item) for item in cast("list[Any]", value)]
    return MASK
