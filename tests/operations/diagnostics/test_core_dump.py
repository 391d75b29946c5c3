"""Core dumps: from a log, a file, flash and a live console, to the line that crashed."""

import base64
import re

import pytest

from pytest_esp.errors import FirmwareError, OperationError
from pytest_esp.link.journal import Journal
from pytest_esp.link.panic import decode
from pytest_esp.operations.diagnostics import analyze, core_dump_of
from pytest_esp.operations.diagnostics.core_image import from_file, from_text

NVS = {"name": "nvs", "type": "data", "subtype": "nvs", "offset": 0x9000, "size": 0x4000}
CORE = {"name": "core", "type": "data", "subtype": "coredump", "offset": 0x10000, "size": 0x10000}


def where(task):
    return [(frame.function, frame.line) for frame in task.backtrace]


def test_the_crash_of_a_real_app_by_function_and_line(esp32_log, crashed_esp32):
    dump = core_dump_of(esp32_log, crashed_esp32)
    assert (dump.chip_type, dump.version, dump.checksum, dump.elf_matches) == ("esp32", "1.4", "SHA-256", True)
    assert dump.reason == "StoreProhibited at address 0x00000000"
    assert (dump.crashed_task.name, dump.in_interrupt) == ("main", False)
    assert where(dump.crashed_task) == [("app_main", 17), ("main_task", 199), ("vPortTaskWrapper", 143)]
    assert [task.name for task in dump.tasks] == ["main", "IDLE0", "IDLE1", "ipc0", "ipc1"]
    assert where(dump.tasks[2])[:2] == [("esp_cpu_wait_for_intr", 64), ("esp_vApplicationIdleHook", 58)]


def test_it_agrees_with_the_panic_on_the_console(esp32_log, crashed_esp32):
    """Registers and backtrace were printed, too."""
    dump = core_dump_of(esp32_log, crashed_esp32)
    text = esp32_log.read_text(errors="replace")
    panic = decode(text[text.index("Guru") : text.index("CORE DUMP START")], crashed_esp32)
    shared = panic.registers.keys() & dump.crashed_task.registers.keys()
    assert len(shared) >= 20
    different = {name for name in shared if panic.registers[name] != dump.crashed_task.registers[name]}
    assert different <= {"PS"}  # the chip clears PS.EXCM for debuggers
    assert [frame.pc for frame in dump.crashed_task.backtrace] == [frame.pc for frame in panic.backtrace]
    assert dump.exception["EXCCAUSE"] == panic.registers["EXCCAUSE"]


def test_a_riscv_chip(riscv_dump, crashed_esp32c3):
    dump = analyze(riscv_dump, crashed_esp32c3, source="made here")
    assert (dump.chip_type, dump.chip_revision, dump.revision, dump.elf_matches) == ("esp32c3", "v0.4", 4, True)
    assert (dump.reason, dump.crashed_task.name) == ("Store access fault", "main")
    assert [frame.function for frame in dump.crashed_task.backtrace][:2] == ["app_main", "main_task"]


def test_without_the_elf_there_are_addresses(esp32_log):
    dump = core_dump_of(esp32_log)
    assert [hex(frame.pc) for frame in dump.crashed_task.backtrace] == ["0x400d5260", "0x400d316e", "0x400daa61"]
    assert "ab81a733d" in dump.note


def test_the_wrong_elf_gives_no_names(esp32_log, build_of):
    dump = core_dump_of(esp32_log, build_of("esp32") / "pytest_esp_test.elf")
    assert dump.elf_matches is False
    assert {frame.function for task in dump.tasks for frame in task.backtrace} == {None}
    with pytest.raises(FirmwareError, match="is for riscv, but the core dump is from xtensa"):
        core_dump_of(esp32_log, build_of("esp32c3") / "pytest_esp_test.elf")


@pytest.mark.parametrize("form", ["raw", "raw with what follows", "base64", "core file"])
def test_every_form_of_a_file(form, esp32_log, crashed_esp32, tmp_path):
    raw = from_file(esp32_log)
    path = tmp_path / "dump"
    path.write_bytes(
        {
            "raw": raw,
            "raw with what follows": raw + b"\xff" * 100,
            "base64": base64.encodebytes(raw),
            "core file": raw[12:-32],
        }[form]
    )
    assert where(core_dump_of(path, crashed_esp32).crashed_task)[0] == ("app_main", 17)


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda data: data[:-100], "truncated"),
        (lambda data: data[:2000] + b"\x5a\xa5" + data[2002:], "SHA256"),
        (lambda data: b"\xff" * 4096, "the flash is blank"),
        (lambda data: b"\x12" * 4096, "not a core dump"),
        (lambda data: data[:12] + b"\x7fELF" + b"\xff" * 200, "truncated"),
        (lambda data: data[12:80], "damaged"),
        (lambda data: b"", "not a core dump"),
    ],
)
def test_damage_is_named(damage, error, esp32_log):
    with pytest.raises(FirmwareError, match=error):
        analyze(damage(from_file(esp32_log)), None, source="")


def test_a_log_that_lost_bytes(esp32_log):
    text = esp32_log.read_text(errors="replace")
    with pytest.raises(FirmwareError, match="is incomplete"):
        core_dump_of(log=text[: text.index("CORE DUMP END")])
    with pytest.raises(FirmwareError, match="the log does not contain a core dump"):
        core_dump_of(log="Hello world!")
    lines = text.splitlines()
    dumped = [number for number, line in enumerate(lines) if re.fullmatch(r"[A-Za-z0-9+/]{40,}", line)]
    del lines[dumped[10]]
    with pytest.raises(FirmwareError, match=r"truncated|damaged"):
        core_dump_of(log="\n".join(lines))


PREFIXES = {
    "our own console log": lambda number: f"[{number / 8:9.3f}] ",
    "a terminal's time": lambda number: f"12:{number // 60 % 60:02}:{number % 60:02}.{number % 1000:03} -> ",
    "Python's logging": lambda number: f"2026-12-01 12:00:{number % 60:02},{number % 1000:03} INFO dut-0: ",
    "a name": lambda _: "(esp32) ",
    "colours": lambda _: "\x1b[0;32m ",
    "nothing between": lambda number: f"{number}>",
    "tabs": lambda number: f"{number}\t",
}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_any_prefix_of_a_log(prefix, ending, esp32_log, tmp_path):
    lines = esp32_log.read_text(errors="replace").splitlines()
    text = ending.join(PREFIXES[prefix](number) + line for number, line in enumerate(lines))
    assert from_text(text) == from_file(esp32_log)
    (tmp_path / "console.log").write_bytes(text.encode("utf-16"))
    assert from_file(tmp_path / "console.log") == from_file(esp32_log)


def test_our_own_console_log(esp32_log, tmp_path):
    """As the journal writes it: the time stamps of data that came in small pieces."""
    journal = Journal(tmp_path / "console.log")
    data = esp32_log.read_bytes()
    for number, at in enumerate(range(0, len(data), 100)):
        journal.write(data[at : at + 100], number * 0.004)
    journal.close()
    assert (tmp_path / "console.log").read_bytes() != data
    assert from_file(tmp_path / "console.log") == from_file(esp32_log)


def test_messages_of_other_tasks_between_the_lines(esp32_log):
    lines = esp32_log.read_text(errors="replace").splitlines()
    start = next(number for number, line in enumerate(lines) if "CORE DUMP START" in line)
    mixed = [*lines[: start + 5], "I (12) wifi: connected", "done 1234", "W (13) abcd", *lines[start + 5 :]]
    assert from_text("\n".join(mixed)) == from_file(esp32_log)


def test_the_last_whole_dump_counts(esp32_log):
    text = esp32_log.read_text(errors="replace")
    dump = text[text.index("CORE DUMP START") : text.index("CORE DUMP END") + 20]
    cut = dump[: len(dump) // 2]
    other = dump.replace(dump.splitlines()[40], base64.b64encode(bytes(48)).decode())
    whole = from_file(esp32_log)
    for log in (dump + "\n" + cut, cut + "\n" + dump, other + dump + cut + cut, dump + "\n" + cut + " CORE DUMP END"):
        assert from_text(log) == whole
    assert from_text(dump + "\n" + other) != whole
    with pytest.raises(FirmwareError, match="is incomplete"):
        from_text(cut + "\n" + cut)


# -- on boards


def flash_dump(esp, dump):
    esp.partitions.write([NVS, CORE])
    esp.flash.write([(0x10000, dump)])


def test_in_the_flash_of_a_board(esp_of, esp32_log, crashed_esp32, tmp_path):
    esp = esp_of("esp32")
    with pytest.raises(OperationError, match="no partition table"):
        esp.diagnostics.core_dump()
    flash_dump(esp, b"\xff" * 64)
    with pytest.raises(FirmwareError, match="the flash is blank"):
        esp.diagnostics.core_dump()
    flash_dump(esp, from_file(esp32_log))
    dump = esp.diagnostics.core_dump(crashed_esp32)
    assert (dump.source, where(dump.crashed_task)[0]) == ("flash", ("app_main", 17))
    assert esp.diagnostics.core_dump(crashed_esp32, partition="core") == dump
    with pytest.raises(OperationError, match="no partition 'cor'"):
        esp.diagnostics.core_dump(partition="cor")


def test_a_table_without_room_for_dumps(esp_of, tmp_path):
    esp = esp_of("esp32c3")
    esp.partitions.write([NVS])
    with pytest.raises(OperationError, match="no core dump partition"):
        esp.diagnostics.core_dump()


@pytest.mark.qemu
def test_a_crash_on_qemu_from_its_console(qemu_esp, firmware_folder, crashed_esp32):
    esp = qemu_esp("esp32")
    esp.flash.write(firmware_folder / "coredump_uart_esp32")
    console = esp.link.boot()
    console.expect("Press Enter to print core dump", timeout=30, ignore_crashes=True)
    console.write("\r")
    console.expect("CORE DUMP END", timeout=30, ignore_crashes=True)
    dump = esp.diagnostics.core_dump(crashed_esp32, source="console")
    assert (dump.source, dump.elf_matches) == ("console", True)
    assert where(dump.crashed_task)[:2] == [("app_main", 17), ("main_task", 199)]
