"""Production: boards programmed, one or many at once, tested, given their data, and reset."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from mcp_bridge.components.base import Component
from mcp_bridge.tool import progress, tool
from pytest_esp.errors import LeaseError, OperationError
from pytest_esp.formats.files import resolve
from pytest_esp.formats.images import App
from pytest_esp.formats.nvs_pages import NvsData
from pytest_esp.link.link import Link
from pytest_esp.operations.production import provisioning
from pytest_esp.operations.production.batch import DEFAULT_FOLDER, BatchResult, checked, run_batch
from pytest_esp.operations.production.config import CALIBRATION, MANUFACTURING, FactoryConfig, ProvisionConfig, opened
from pytest_esp.operations.production.config import with_files as files_in
from pytest_esp.operations.production.factory import FactoryProgram, FactoryReset
from pytest_esp.operations.production.plan import Plan, make_plan
from pytest_esp.operations.production.provisioning import DataWritten, Provisioning
from pytest_esp.operations.production.quality import Inspection, QualityCheck
from pytest_esp.operations.production.secrets import MASK
from pytest_esp.operations.production.testing import TestRun, run_suite, suites
from pytest_esp.operations.production.work import Device
from pytest_esp.operations.registry import Effect
from pytest_esp.rack.lease import holder_of
from pytest_esp.rack.rack import Rack

Config = dict[str, Any] | str
_HOUR = 3600.0
# Arguments whose values nobody is to read; their keys are shown.
_SECRET = ("config", "cal_data", "mfg_data", "devices")


@dataclass(frozen=True)
class QualityReport:
    """What a quality control found: *checks* of the board, and *tests* of the suites that change nothing."""

    passed: bool
    checks: list[QualityCheck]
    mac: str | None
    serial_number: str | None
    app: App | None
    tests: TestRun | None


class ProductionTools(Component):
    """Tools for a production line."""

    NAME: ClassVar[str] = "production_tools"
    SUMMARY: ClassVar[str] = "factory and batch programming, production tests, provisioning, factory reset"

    @tool(Effect.ERASE, timeout=_HOUR, idempotent=True)
    def esp_factory_program(self, config: Config, port: str | None = None) -> FactoryProgram:
        """Program a board as it leaves the factory: check everything, erase all, flash, write NVS, verify, see it boot.

        config: {"firmware": build folder or merged image, "serial_number": "SN1", "nvs": {namespace: {key: value}},
        "partition_table": CSV, "chip", "mac", "nvs_partition", "nvs_key_file", "boot": {"wait": 3, "expect": text} or
        false}, or a JSON or TOML file with that. An error says at which stage it failed and what state the board is in.
        """
        given = FactoryConfig.table(config)
        with self.bridge.boards.use(port) as esp:
            return esp.production.factory_program(given, progress=progress)

    @tool(Effect.ERASE, timeout=_HOUR, idempotent=True)
    def esp_batch_program(
        self,
        ports: list[str],
        firmware: str | None = None,
        config: Config | None = None,
        devices: list[dict[str, Any]] | None = None,
        serial_number: str | None = None,
        first_index: int = 1,
        output_dir: str = DEFAULT_FOLDER,
        look: bool = True,
        wait_s: float = 0.0,
    ) -> BatchResult:
        """Program many boards at once, each as esp_factory_program does; a board that fails stops no other.

        ports: names of the rack, or ports. firmware, or config as in esp_factory_program. serial_number is a template:
        "SN{index:05d}", also {mac} and {board}. devices has what is each board's own, in the order of ports or by
        "board": {"board", "serial_number", "nvs"}. output_dir gets boards.jsonl and boards.csv: a line for each MAC
        address when it is begun and when it has passed or failed; they are only ever added to. Boards that fail are in
        the answer with stage, error and the state that they are in; success says that the batch was worked on.
        """
        names = self._boards_of(ports)
        plan, own = self._batch(names, firmware, config, devices, serial_number, first_index)
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

    @tool(Effect.WRITE, timeout=_HOUR, idempotent=True)
    def esp_production_test(
        self, test_suite: str, port: str | None = None, keyword: str | None = None, timeout_s: float = 600.0
    ) -> TestRun:
        """Run a pytest suite on a board and return the result of each test.

        test_suite: "all", names of the built-in suites (baud, efuse, flash_roundtrip, identity, partitions, reset,
        security, verify; several with commas), or a file or folder with pytest tests of your own. keyword is pytest's
        -k. The tests run in a process of their own, which takes the board's lease and never outlives this call.
        """
        words = [name.strip() for name in test_suite.split(",")]
        ours = all(name in (*suites(), "all") for name in words)
        suite = test_suite if ours else self._tests(test_suite)
        return self._run(suite, port, keyword, timeout_s, self.bridge.settings.allow)

    @tool(Effect.WRITE, timeout=_HOUR, idempotent=True)
    def esp_quality_control(
        self,
        port: str | None = None,
        serial_number: str | None = None,
        expect: str | None = None,
        boot_wait_s: float = 3.0,
        tests: bool = True,
        timeout_s: float = 600.0,
    ) -> QualityReport:
        """Look at a finished board: chip, flash, partition table, app, NVS, serial number, boot; then run the tests.

        serial_number: that it must have in NVS. expect: text that it must say when it starts, within boot_wait_s. The
        tests are those of the built-in suites that neither erase nor burn; tests=false leaves them out. passed is
        whether all of it is well.
        """
        with self.bridge.boards.use(port) as esp:
            seen: Inspection = esp.production.inspect(serial_number, wait=boot_wait_s, expect=expect)
        run = self._run("all", port, None, timeout_s, frozenset({Effect.READ})) if tests else None
        passed = seen.passed and (run is None or run.passed)
        return QualityReport(passed, list(seen.checks), seen.mac, seen.serial_number, seen.app, run)

    @tool(Effect.BURN, timeout=120.0, idempotent=True, without={"efuse": Effect.WRITE})
    def esp_calibration_data_write(
        self,
        cal_data: Config,
        port: str | None = None,
        namespace: str = CALIBRATION,
        nvs_partition: str = "nvs",
        nvs_key_file: str | None = None,
        efuse: bool = False,
    ) -> DataWritten:
        """Write calibration data into NVS and read it back; other values there stay as they are.

        cal_data: values by key: text, numbers, {"type": "u16", "value": 1100}, {"type": "blob", "value": hex} or
        {"file": NAME}; or a JSON file with them. efuse=true burns one value into the user eFuse block instead, which is
        irreversible on real boards: they must allow it by name, and it asks first.
        """
        values, key = self._data(cal_data), self._key(nvs_key_file)
        with self.bridge.boards.use(port) as esp:
            return esp.production.write_calibration_data(
                values, namespace=namespace, partition=nvs_partition, key_file=key, to_efuse=efuse
            )

    @tool(Effect.BURN, timeout=120.0, idempotent=True, without={"efuse": Effect.WRITE})
    def esp_manufacturing_data_write(
        self,
        mfg_data: Config,
        port: str | None = None,
        namespace: str = MANUFACTURING,
        nvs_partition: str = "nvs",
        nvs_key_file: str | None = None,
        efuse: bool = False,
    ) -> DataWritten:
        """Write manufacturing data (serial_number, batch, ...) into NVS and read it back; other values there stay.

        mfg_data: as cal_data of esp_calibration_data_write; efuse=true burns one value, as there.
        """
        values, key = self._data(mfg_data), self._key(nvs_key_file)
        with self.bridge.boards.use(port) as esp:
            return esp.production.write_manufacturing_data(
                values, namespace=namespace, partition=nvs_partition, key_file=key, to_efuse=efuse
            )

    @tool(Effect.WRITE, timeout=120.0, idempotent=True)
    def esp_provision_device(self, config: Config, port: str | None = None) -> Provisioning:
        """Give a board its Wi-Fi network and credentials: into NVS, read back; other values there stay as they are.

        config: {"wifi": {"ssid", "password", "store": "esp-idf" (where its Wi-Fi library looks), "namespace" (NVS
        "wifi") or "both"}, "credentials": {key: value or {"file": NAME}}, "namespace": of the credentials,
        "nvs_partition", "nvs_key_file"}, or a JSON or TOML file with that, which keeps secrets out of the
        conversation. No value is in the answer, in a log or in an error.
        """
        given = ProvisionConfig.table(config)
        with self.bridge.boards.use(port) as esp:
            return esp.production.provision(given)

    @tool(Effect.ERASE, timeout=600.0, idempotent=True)
    def esp_factory_reset(
        self, port: str | None = None, keep: list[str] | None = None, keep_namespaces: list[str] | None = None
    ) -> FactoryReset:
        """Erase what a user has left on a board: NVS, otadata, file systems. Apps, keys and radio calibration stay.

        keep: partitions that stay, too. keep_namespaces: of NVS, e.g. ["manufacturing"].
        """
        with self.bridge.boards.use(port) as esp:
            return esp.production.factory_reset(keep or (), keep_namespaces or ())

    # -- consent

    def plan(self, tool: str, arguments: Mapping[str, Any]) -> str:
        """Return what a call would do, with the keys of what it writes, and none of its values."""
        if tool == "esp_batch_program":
            return self._plan_of_batch(arguments)
        shown = {key: _keys(value) if key in _SECRET and value else value for key, value in arguments.items()}
        words = super().plan(tool, shown)
        if tool == "esp_factory_program":
            config = FactoryConfig.load(arguments["config"])
            return f"{words}; all of the flash is erased, then {make_plan(config).firmware.name} is written"
        if tool in ("esp_calibration_data_write", "esp_manufacturing_data_write"):
            data = self._data(arguments["cal_data" if "cal_data" in arguments else "mfg_data"])
            with self.bridge.boards.use(arguments.get("port")) as esp:
                burn = provisioning.plan_user_block(esp.link, data)
            return f"{words}; {burn.new_bits} bit(s) of {burn.name} would be burnt for ever"
        return words

    def _plan_of_batch(self, arguments: Mapping[str, Any]) -> str:
        names = self._boards_of(arguments["ports"])
        given = (arguments.get(key) for key in ("firmware", "config", "devices", "serial_number"))
        plan, devices = self._batch(names, *given, first_index=arguments.get("first_index") or 1)
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

    def _batch(
        self,
        names: list[str],
        firmware: str | None,
        config: Config | None,
        devices: list[dict[str, Any]] | None,
        serial_number: str | None,
        first_index: int,
    ) -> tuple[Plan, list[Device]]:
        table = FactoryConfig.table(config or {})
        if firmware is not None:
            table["firmware"] = resolve(firmware)
        if serial_number is not None:
            table["serial_number"] = serial_number
        return checked(names, table, devices, first_index)

    def _rack(self, names: list[str]) -> Rack:
        """Return the rack with the boards that are named by their ports, too."""
        rack = self.bridge.rack
        boards = {**rack.boards, **{name: self.bridge.boards.resolve(name) for name in names}}
        return Rack(rack.name, rack.path, boards, rack.lock_dir)

    def _tests(self, name: str) -> Path:
        path = resolve(name)
        if not path.exists():
            raise OperationError(
                f"there is no suite {name!r}, and no such file", hint=f"suites: {', '.join(suites())}, all"
            )
        return path

    def _run(
        self, suite: str | Path, port: str | None, keyword: str | None, timeout: float, effects: frozenset[Effect]
    ) -> TestRun:
        """Give the board back, and let the tests take it."""
        settings, rack = self.bridge.settings, self.bridge.rack
        with self.bridge.boards.lend([port]) as (spec,):
            holder = holder_of(spec, rack)
            if holder is not None:
                raise LeaseError(holder.describe(), board=spec.name, hint="wait for it, or take another board")
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

    def _data(self, given: Config) -> dict[str, Any]:
        table, file = opened(given)
        return files_in(cast("NvsData", {"": table}), file)[""]

    def _key(self, name: str | None) -> Path | None:
        return resolve(name) if name is not None else None


def _keys(value: Any) -> Any:
    """Return a table with its keys, and a mask in the place of every value but the firmware's name."""
    if isinstance(value, Mapping):
        table = cast("Mapping[str, Any]", value)
        return {key: item if key == "firmware" else _keys(item) for key, item in table.items()}
    if isinstance(value, list):
        return [_keys(item) for item in cast("list[Any]", value)]
    return MASK
