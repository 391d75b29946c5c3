"""The fixture `firmware`: which build a test gets, when it is flashed, and what its console shows."""

import json
import os
import shutil
from pathlib import Path

import pytest

from pytest_esp.formats.firmware import Firmware
from pytest_esp.sim.app import load_app
from pytest_esp.sim.chip import SimChip
from pytest_esp.wire.endpoints import serve

TOOLS = os.environ.get("IDF_TOOLS_PATH") or str(Path.home() / ".espressif")  # pytester gives tests another home

# A simulated chip prints the boot log of what is really in its flash; then it says what its app class says.
BOOTED = "Project name:     pytest_esp_test"


@pytest.fixture
def builds(project, build_of, monkeypatch):
    """A folder with a build for the ESP32 and one for the ESP32-C3, beside the tests."""
    monkeypatch.delenv("PYTEST_ESP_FIRMWARE", raising=False)
    folder = project.path / "builds"
    for chip in ("esp32", "esp32c3"):
        shutil.copytree(build_of(chip), folder / chip)
    return folder


def change_version(build, version):
    """Make another build: the app says another version, and has another hash."""
    app = build / "pytest_esp_test.bin"
    data = bytearray(app.read_bytes())
    data[0x30 : 0x30 + len(version)] = version.encode()
    data[0xB0:0xD0] = bytes(reversed(data[0xB0:0xD0]))
    data[23] = 0  # its own hash would not be right any more
    app.write_bytes(data[:-32])


TEST = """
def test_boots(firmware, console, board):
    console.expect(f"App version:      {firmware.app.version}")
    assert console.text.count("rst:0x1 ") == 1
    print("on", board.name, firmware.path.name, firmware.chip)
"""


# -- which build


@pytest.mark.usefixtures("builds")
def test_each_chip_gets_its_build(project):
    project.file("""
        @pytest.mark.esp(each="chip")
        def test_boots(firmware, console, board, esp):
            console.expect("App version:      1.0.0")
            assert firmware.chip == board.chip
            assert esp.flash.verify(firmware).matches
    """)
    result = project.run("--esp-firmware=builds", "-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*test_boots[[]esp32] PASSED*", "*test_boots[[]esp32c3] PASSED*"])


@pytest.mark.usefixtures("builds")
@pytest.mark.parametrize("where", ["option", "two options", "ini", "environment"])
def test_a_build_is_named_in_several_ways(project, where, monkeypatch):
    project.file("@pytest.mark.esp(chip='esp32c3')" + TEST)
    arguments = ["-s"]
    if where == "option":
        arguments += ["--esp-firmware", "builds/esp32c3"]
    elif where == "two options":
        arguments += ["--esp-firmware", "builds/esp32", "--esp-firmware", "builds/esp32c3"]
    elif where == "ini":
        project.pytester.makeini("[pytest]\nesp_firmware = builds/esp32\n    builds/esp32c3\n")
    else:
        monkeypatch.setenv("PYTEST_ESP_FIRMWARE", str(project.path / "builds"))
    result = project.run(*arguments)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*on c3-1 esp32c3 esp32c3*"])


def test_the_nearest_marker_wins(project, builds):
    """Paths are relative to the test's file; a method's marker goes before its class's, that before the option."""
    change_version(builds / "esp32c3", "2.0.0")
    (project.path / "tests").mkdir()
    (project.path / "tests" / "test_it.py").write_text("""
import pytest

pytestmark = pytest.mark.esp(chip="esp32c3")

@pytest.mark.firmware("../builds/esp32c3")
class TestClass:
    def test_class(self, firmware):
        assert firmware.app.version == "2.0.0"

    @pytest.mark.firmware("../original")
    def test_method(self, firmware):
        assert firmware.app.version == "1.0.0"

def test_option(firmware):
    assert firmware.app.version == "1.0.0"
""")
    shutil.copytree(builds / "esp32c3", project.path / "original")
    change_version(project.path / "original", "1.0.0")
    project.run("--esp-firmware=original").assert_outcomes(passed=3)


@pytest.mark.usefixtures("builds")
def test_a_board_whose_chip_has_no_build_is_not_taken(project):
    """The first board of the rack with a build for its chip is used."""
    project.file(TEST)
    project.run("-s", "--esp-firmware=builds/esp32c3").stdout.fnmatch_lines(["*on c3-1 esp32c3 esp32c3*"])


@pytest.mark.usefixtures("builds")
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("marker", "arguments", "words"),
    [
        ("chip='esp32s3'", ["--esp-firmware=builds"], "its chip is esp32s3, but the firmware is for esp32, esp32c3"),
        ("chip='esp32'", [], "no firmware was specified: use --esp-firmware DIR"),
    ],
)
def test_a_test_without_a_build_for_its_boards_is_skipped(project, strict, marker, arguments, words):
    project.file(f"@pytest.mark.esp({marker})\ndef test_it(firmware): ...")
    result = project.run(*arguments, *(["--esp-strict"] if strict else []))
    result.assert_outcomes(**{"errors" if strict else "skipped": 1})
    result.stdout.fnmatch_lines([f"*{words}*"])


@pytest.mark.usefixtures("builds")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("marker", "words"),
    [
        ("'nowhere'", "the firmware */nowhere does not exist"),
        ("'test_it.py'", "*test_it.py needs an address: it is neither an app image nor a whole flash*"),
        ("'two'", "*two has 2 matching builds*"),
    ],
)
def test_a_missing_build_is_a_failure(project, marker, words, workers):
    """Not a skip: somebody forgot to build it."""
    shutil.copytree(project.path / "builds" / "esp32", project.path / "two" / "a")
    shutil.copytree(project.path / "builds" / "esp32", project.path / "two" / "b")
    project.file(f"""
        @pytest.mark.firmware({marker})
        @pytest.mark.esp(each="chip", chip=["esp32", "esp32s3"])
        def test_it(firmware): ...

        def test_other(board): ...
    """)
    result = project.run(f"-n{workers}")
    outcomes = result.parseoutcomes()
    assert (outcomes["passed"], outcomes.get("errors", 0) + outcomes.get("error", 0)) == (1, 1)
    result.stdout.fnmatch_lines([f"*{words}*"])


@pytest.mark.parametrize(
    ("marker", "words"),
    [
        (
            "'build', flash='sometimes'",
            "@pytest.mark.firmware: unknown value flash='sometimes'; * (it can be changed, always, never)",
        ),
        ("'build', skope='module'", "@pytest.mark.firmware has no keyword 'skope'; did you mean scope?"),
        ("7", "@pytest.mark.firmware: (7,) are not paths"),
    ],
)
def test_a_wrong_marker_ends_the_run(project, marker, words):
    project.file(f"@pytest.mark.firmware({marker})\ndef test_it(firmware): ...")
    result = project.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{words}*"])


@pytest.mark.usefixtures("builds")
def test_a_board_that_may_not_be_written_is_not_taken(project):
    project.rack('[boards.careful]\nbackend = "sim"\nchip = "esp32"\nallow = ["read"]\n')
    project.file("def test_it(firmware): ...")
    result = project.run("--esp-firmware=builds")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*careful: it does not allow 'write'*"])
    project.run("--esp-firmware=builds", "--esp-flash=never").assert_outcomes(errors=1)


@pytest.mark.usefixtures("builds")
def test_getfixturevalue_is_refused(project):
    project.file("def test_it(board, request):\n    request.getfixturevalue('firmware')")
    project.run("--esp-firmware=builds").stdout.fnmatch_lines(
        ["*`firmware` cannot be requested with getfixturevalue(): name it in the test's arguments*"]
    )


# -- when it is flashed


def summary_of(result):
    """Return KB written and unchanged, from the board's line in the summary."""
    (line,) = [line for line in result.outlines if line.startswith("one-esp32 ")]
    return tuple(float(word) for word in line.split()[-4::2])


@pytest.mark.usefixtures("builds")
def test_unchanged_firmware_is_not_flashed_again(project):
    project.file("@pytest.mark.esp(chip='esp32')" + TEST)
    first = summary_of(project.run("--esp-firmware=builds"))
    assert first[0] > 5
    assert first[1] == 0
    assert summary_of(project.run("--esp-firmware=builds")) == (0, first[0])
    assert summary_of(project.run("--esp-firmware=builds", "--esp-flash=always")) == first


@pytest.mark.usefixtures("builds")
def test_the_evidence_is_what_is_in_flash(project):
    """One changed byte is enough for another write."""
    project.file("@pytest.mark.esp(chip='esp32')" + TEST)
    project.run("--esp-firmware=builds").assert_outcomes(passed=1)
    (flash,) = (project.path / "state").glob("*/flash.bin")
    data = bytearray(flash.read_bytes())
    data[0x10000 + 5000] ^= 1
    flash.write_bytes(data)
    written, unchanged = summary_of(project.run("--esp-firmware=builds"))
    assert written
    assert unchanged


def test_with_flash_never_the_app_is_still_checked(project, builds):
    project.file("@pytest.mark.esp(chip='esp32')" + TEST)
    result = project.run("--esp-firmware=builds", "--esp-flash=never")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*there is no partition table in flash*"])
    project.run("--esp-firmware=builds").assert_outcomes(passed=1)
    project.run("--esp-firmware=builds", "--esp-flash=never").assert_outcomes(passed=1)
    change_version(builds / "esp32", "2.0.0")
    result = project.run("--esp-firmware=builds", "--esp-flash=never")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*would start pytest_esp_test 1.0.0 from partition factory, not pytest_esp_test 2.0.0*"]
    )


def test_an_app_without_a_descriptor_is_compared_byte_by_byte(project, builds):
    app = builds / "esp32" / "pytest_esp_test.bin"
    app.write_bytes(app.read_bytes().replace(bytes.fromhex("3254cdab"), bytes(4)))
    project.file("@pytest.mark.esp(chip='esp32')\ndef test_it(firmware):\n    assert firmware.app is None")
    project.run("--esp-firmware=builds").assert_outcomes(passed=1)
    project.run("--esp-firmware=builds", "--esp-flash=never").assert_outcomes(passed=1)
    app.write_bytes(app.read_bytes()[:-1] + b"x")
    result = project.run("--esp-firmware=builds", "--esp-flash=never")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*the flash does not contain *esp32*"])


@pytest.mark.usefixtures("builds")
def test_the_marker_says_when_it_is_flashed(project):
    """The command line overrides it."""
    project.file("@pytest.mark.firmware('builds', flash='always')\n@pytest.mark.esp(chip='esp32')" + TEST)
    first = summary_of(project.run())
    assert summary_of(project.run()) == first
    assert summary_of(project.run("--esp-flash=changed")) == first[::-1]


def test_an_update_that_shadows_the_build_is_noticed(project, builds):
    """otadata selects the other slot, so the board would not run what was flashed."""
    project.file("""
        from esp_idf_defs.otadata import OtaDataSelectEntry

        @pytest.mark.esp(chip="esp32")
        def test_update(esp, firmware):
            app = firmware.regions[-1].data
            old = app.replace(b"pytest_esp_test", b"pytest_esp_old_")
            table = esp.partitions.read().partitions
            slot = next(part for part in table if part.subtype == "ota_0")
            otadata = next(part for part in table if part.subtype == "ota")
            entry = OtaDataSelectEntry(1).to_bytes()
            esp.flash.write([(slot.offset, old), (otadata.offset, entry)])
            assert esp.partitions.app().slot == slot

        @pytest.mark.esp(chip="esp32")
        def test_next(firmware): ...
    """)
    result = project.run("--esp-firmware=builds")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*would start pytest_esp_old_ 1.0.0 from partition *, not pytest_esp_test 1.0.0*"])


# -- what the console shows


@pytest.mark.usefixtures("builds")
def test_the_console_begins_with_the_boot(project):
    """Also on a board that another test has left open; in any order of arguments; and in the log."""
    project.file("""
        import pathlib

        pytestmark = pytest.mark.esp(chip="esp32")

        def test_first(firmware, console, esp):
            esp.chip.reset("app")
            esp.chip.identify()

        def test_second(console, esp, firmware):
            assert console.text.startswith("ets Jul 29 2019")
            console.expect("Calling app_main()")
            assert console.text.count("rst:0x1 ") == 1
            assert console.log_path.read_text().count("rst:0x1 ") == 1

        def test_third(firmware, esp):
            assert esp.link.console.text.count("rst:0x1 ") == 1
    """)
    project.run("--esp-firmware=builds").assert_outcomes(passed=3)


@pytest.mark.usefixtures("builds")
def test_one_boot_for_a_module(project):
    """Until one of its tests takes the chip to its loader, or fails."""
    project.file("""
        pytestmark = [pytest.mark.esp(chip="esp32"), pytest.mark.firmware("builds", scope="module")]

        def test_boots(firmware, console):
            console.expect("Calling app_main()")

        def test_goes_on(firmware, console):
            console.expect_silence(0.05)
            assert console.text == ""

        def test_takes_it_to_the_loader(firmware, esp):
            esp.chip.identify()

        def test_boots_again(firmware, console):
            console.expect("Calling app_main()")

        def test_resets_it_itself(firmware, esp):
            esp.chip.reset("app")

        def test_boots_once_more(firmware, console):
            console.expect("Calling app_main()")
            assert False

        def test_boots_after_a_failure(firmware, console):
            console.expect("Calling app_main()")
    """)
    project.run("--esp-firmware=builds").assert_outcomes(passed=6, failed=1)


@pytest.mark.usefixtures("builds")
def test_one_boot_for_the_session(project):
    for name in ("test_a", "test_b"):
        project.file(
            f"""
            boots = {name == "test_a"}

            @pytest.mark.firmware("builds", scope="session")
            @pytest.mark.esp(chip="esp32")
            def test_it(firmware, console):
                console.expect_silence(0.05)
                assert ("rst:0x1 " in console.text) == boots
            """,
            name,
        )
    project.run().assert_outcomes(passed=2)


@pytest.mark.usefixtures("builds")
def test_several_boards_get_theirs(project):
    project.file("""
        @pytest.mark.esp(count=3)
        def test_it(firmware, boards, _esp_held):
            assert [held.firmware.chip for held in _esp_held] == ["esp32", "esp32c3", "esp32c3"]
            for held in _esp_held:
                held.link.console.expect("Calling app_main()")
    """)
    project.run("--esp-firmware=builds").assert_outcomes(passed=1)


@pytest.mark.usefixtures("builds")
def test_the_session_board_gets_it_too(project):
    project.file("""
        @pytest.fixture(scope="module")
        def mac(session_esp):
            return session_esp.chip.identify().mac_address

        def test_it(mac, firmware, session_board, console):
            console.expect("Project name:     pytest_esp_test")
    """)
    project.run("--esp-firmware=builds", "--esp-chip=esp32").assert_outcomes(passed=1)


@pytest.mark.usefixtures("builds")
def test_a_board_on_a_serial_port(project):
    """Flashed and reset by its lines, as a devkit is; each console begins with its boot."""
    chip = SimChip("esp32c3", rise_time=0.05, app=load_app("echo"))
    chip.reset(bootloader=False)
    endpoint = serve(chip.wire, "rfc2217://127.0.0.1:0", name="devkit")
    try:
        project.rack(f'[boards.real]\nbackend = "serial"\nchip = "esp32c3"\nport = "{endpoint.url}"\n')
        project.file("""
            @pytest.mark.parametrize("turn", range(2))
            def test_it(firmware, console, esp, turn):
                console.expect("Calling app_main()")
                assert console.text.startswith("ESP-ROM:esp32c3")
                assert console.text.count("rst:0x") == 1
                console.write("hello" + chr(10))
                console.expect("hello")
                assert bool(esp.link.skipped_bytes) == bool(turn)
        """)
        project.run("--esp-firmware=builds").assert_outcomes(passed=2)
    finally:
        endpoint.close()
        chip.close()


# -- the ELF file


def test_the_links_elf_is_that_of_the_build(project, builds):
    project.file("""
        @pytest.mark.esp(chip="esp32")
        def test_it(firmware, esp, console):
            assert esp.link.elf == console.elf == firmware.elf
            print("elf:", firmware.elf)
    """)
    project.run("-s", "--esp-firmware=builds").stdout.fnmatch_lines(["*elf: */builds/esp32/pytest_esp_test.elf"])
    (builds / "esp32" / "pytest_esp_test.elf").write_bytes(b"\x7fELF of yesterday")
    result = project.run("-s", "--esp-firmware=builds")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*elf: None", "*is not the ELF file of this app*build the project again*"])


# -- order


def test_tests_keep_their_order(project, builds):
    """Whatever firmware and boards they need: one may rely on what the one before it did."""
    shutil.copytree(builds / "esp32", project.path / "other")
    change_version(project.path / "other", "2.0.0")
    project.file("""
        pytestmark = pytest.mark.esp(chip="esp32")
        one, other = pytest.mark.firmware("builds"), pytest.mark.firmware("other")

        @one
        def test_1(firmware): ...
        @other
        def test_2(firmware): ...
        def test_3(): ...
        @one
        def test_4(firmware): ...
        @other
        def test_5(firmware): ...
    """)
    result = project.run("-v")
    result.assert_outcomes(passed=5)
    assert [line.split()[0][-1] for line in result.outlines if "PASSED" in line] == ["1", "2", "3", "4", "5"]


@pytest.mark.usefixtures("builds")
def test_workers_keep_a_firmware_on_its_board(project):
    shutil.copytree(project.path / "builds" / "esp32c3", project.path / "other")
    change_version(project.path / "other", "2.0.0")
    project.file("""
        import time

        pytestmark = pytest.mark.esp(chip="esp32c3")

        @pytest.mark.parametrize("turn", range(6))
        @pytest.mark.parametrize("build", [
            pytest.param(name, marks=pytest.mark.firmware(name)) for name in ("builds", "other")
        ])
        def test_it(firmware, build, turn, record_property):
            record_property("build", build)
            time.sleep(0.2)
    """)
    result = project.run("-n2", "-v", "--junitxml=junit.xml")
    result.assert_outcomes(passed=12)
    lines = [line.split() for line in result.outlines if line.startswith("c3-")]
    written = [float(words[-4]) for words in lines]
    total = sum(region.size for region in Firmware.open(project.path / "other").regions) / 1024
    assert len(written) == 2
    assert sum(written) < 3 * total, json.dumps(lines)


# -- QEMU


QEMU_RACK = """
    [boards.machine]
    backend = "qemu"
    chip = "esp32c3"
    flash_size = "2MB"
"""


@pytest.fixture
def machine(project, need_qemu, monkeypatch):
    """A rack with a QEMU machine."""
    monkeypatch.setenv("IDF_TOOLS_PATH", TOOLS)
    need_qemu("esp32c3")
    project.rack(QEMU_RACK)


@pytest.mark.usefixtures("builds", "machine")
def test_a_machine_is_flashed_before_it_starts(project):
    """Its first boot is that of the build; later tests find it written."""
    project.file("""
        def test_first(firmware, console, esp):
            console.expect("pytest-esp test firmware 1.0.0 on esp32c3", timeout=30)
            assert console.text.startswith("ESP-ROM:esp32c3")
            assert (esp.link.boots, console.text.count("rst:0x1 ")) == (1, 1)
            assert esp.link.written_bytes == sum(region.size for region in firmware.regions)

        def test_second(firmware, console, esp):
            console.expect("pytest-esp test firmware 1.0.0 on esp32c3", timeout=30)
            assert console.text.startswith("ESP-ROM:esp32c3")
            console.expect("list of tests")
            console.write("echo hello" + chr(10))
            console.expect("hello")
            assert esp.link.boots == 2
            assert esp.link.skipped_bytes == esp.link.written_bytes
            assert esp.partitions.app().app.elf_sha256 == firmware.identity
    """)
    project.run("--esp-firmware=builds").assert_outcomes(passed=2)


@pytest.mark.usefixtures("builds", "machine")
def test_one_boot_of_a_machine_for_a_module(project):
    project.file("""
        pytestmark = pytest.mark.firmware("builds", scope="module")

        def test_first(firmware, console):
            console.expect("list of tests", timeout=30)

        def test_second(firmware, console):
            console.write("echo still here" + chr(10))
            console.expect("still here")
            assert "rst:0x1 " not in console.text

        def test_reads_flash(firmware, esp):
            assert esp.flash.verify(firmware).matches

        def test_boots_again(firmware, console):
            console.expect("list of tests", timeout=30)
    """)
    project.run().assert_outcomes(passed=4)


@pytest.mark.usefixtures("machine")
def test_hello_world(project, firmware_folder, monkeypatch):
    """Real firmware, from fixture to match; and where a class stands in for it."""
    monkeypatch.delenv("PYTEST_ESP_FIRMWARE", raising=False)
    project.file("""
        def test_hello(firmware, console):
            console.expect("Hello world!", timeout=30)
    """)
    build = firmware_folder / "hello_world_esp32c3"
    project.run(f"--esp-firmware={build}").assert_outcomes(passed=1)
    project.rack(QEMU_RACK.replace("qemu", "sim") + 'app = "pytest_esp.sim.app:HelloApp"\n')
    project.run(f"--esp-firmware={build}").assert_outcomes(passed=1)
