"""What the app prints after a reset, and from a board that floods."""

import pytest

from pytest_esp.operations.chip import running

APP = """
from pytest_esp import SimApp, call_later


class Chatty(SimApp):
    '''Logs in pieces, and never at the end of a line.'''

    def start(self):
        self.send(b"app_main\\r\\nsix ")
        self.timer = call_later(0.005, self.go_on)

    def go_on(self):
        self.send(b"times nine\\r\\n" + b"x" * 1000 + b"\\r\\nsix ")
        self.timer = call_later(0.005, self.go_on)

    def stop(self):
        self.timer.cancel()
"""


@pytest.fixture
def chatty(tmp_path, monkeypatch):
    (tmp_path / "chatty_app.py").write_text(APP)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    return "chatty_app:Chatty"


@pytest.fixture(params=["in this process", "served"])
def link(request, chatty, make_esp, devkit, flash_of, build_of, tmp_path):
    if request.param == "served":
        with devkit("esp32c3", app=chatty).link() as served:
            yield served
    else:
        flash = tmp_path / "here.bin"
        flash.write_bytes(bytes(flash_of(build_of("esp32c3"))).ljust(4 << 20, b"\xff"))
        yield make_esp(backend="sim", chip="esp32c3", app=chatty, flash_file=str(flash)).link


@pytest.mark.parametrize("operation", [running.monitor, running.run_firmware])
def test_output_begins_at_the_reset(link, operation):
    for _ in range(3):
        link.console.listen(0.05)  # the reset cuts a line
        said = operation(link, 0.3, **({"reset": True} if operation is running.monitor else {}))
        texts = [text for _, text in said.lines]
        assert texts[0].startswith("ESP-ROM:esp32c3")
        assert texts[1].startswith("Build:")
        assert texts.count("app_main") == 1
        assert said.lines[0][0] == 0.0
        assert said.lines[-1][0] > 0.1


def test_without_a_reset_it_begins_with_a_whole_line(link):
    link.boot().listen(0.1)
    said = running.monitor(link, 0.2)
    assert said.lines[0][1] in ("six times nine", "x" * 1000)
    assert said.dropped_bytes == 0


def test_a_flood_is_bounded_and_says_what_was_dropped(link, monkeypatch):
    monkeypatch.setattr(running, "_MOST_OUTPUT", 3000)
    said = running.monitor(link, 0.3, reset=True)
    assert said.dropped_bytes > 0
    assert sum(len(text) + 2 for _, text in said.lines) <= 3000 + 2
    run = running.run_firmware(link, 0.3)
    assert run.dropped_bytes > 0
    assert len(run.output) <= 3000
    assert (run.state, run.reason) == ("running", "POWERON")
    assert run.project == "pytest_esp_test"
