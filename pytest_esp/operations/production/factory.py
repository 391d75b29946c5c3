"""A board as it leaves the factory: programmed, looked at, and brought back to that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Literal

from pytest_esp.errors import EspError, OperationError, StoppedError
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

# What the flash is like when a stage has failed, whatever it was that failed.
_STATES: dict[Stage, str] = {
    "check": "nothing was touched",
    "erase": "the flash is erased in parts, or all of it: nothing starts",
    "flash": "the flash was erased, and is partly written: nothing may start",
    "nvs": "firmware is written; NVS is blank or partly written",
    "verify": "all is written, and something of it is not what it should be",
    "boot": "all is written and verified, but the app was not seen to start",
}


@dataclass(frozen=True)
class FactoryProgram:
    """A board that was programmed. Sizes are bytes; no NVS value is in it but the serial number.

    Attributes:
        firmware: project and version, or the path.
        app: what the app says of itself.
        nvs_written: ``"namespace.key"`` of all NVS values.
        bytes_written: firmware, partition table and NVS.
        verified: by the chip's MD5 of every region, and NVS by its values.
        booted: whether the app was seen to start; None if that was not to be checked.
        seconds_by_stage: how long each stage took.
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
    """Program a board as it leaves the factory: check everything, erase all, flash, write NVS, verify, see it boot.

    Checked before the erase: files, partition table, NVS values, chip, MAC, sizes, the chip's locks. An error says at
    which stage it happened and what state the board is in.

    Args:
        config: {"firmware": build folder or merged image, "serial_number": "SN1", "nvs": {namespace: {key: value}},
            "partition_table": CSV, "chip", "mac", "nvs_partition", "nvs_key_file", "boot": {"wait": 3, "expect": text}
            or false}, or a JSON or TOML file with that.
        progress: called with bytes done and to do.

    Raises:
        FirmwareError, OperationError: if something is wrong or missing, or what was written is not there.
        LinkError, PortError: if the board is lost.
    """
    __tracebackhide__ = True
    plan = make_plan(FactoryConfig.load(config))
    return program(link, plan, progress=progress)


def program(
    link: Link, plan: Plan, *, progress: Progress | None = None, on_stage: OnStage | None = None
) -> FactoryProgram:
    """Program a board as `factory_program` does, by a plan that may be of many boards.

    Args:
        link: to the board.
        plan: what it gets.
        progress: called with bytes done and to do.
        on_stage: called when a stage begins; what it raises ends the work.

    Raises:
        EspError: see `factory_program`.
    """
    job = _Programming(link, plan, progress, on_stage)
    with plan.secrets.guard():
        return job.run()


class _Programming:
    """One board under way."""

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
        """Go through the stages; an error says what state the board is in."""
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
    """Check that a board can take what is planned, and return who it is.

    Raises:
        FirmwareError, OperationError: if not. LinkError: if it does not answer.
    """
    who = identify(link)
    if who.secure_download_mode:
        raise OperationError(
            "the chip is in secure download mode: it cannot be programmed as from the factory",
            hint="take another board",
        )
    with link.session.use("looking for flash encryption and secure boot", stub=False) as esp:
        locks = {
            "flash encryption": who.chip_type != "esp8266" and bool(esp.get_flash_encryption_enabled()),
            "secure boot": who.chip_type != "esp8266" and bool(esp.get_secure_boot_enabled()),
        }
    for name, locked in locks.items():
        if locked:
            raise OperationError(
                f"{name} is enabled: plain firmware would not start any more",
                hint="write its signed or encrypted images with flash write; nothing was touched",
            )
    with reach(link, "auto", "looking at the flash") as access:
        size = access.size
    if size >= ADDRESS_SPACE:
        raise OperationError("the size of the flash is unknown", hint="write flash_size into boards.toml")
    plan.check_board(who, size)
    return who


def check_contents(link: Link, plan: Plan) -> None:
    """Check that the flash holds what was planned: every region by the chip's MD5, NVS by its values.

    Raises:
        OperationError: if not; names the first region, and the keys.
    """
    for region in plan.regions:
        if reading.md5(link, region.address, region.size).md5 != md5_of(region.data):
            raise OperationError(f"{region.source} at {region.address:#x} is not in flash as it should be")
    if plan.place is not None:
        nvs_update.check(link, dict(plan.entries), plan.place.name, plan.config.nvs_key_file)


def check_boot(link: Link, how: Boot, app: App | None) -> None:
    """Check that the app starts, and that it is *app*, as far as its boot log tells.

    Raises:
        OperationError: if it does not, or another does; ``details["output"]`` is what the console said.
    """
    seen = run_firmware(link, how.wait, how.expect)
    problem = None
    if seen.state != "running":
        problem = f"it does not run: {seen.state}" + (f" ({seen.crash.splitlines()[0]})" if seen.crash else "")
    elif seen.matched is False:
        problem = f"{how.expect!r} did not come within {how.wait:g} s"
    elif app is not None and seen.project is not None and (seen.project, seen.version) != (app.project, app.version):
        problem = f"it started {seen.project} {seen.version}, not {app.project} {app.version}"
    if problem is not None:
        raise OperationError(
            problem,
            hint="a chip whose console is not on this port (USB) says nothing here: set boot to false for it"
            if seen.state == "silent"
            else "see the output",
            details={"output": hide(seen.output)[-2000:]},
        )


# -- back to the factory's state

# Data partitions that are the board's, not its user's: the radio's calibration, keys, and what emulates eFuses.
_NOT_THE_USERS = ("phy", "nvs_keys", "efuse")
# Where ESP RainMaker and others keep what was made in the factory: a reset is not to take it.
_OF_THE_FACTORY = ("fctry", "factory_nvs")


@dataclass(frozen=True)
class FactoryReset:
    """What a reset did.

    Attributes:
        erased: names of the partitions that are blank now.
        kept: names of those that are as they were, apps among them.
        kept_values: how many NVS values were kept in a partition that is otherwise empty now.
        slot_before, slot_after: the partitions whose app started, and starts from now on.
        app: that starts from now on.
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
    """Erase what a user has left on a board: NVS, otadata, file systems and other data. Its apps stay.

    Keys, radio calibration, read-only partitions and those named fctry or factory_nvs stay, too. otadata stays where
    the board would not start without it.

    Args:
        keep: names of partitions that stay, too.
        keep_namespaces: namespaces of the NVS partition named nvs that stay, e.g. ["manufacturing"].

    Raises:
        OperationError: if there is no partition table, or it has none of a name in *keep*.
    """
    table = tables.read(link).partitions
    names = [part.name for part in table]
    for name in keep:
        if name not in names:
            raise OperationError(f"there is no partition {name!r} to be kept", hint=f"the table has {', '.join(names)}")
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


def stopper(stop: Callable[[], bool]) -> OnStage:
    """Return what ends a programming between two stages once *stop* says so."""

    def look(_stage: Stage) -> None:
        if stop():
            raise StoppedError("it was stopped")

    return look
