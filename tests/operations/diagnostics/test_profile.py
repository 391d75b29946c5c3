"""What the first seconds of a board look like: from real logs, simulated chips and QEMU."""

import time

import pytest

from pytest_esp.errors import OperationError, StoppedError
from pytest_esp.link.console import Line
from pytest_esp.operations.diagnostics import profile_of

NAMES = [
    "ROM", "bootloader", "partition table", "loading the app", "app loaded", "startup", "heap", "scheduler", "app_main",
]  # fmt: skip


def lines_of(path, step=0.01):
    return [Line(number * step, text) for number, text in enumerate(path.read_text(errors="replace").splitlines())]


def test_a_log_of_an_esp32(esp32_log):
    lines = lines_of(esp32_log)
    profile = profile_of(lines, seconds=5.0)
    first, second = profile.boots
    assert (first.reason, first.after_crash, second.reason) == (
        "rst:0x1 (POWERON_RESET)",
        False,
        "rst:0xc (SW_CPU_RESET)",
    )
    assert second.after_crash  # the panic handler resets by software
    assert [phase.name for phase in first.phases] == NAMES
    stamps = [phase.chip_ms for phase in first.phases]
    assert stamps == [None, 1824, 2381, 2507, 3088, 3171, 5554, 5855, 5885]
    assert sum(phase.seconds or 0.0 for phase in first.phases) == pytest.approx(first.to_app)
    assert profile.resets == 1
    assert profile.crashes == ("panic: StoreProhibited at address 0x00000000",)
    assert [(hex(region.address), region.size, region.kind) for region in profile.heap_regions[:2]] == [
        ("0x3ffae6e0", 0x1920, "DRAM"),
        ("0x3ffb3400", 0x2CC00, "DRAM"),
    ]
    assert profile.log.levels["warning"] == 1
    assert profile.log.tags["boot"] >= 8
    assert profile.log.lines == len(lines)


def test_what_an_app_says_of_its_heap():
    lines = [
        Line(0.5, "Minimum free heap size: 300892 bytes"),
        Line(1.5, "I (1500) app: free heap=123456, largest free block=65536"),
    ]
    told = profile_of(lines, 2.0).heap_lines
    assert [(line.at, line.what, line.size) for line in told] == [
        (0.5, "minimum free heap size", 300892),
        (1.5, "free heap", 123456),
    ]


def test_rates():
    lines = [Line(at / 1000, "x" * 98) for at in range(0, 100)] + [Line(0.9, "I (900) tag: quiet")]
    log = profile_of(lines, 2.0).log
    assert log.lines_per_second == 50.5
    assert log.bytes_per_second == pytest.approx((100 * 100 + 20) / 2)
    assert log.peak_bytes_per_second == pytest.approx(100 * 100 / 0.1)
    assert log.uart_load == pytest.approx(100_000 / 11520, rel=0.01)
    assert (log.levels, log.tags) == ({"info": 1}, {"tag": 1})


# -- on boards


@pytest.fixture
def running(make_esp):
    """Make a simulated chip with an app: a function from the app's name to the operations on it."""

    def make(app, build):
        esp = make_esp(backend="sim", chip="esp32c3", app=app)
        esp.flash.write(build)
        return esp

    return make


def test_a_simulated_chip(running, build_of):
    profile = running("hello", build_of("esp32c3")).diagnostics.performance_profile(0.4)
    (boot,) = profile.boots
    assert boot.phases[0].name == "ROM"
    assert boot.to_app is not None
    assert (profile.resets, profile.crashes) == (0, ())
    assert profile.link.stub
    assert profile.link.read_bytes == 65536
    assert profile.link.read_bytes_per_second > 10_000
    assert 0 < profile.link.round_trip < 0.5


def test_an_app_that_is_not_started_anew(running, build_of):
    esp = running("echo", build_of("esp32c3"))
    esp.link.boot().expect("ready")
    profile = esp.diagnostics.performance_profile(0.2, boot=False, throughput=False)
    assert (profile.boots, profile.log.lines, profile.link) == ((), 0, None)
    assert esp.link.runs_app


def test_a_chip_with_nothing_to_start(esp_of):
    profile = esp_of("esp32c3").diagnostics.performance_profile(0.3, throughput=False)
    assert profile.boots[0].to_app is None
    assert profile.crashes[0].startswith("not bootable: the flash is blank")


def test_what_is_refused(esp_of):
    for duration in (0, -1, 1e6):
        with pytest.raises(OperationError, match="invalid duration"):
            esp_of("esp32").diagnostics.performance_profile(duration)


@pytest.mark.qemu
@pytest.mark.parametrize("chip", ["esp32", "esp32c3"])
def test_hello_world_on_qemu(qemu_esp, firmware_folder, chip):
    esp = qemu_esp(chip)
    esp.flash.write(firmware_folder / f"hello_world_{chip}")
    profile = esp.diagnostics.performance_profile(60.0, until="Restarting in")
    boot = profile.boots[0]
    assert {"ROM", "bootloader", "partition table", "app loaded", "heap"} <= {phase.name for phase in boot.phases}
    assert 0 < boot.to_app < profile.seconds
    assert [phase.begin for phase in boot.phases] == sorted(phase.begin for phase in boot.phases)
    stamps = [phase.chip_ms for phase in boot.phases if phase.chip_ms is not None]
    assert len(stamps) >= 5
    assert stamps == sorted(stamps)
    assert "minimum free heap size" in {line.what for line in profile.heap_lines}
    assert sum(region.size for region in profile.heap_regions) > 200_000
    assert profile.link.read_bytes_per_second > 100
    assert not profile.crashes


def test_listening_can_be_stopped(esp_of):
    """Cancelled like the call of an MCP client; the board is free again at once."""
    esp, told = esp_of("esp32c3"), []

    def stop(done, total):
        told.append((done, total))
        if len(told) == 2:
            raise StoppedError("stopped")

    begun = time.monotonic()
    with pytest.raises(StoppedError):
        esp.diagnostics.performance_profile(60.0, progress=stop)
    assert time.monotonic() - begun < 20
    assert told == [(1, 60), (2, 60)]
    assert esp.chip.identify().chip_type == "esp32c3"
