"""Tools for the catalogue of chips and modules."""

import http.server
import json
import threading

import pytest


@pytest.fixture(autouse=True)
def no_refresh(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_from_requirements_to_a_product(server):
    best = server.call("esp_product_recommend", thread_or_zigbee=True, min_flash="8MB", max_temperature=105)[
        "products"
    ][0]
    assert best["chip_type"] == "esp32c6"
    info = server.call("esp_product_info", product=best["parts"][0])
    assert info["asked_part"]["flash"] == 8 << 20
    assert info["product"]["ieee802154"]
    life = server.call("esp_product_availability", product=best["parts"][0])
    assert (life["status"], life["as_of"]) == ("active", "2026-08-28")
    assert "distributor" in life["stock"]


def test_search_and_compare(server):
    found = server.call("esp_product_search", query="wi-fi ethernet", kind="chip", status="active")
    assert {product["chip_type"] for product in found["products"]} == {"esp32", "esp32s31"}
    compared = server.call("esp_chip_compare", chips=["esp32c3", "esp32c6"])
    assert compared["rows"]["sram"] == [400 * 1024, 512 * 1024]
    assert "sram" in compared["differences"]


@pytest.mark.parametrize(
    ("tool", "arguments", "error"),
    [
        ("esp_product_info", {"product": "ESP32-C7"}, "no 'ESP32-C7'"),
        ("esp_product_availability", {"product": ""}, "no ''"),
        ("esp_chip_compare", {"chips": ["esp32"]}, "requires two or more names"),
        ("esp_chip_compare", {"chips": ["esp32", "esp33"]}, "no 'esp33'"),
        ("esp_product_search", {"min_flash": "much"}, "invalid flash"),
        ("esp_product_recommend", {"min_psram": -1}, "invalid PSRAM"),
    ],
)
def test_what_is_refused(server, tool, arguments, error):
    answer = server.call(tool, **arguments)
    assert not answer["success"]
    assert error in answer["error"]
    assert answer["hint"] or "wrong" in error


def test_the_vendor_is_asked_only_on_request(server, monkeypatch):
    asked = []
    rows = [{"mpn": f"ESP32-C3-{n}", "name": "ESP32-C3", "type": "SoC", "status": "EOL"} for n in range(30)]
    body = json.dumps({"results": [*rows, {"mpn": "ESP32-C3FH4", "name": "ESP32-C3", "status": "NRND"}]}).encode()

    class Vendor(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Vendor) as vendor:
        threading.Thread(target=vendor.serve_forever, daemon=True).start()
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setenv("PYTEST_ESP_CATALOGUE_URL", f"http://127.0.0.1:{vendor.server_port}/products")
        assert server.call("esp_product_availability", product="ESP32-C3FH4")["status"] == "active"
        assert asked == []
        answer = server.call("esp_product_availability", product="ESP32-C3FH4", refresh_from_vendor=True)
        assert (answer["status"], asked) == ("nrnd", ["/products"])
        vendor.shutdown()
    answer = server.call("esp_product_availability", product="ESP32-C3FH4", refresh_from_vendor=True)
    assert "cannot be fetched" in answer["error"]


def test_answers_fit_their_schemas(server):
    for name, arguments in [
        ("esp_product_search", {}),
        ("esp_product_info", {"product": "ESP32-S3-WROOM-1"}),
        ("esp_chip_compare", {"chips": ["esp32", "esp32p4", "esp8266"]}),
        ("esp_product_recommend", {"band_5ghz": True}),
        ("esp_product_availability", {"product": "ESP32-WROVER-E"}),
    ]:
        server.fits(name, arguments)
    server.fits("esp_product_info", {"product": "nothing"}, success=False)


def test_the_catalogue_is_a_resource(server):
    from esptool.targets import CHIP_DEFS

    content = server.read("esp://products/catalog")
    assert {product["chip_type"] for product in content["products"]} == set(CHIP_DEFS)
    assert content["as_of"] == "2026-08-28"
