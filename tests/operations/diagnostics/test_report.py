"""The report on a board: structured, as Markdown and as a page that needs nothing else."""

import html.parser
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pytest_esp.errors import OperationError, StoppedError
from pytest_esp.operations.diagnostics.core_image import from_file
from pytest_esp.rack.config import load_rack

TABLE = [
    {"name": "nvs", "type": "data", "subtype": "nvs", "offset": 0x9000, "size": 0x6000},
    {"name": "core", "type": "data", "subtype": "coredump", "offset": 0x10000, "size": 0x10000},
]
VOID = ("meta", "br", "link", "img", "rect")


class Page(html.parser.HTMLParser):
    """Parses a page, and fails for unclosed tags, scripts and references to other files."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.targets, self.rows, self.text = [], set(), set(), 0, []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        assert tag not in ("script", "iframe", "object", "img", "link")
        assert "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        if "id" in attributes:
            self.ids.add(attributes["id"])
        if "href" in attributes:
            assert attributes["href"].startswith("#")
            self.targets.add(attributes["href"][1:])
        self.rows += tag == "tr"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def crashed(esp_of, esp32_log):
    """A board with a core dump in its flash."""
    esp = esp_of("esp32")
    esp.partitions.write(TABLE)
    esp.flash.write([(0x10000, from_file(esp32_log))])
    return esp


def test_a_board_that_has_crashed(crashed, crashed_esp32, tmp_path):
    path = tmp_path / "report.html"
    report = crashed.diagnostics.diagnostic_report(True, path, elf_file=crashed_esp32, duration=0.2)
    assert report.chip_type == "esp32"
    assert report.sections["core_dump"].data["crashed_task"]["backtrace"][0]["function"] == "app_main"
    assert ("high", "core_dump") in {(notice.severity, notice.section) for notice in report.notices}
    assert report.sections["thermal"].data is None
    assert "removed from the data sheet" in report.sections["thermal"].problem
    assert len(report.sections["memory"].data["hexdump"].splitlines()) == 64
    page = Page(path.read_text())
    assert page.targets <= page.ids
    assert page.rows > 60
    assert any("app_main" in text for text in page.text)
    ElementTree.fromstring(report.flash_map)
    assert report.flash_map in path.read_text()
    assert report.partition_picture in path.read_text()


def test_the_partition_picture_shows_every_partition_and_which_app_starts(esp_of, build_of, tmp_path):
    esp = esp_of("esp32c3")
    esp.flash.write(build_of("esp32c3"))
    path = tmp_path / "report.html"
    report = esp.diagnostics.diagnostic_report(output_file=path, duration=0.2)
    picture = ElementTree.fromstring(report.partition_picture)
    texts = ["".join(one.itertext()) for one in picture.iter("{http://www.w3.org/2000/svg}text")]
    for part in report.sections["partitions"].data["partitions"]:
        assert f"{part['name']}  {part['type']}/{part['subtype']}" in texts
        assert f"{part['offset']:#x}" in texts
    assert report.sections["partitions"].data["starts"] == "factory"
    assert len([text for text in texts if text.startswith("starts")]) == 1
    blocks = [int(one.get("height")) for one in picture.iter("{http://www.w3.org/2000/svg}rect") if one.get("stroke")]
    assert len(blocks) == len(report.sections["flash"].data["regions"])
    assert min(blocks) > 20  # a line of text has room
    assert "overflow-wrap: anywhere" not in path.read_text()  # it breaks numbers in narrow columns


def test_numbers_are_written_for_people(esp_of, build_of):
    esp = esp_of("esp32c3")
    esp.flash.write(build_of("esp32c3"))
    text = esp.diagnostics.diagnostic_report(duration=0.2).markdown
    assert "| nvs | data | nvs | 0x9000 | 20KB |" in text
    assert f"| flash id | {esp.flash.info().flash_id:#x} |" in text
    assert "| bootloader | bootloader | - | - | 0x0 | 32KB | 2 | 6 | 25 % |" in text
    assert not [cell for cell in text.split("|") if len(cell.strip().split(".")[-1]) > 8 and cell.strip()[:2] == "0."]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"duration": 0}, "invalid duration"),
        ({"duration": -1}, "invalid duration"),
        ({"elf_file": "none.elf"}, "no ELF file none.elf"),
        ({"output_file": "none/report.html"}, "no folder none"),
    ],
)
def test_what_cannot_be_is_refused_before_the_board_is_asked(esp_of, arguments, error):
    with pytest.raises(OperationError, match=error) as caught:
        esp_of("esp32").diagnostics.diagnostic_report(**arguments)
    assert caught.value.hint


def test_a_file_that_no_report_can_be_is_refused(esp_of, tmp_path):
    with pytest.raises(OperationError, match=r"unsupported report format: report\.pdf"):
        esp_of("esp32").diagnostics.diagnostic_report(output_file=tmp_path / "report.pdf")
    assert not list(tmp_path.glob("report*"))


def test_markdown(crashed, tmp_path):
    path = tmp_path / "report.md"
    report = crashed.diagnostics.diagnostic_report(output_file=path, duration=0.2)
    text = path.read_text()
    assert text == report.markdown
    assert text.startswith("# Diagnostic report: esp32\n")
    assert "- **high** (core\\_dump): there is a core dump" in text or "- **high** (core_dump): there is a core" in text
    assert "## Partition table" in text
    for line in text.splitlines():
        assert not line.startswith("|") or line.endswith("|")


def test_names_from_flash_are_no_markup(esp_of, tmp_path):
    esp = esp_of("esp32c3")
    esp.partitions.write([{**TABLE[0], "name": "<b>|x&"}])
    path = tmp_path / "report.html"
    report = esp.diagnostics.diagnostic_report(output_file=path, duration=0.2)
    Page(path.read_text())
    assert "<b>" not in path.read_text()
    assert "&lt;b&gt;|x&amp;" in path.read_text()
    assert "\\<b\\>\\|x&" in report.markdown


def test_boards_that_tell_little(esp_of):
    report = esp_of("locked").diagnostics.diagnostic_report(duration=0.2)
    assert report.sections["registers"].problem.endswith("in secure download mode")
    assert report.sections["security"].data is not None
    report = esp_of("esp8266").diagnostics.diagnostic_report(duration=0.2)
    assert report.chip_type == "esp8266"
    assert Page(report.html()).rows > 10


def test_a_file_that_is_there_already(esp_of, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("mine")
    with pytest.raises(OperationError, match="exists already"):
        esp_of("esp32").diagnostics.diagnostic_report(output_file=path)
    assert path.read_text() == "mine"


def test_a_boot_loop_is_told_once(make_esp, build_of, tmp_path, monkeypatch):
    """One notice with its count; the first and the last boot in full, and how many there were between them."""
    monkeypatch.setenv("PYTEST_ESP_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    (tmp_path / "boards.toml").write_text(
        '[boards.one]\nbackend = "sim"\nchip = "esp32c3"\napp = "selftest_app:CrashLoop"\n'
    )
    esp = make_esp(load_rack(tmp_path / "boards.toml"), "one")
    esp.flash.write(build_of("esp32c3"))
    report = esp.diagnostics.diagnostic_report(duration=2.0)
    boots, crashes = report.sections["performance"].data["boots"], report.sections["performance"].data["crashes"]
    assert len(crashes) > 4
    (told,) = [notice for notice in report.notices if notice.what == crashes[0]]
    assert told.count == crashes.count(crashes[0])
    text = report.markdown
    assert text.count(f"{told.count} times)") == 2  # the notice, and the section's own line
    rows = text.partition("boots")[2].partition("\n\n")[2].split("\n\n")[0].splitlines()[2:]
    assert [row.split("|")[1].strip()[-13:] for row in rows].count("more of these") == 1
    assert len(rows) < len(boots)
    assert f"{boots[0]['at']:.4g}" in rows[0]
    Page(report.html())


@pytest.mark.qemu
@pytest.mark.parametrize("chip", ["esp32c3"])
def test_on_qemu(qemu_esp, firmware_folder, chip):
    esp = qemu_esp(chip)
    esp.flash.write(firmware_folder / f"hello_world_{chip}")
    report = esp.diagnostics.diagnostic_report(duration=3.0)
    assert report.chip_type == chip
    assert report.sections["performance"].data["boots"]
    assert report.sections["registers"].data["reset_reason"] == "CHIP_POWER_ON"
    assert [image["problem"] for image in report.sections["flash"].data["images"]] == [None, None]
    Page(report.html())


def test_a_report_can_be_stopped_while_the_console_is_heard(esp_of, tmp_path):
    def stop(done, total):
        raise StoppedError("stopped")

    begun = time.monotonic()
    with pytest.raises(StoppedError):
        esp_of("esp32").diagnostics.diagnostic_report(
            output_file=tmp_path / "report.html", duration=60.0, progress=stop
        )
    assert time.monotonic() - begun < 20
    assert not (tmp_path / "report.html").exists()
