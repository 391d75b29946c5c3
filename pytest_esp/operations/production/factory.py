"""Programs and verifies a board for shipping, and resets it to that state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Literal

from pytest_esp.errors import EspError, OperationError
from pytest_esp.formats.images import APP_HEAD_SIZE, App, app_of
from pytest_esp.formats.partition_table import Partition, default_app, otadata_of
from pytest_esp.formats.regions import Region, md5_of
from pytest_esp.link.link import Link
from pytest_esp.link.logs import Progress
from pytest_esp.operations.chip.identity import ChipIdentity, identify
from pytest_esp.operations.chip.running import run_firmware
from pytest_esp.operations.flash import reading, tables, writing
from pytest_esp.operations.flash.access import ADDRESS_SPACE, reach
from pytest_esp.operations.partitions import nvs
from pytest_esp.operations.production import nvs_update
from pytest_esp.operations.production.config import Boot, FactoryConfig, Given
from pytest_esp.operations.production.plan import Plan, make_plan
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.secrets import hide

Stage = Literal["check", "erase", "flash", "nvs", "verify", "boot", "done"]
OnStage = Callable[[Stage], None]

# The state of the flash if a stage fails, whatever the error.
_STATES: dict[Stage, str] = {
    "check": "nothing was touched",
    "erase": "the flash is partly or completely erased: nothing starts",
    "flash": "the flash was erased and is partly written: it may not start",
    "nvs": "firmware is written; NVS is blank or partly written",
    "verify": "everything is written, but verification failed",
    "boot": "everything is written and verified, but the app was not seen to start",
}


@dataclass(frozen=True)
class FactoryProgram:
    """A board that was programmed. Sizes are in bytes; it contains no NVS values except the serial number.

    Attributes:
        firmware: project and version, or the path.
        app: descriptor of the app.
        nvs_written: ``"namespace.key"`` of all NVS values.
        bytes_written: firmware, partition table and NVS.
        verified: by the chip's MD5 of every region, and by reading back the NVS values.
        booted: whether the app was seen to start; None if this was not checked.
        seconds_by_stage: duration of each stage.
    """

    chip_type: str
    mac_address: str | None
    serial_number: str | None
    firmware: str
    app: App | None
    nvs_partition: str | None
    nvs_written: tuple[str, ...]
    bytes_written: int
    verified: bool
    booted: bool | None
    seconds_by_stage: dict[str, float]


@operation(Effect.ERASE, group="production")
def factory_program(link: Link, config: Given, *, progress: Progress | None = None) -> FactoryProgram:
    """Program a board for shipping: check everything, erase all, flash, write NVS, verify, and check that it boots.

    Checked before the erase: files, partition table, NVS values, chip, MAC, sizes, and the chip's locks. An error gives
    the stage in which it occurred, and the state of the board.

    Args:
        config: {"firmware": build folder or merged image, "serial_number": "SN1", "nvs": {namespace: {key: value}},
            "partition_table": CSV, "chip", "mac", "nvs_partition", "nvs_key_file", "boot": {"wait": 3, "expect": text}
            or false}, or a JSON or TOML file with these keys.
        progress: called with bytes done and total.

    Raises:
        FirmwareError, OperationError: if something is wrong or missing, or verification fails.
        LinkError, PortError: if the connection to the board is lost.
    """
    __tracebackhide__ = True
    plan = make_plan(FactoryConfig.load(config))
    return program(link, plan, progress=progress)


def program(
    link: Link, plan: Plan, *, progress: Progress | None = None, on_stage: OnStage | None = None
) -> FactoryProgram:
    """Program a board like `factory_program`, by a plan that several boards may share.

    Args:
        link: the board's link.
        plan: what to write.
        progress: called with bytes done and total.
        on_stage: called when a stage begins; an exception from it ends the work.

    Raises:
        EspError: see `factory_program`.
    """
    job = _Programming(link, plan, progress, on_stage)
    with plan.secrets.guard():
        return job.run()


class _Programming:
    """Programming of one board, in progress."""

    def __init__(self, link: Link, plan: Plan, progress: Progress | None, on_stage: OnStage | None) -> None:
        self._link = link
        self._plan = plan
        self._progress = progress
        self._on_stage = on_stage
        self._stage: Stage = "check"
        self._begun = monotonic()
        self._seconds: dict[str, float] = {}
        self._total = sum(region.size for region in plan.all_regions)

    def run(self) -> FactoryProgram:
        """Run the stages; an error gives the state of the board."""
        try:
            return self._run()
        except EspError as error:
            error.details.update(stage=self._stage, state=_STATES[self._stage])
            error.hint = "; ".join(filter(None, (f"state of the board: {_STATES[self._stage]}", error.hint)))
            raise
        except BaseException as error:
            error.add_note(f"state of the board: {_STATES[self._stage]}")
            raise

    def _run(self) -> FactoryProgram:
        link, plan = self._link, self._plan
        self._enter("check")
        who = check_board(link, plan)
        self._enter("erase")
        writing.erase(link, "all")
        self._enter("flash")
        self._write(plan.regions, 0)
        own = [region for region in plan.all_regions if region not in plan.regions]
        if own:
            self._enter("nvs")
            self._write(own, self._total - sum(region.size for region in own))
        self._enter("verify")
        check_contents(link, plan)
        booted = self._boot()
        self._enter("done")
        return FactoryProgram(
            chip_type=who.chip_type,
            mac_address=who.mac_address,
            serial_number=plan.config.serial_number,
            firmware=plan.firmware.name,
            app=plan.firmware.app,
            nvs_partition=plan.place.name if plan.place else None,
            nvs_written=tuple(sorted(f"{namespace}.{key}" for namespace, key in plan.entries)),
            bytes_written=self._total,
            verified=True,
            booted=booted,
            seconds_by_stage=self._seconds,
        )

    def _enter(self, stage: Stage) -> None:
        now = monotonic()
        if stage != self._stage:
            self._seconds[self._stage] = round(now - self._begun, 3)
        self._begun = now
        self._stage = stage
        if self._on_stage is not None:
            self._on_stage(stage)

    def _write(self, regions: Sequence[Region], before: int) -> None:
        progress = self._progress

        def tick(done: int, _total: int) -> None:
            if progress is not None:
                progress(before + done, self._total)

        writing.write_regions(self._link, regions, False, False, "auto", tick)

    def _boot(self) -> bool | None:
        how = self._plan.config.boot
        if how is False:
            return None
        self._enter("boot")
        check_boot(self._link, how, self._plan.firmware.app)
        return True


def check_board(link: Link, plan: Plan) -> ChipIdentity:
    """Check that a board is suitable for the plan, and return its identity.

    Raises:
        FirmwareError, OperationError: if not. LinkError: if it does not answer.
    """
    who = identify(link)
    if who.secure_download_mode:
        raise OperationError(
            "the chip is in secure download mode: it cannot be programmed",
            hint="use another board",
        )
    with link.session.use("checking flash encryption and secure boot", stub=False) as esp:
        locks = {
            "flash encryption": who.chip_type != "esp8266" and bool(esp.get_flash_encryption_enabled()),
            "secure boot": who.chip_type != "esp8266" and bool(esp.get_secure_boot_enabled()),
        }
    for name, locked in locks.items():
        if locked:
            raise OperationError(
                f"{name} is enabled: plain firmware would not start",
                hint="write signed or encrypted images with flash-write",
            )
    with reach(link, "auto", "looking at the flash") as access:
        size = access.size
    if size >= ADDRESS_SPACE:
        raise OperationError("the size of the flash is unknown", hint="set flash_size in boards.toml")
    plan.check_board(who, size)
    return who


def check_contents(link: Link, plan: Plan) -> None:
    """Verify the flash: every region by the chip's MD5, NVS by its values.

    Raises:
        OperationError: if it does not match; names the first region, and the keys.
    """
    for region in plan.regions:
        if reading.md5(link, region.address, region.size).md5 != md5_of(region.data):
            raise OperationError(f"verification failed: {region.source} at {region.address:#x} differs in flash")
    if plan.place is not None:
        nvs_update.check(link, dict(plan.entries), plan.place.name, plan.config.nvs_key_file)


def check_boot(link: Link, how: Boot, app: App | None) -> None:
    """Check that the app starts and, as far as the boot log shows, that it is *app*.

    Raises:
        OperationError: if it does not start, or another app does; ``details["output"]`` is the console output.
    """
    seen = run_firmware(link, how.wait, how.expect)
    problem = None
    if seen.state != "running":
        problem = f"the app is not running: {seen.state}" + (f" ({seen.crash.splitlines()[0]})" if seen.crash else "")
    elif seen.matched is False:
        problem = f"timed out after {how.wait:g} s waiting for {how.expect!r}"
    elif app is not None and seen.project is not None and (seen.project, seen.version) != (app.project, app.version):
        problem = f"{seen.project} {seen.version} started instead of {app.project} {app.version}"
    if problem is not None:
        raise OperationError(
            problem,
            hint="if the chip's console is not on this port, nothing is printed here: set boot to false"
            if seen.state == "silent"
            else "see the output",
            details={"output": hide(seen.output)[-2000:]},
        )


# -- factory reset

# Data partitions of the board, not of its user: the radio's calibration, keys, and emulated eFuses.
_NOT_THE_USERS = ("phy", "nvs_keys", "efuse")
# ESP RainMaker and others keep factory data here, which a reset must not erase.
_OF_THE_FACTORY = ("fctry", "factory_nvs")


@dataclass(frozen=True)
class FactoryReset:
    """The result of a factory reset.

    Attributes:
        erased: names of the partitions that are blank now.
        kept: names of the unchanged partitions, including apps.
        kept_values: number of NVS values kept in a partition that was otherwise erased.
        slot_before, slot_after: the partition whose app started before, and the one that starts now.
        app: the app that starts now.
        notes: what was not done, and why.
    """

    erased: tuple[str, ...]
    kept: tuple[str, ...]
    kept_values: int
    slot_before: str | None
    slot_after: str | None
    app: App | None
    notes: tuple[str, ...]


@operation(Effect.ERASE, group="production")
def factory_reset(link: Link, keep: Sequence[str] = (), keep_namespaces: Sequence[str] = ()) -> FactoryReset:
    """Erase a user's data on a board: NVS, otadata, file systems and other data. Its apps stay.

    Keys, radio calibration, read-only partitions and those named fctry or factory_nvs stay, too. otadata stays if the
    board would not start without it.

    Args:
        keep: names of additional partitions to keep.
        keep_namespaces: namespaces to keep in the NVS partition named nvs, e.g. ["manufacturing"].

    Raises:
        OperationError: if there is no partition table, or a name in *keep* is not in it.
    """
    table = tables.read(link).partitions
    names = [part.name for part in table]
    for name in keep:
        if name not in names:
            raise OperationError(f"there is no partition {name!r} to keep", hint=f"the table has: {', '.join(names)}")
    before = tables.app_slot(link).name if default_app(table) else None
    notes: list[str] = []
    kept_values = 0
    erased: list[str] = []
    for part in table:
        if not _is_the_users(part) or part.name in keep:
            continue
        if part == otadata_of(table) and (why := _why_keep_otadata(link, table)):
            notes.append(why)
        elif part.name == "nvs" and keep_namespaces:
            kept_values = _keep_namespaces(link, part.name, keep_namespaces)
            erased.append(part.name)
        else:
            writing.erase(link, part.offset, part.size)
            erased.append(part.name)
    slot = tables.app_slot(link) if default_app(table) else None
    app = app_of(reading.read(link, slot.offset, APP_HEAD_SIZE).data) if slot else None
    kept = tuple(name for name in names if name not in erased)
    return FactoryReset(tuple(erased), kept, kept_values, before, slot.name if slot else None, app, tuple(notes))


def _is_the_users(part: Partition) -> bool:
    return (
        part.type == "data"
        and part.subtype not in _NOT_THE_USERS
        and part.name not in _OF_THE_FACTORY
        and not part.readonly
    )


def _why_keep_otadata(link: Link, table: Sequence[Partition]) -> str | None:
    first = default_app(table)
    if first is None or tables.app_slot(link) == first:
        return None
    if app_of(reading.read(link, first.offset, APP_HEAD_SIZE).data) is not None:
        return None
    return f"otadata was kept: without it {first.name} would start, which has no app"


def _keep_namespaces(link: Link, partition: str, namespaces: Sequence[str]) -> int:
    entries = nvs.read(link, partition).entries
    going = [(entry.namespace, entry.key) for entry in entries if entry.namespace not in namespaces]
    return nvs_update.update(link, {}, partition=partition, remove=going).kept
