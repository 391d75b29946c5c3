"""The lifecycle from a stand-in for the vendor's server, with correct, wrong, incomplete and no answers."""

import http.server
import json
import socket
import threading

import pytest

from pytest_esp.errors import OperationError
from pytest_esp.operations.catalogue.queries import availability, search
from pytest_esp.operations.catalogue.refresh import refresh


def row(number, name, status, replaced_by=""):
    return {"mpn": number, "name": name, "type": "Module", "status": status, "replacedByName": replaced_by, "pins": 53}


ROWS = [
    row("ESP32-C3-MINI-1-N4X", "ESP32-C3-MINI-1", "EOL", "ESP32-C3-MINI-9-N4"),
    row("ESP32-C3-MINI-1-H16X", "ESP32-C3-MINI-1", "Sample"),
    row("ESP8685-WROOM-09-H4", "ESP8685-WROOM-09", "Mass Production"),
    *(row(f"ESP99-{number}", "ESP99", "Mass Production") for number in range(30)),
]


class Vendor:
    """A server on the loopback interface; what it answers can be changed."""

    def __init__(self):
        self.answer = json.dumps({"results": ROWS}).encode()
        self.status = 200
        self.cut = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(outer.answer)))
                self.end_headers()
                self.wfile.write(outer.answer[: len(outer.answer) - outer.cut])

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/api/user/products"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def stop(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def vendor(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    server = Vendor()
    monkeypatch.setenv("PYTEST_ESP_CATALOGUE_URL", server.url)
    yield server
    server.stop()


def test_the_vendor_knows_better(vendor):
    assert availability("ESP32-C3-MINI-1-N4X").status == "active"
    report = refresh()
    assert (report.parts, report.url) == (33, vendor.url)
    assert report.by_status == {"eol": 1, "sample": 1, "active": 31}
    found = availability("ESP32-C3-MINI-1-N4X")
    assert (found.status, found.parts[0].replaced_by) == ("eol", "ESP32-C3-MINI-9-N4")
    assert (found.as_of, found.source) == (report.fetched, vendor.url)


def test_new_parts_are_found(vendor):
    refresh()
    assert "ESP32-C3-MINI-1-H16X" in search("ESP32-C3-MINI-1 ", status="sample").products[0].parts
    assert availability("esp8685-wroom-09-h4").name == "ESP8685-WROOM-09"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"<html>log in first</html>", "not JSON"),
        (b"[]", "no list 'results'"),
        (b'{"results": {}}', "no list 'results'"),
        (b'{"results": [{"mpn": "ESP32"}, 7, {"mpn": "X", "name": "X", "status": 1}]}', "only 0 of its 3 entries"),
        (b"", "not JSON"),
    ],
)
def test_an_answer_that_is_something_else(vendor, answer, error):
    vendor.answer = answer
    with pytest.raises(OperationError, match=error):
        refresh()
    assert availability("ESP32-C3-MINI-1-N4X").source == "the data file of pytest-esp"


@pytest.mark.parametrize("cut", [1, 500])
def test_an_answer_that_is_cut(vendor, cut):
    vendor.cut = cut
    with pytest.raises(OperationError, match="ended early"):
        refresh()


def test_a_failure_keeps_what_an_earlier_refresh_has_brought(vendor):
    refresh()
    vendor.status = 503
    with pytest.raises(OperationError, match="HTTP 503") as caught:
        refresh()
    assert "PYTEST_ESP_CATALOGUE_URL" in caught.value.hint
    assert availability("ESP32-C3-MINI-1-N4X").status == "eol"


def test_no_network(vendor):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(OperationError, match="cannot be fetched"):
        refresh(f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "products"])
def test_only_servers(vendor, url):
    with pytest.raises(OperationError, match="invalid URL"):
        refresh(url)


def test_a_damaged_cache_is_named(vendor, tmp_path):
    path = refresh().saved
    path.write_text("{")
    with pytest.raises(OperationError, match="is damaged"):
        availability("ESP32-C3")
    refresh()
    assert availability("ESP32-C3").status == "active"
