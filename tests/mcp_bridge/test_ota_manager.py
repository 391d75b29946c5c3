"""Tools for updates: a board is made ready, updated, and taken back; devices are updated over HTTP."""

import shutil
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

BUILD = Path(__file__).parents[1] / "firmware" / "build" / "esp32c3"


@pytest.fixture
def updates(server):
    """The server; in its folder are a build, and two keys."""
    shutil.copytree(BUILD, server.folder / "build")
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (server.folder / "key.pem").write_bytes(private)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (server.folder / "key.pub.pem").write_bytes(public)
    server.call("esp_flash_firmware", firmware_path="build", port="c3")
    return server


def test_from_a_build_to_an_update_and_back(updates):
    made = updates.call("esp_ota_package_create", firmware_file="build", version="1.0.1", key_file="key.pem")
    assert Path(made["path"]) == updates.folder / "build-1.0.1.espota"
    odd = updates.call("esp_ota_package_create", firmware_file="build", version="a/../../b")
    assert Path(odd["path"]) == updates.folder / "build-a_.._.._b.espota"
    assert (made["manifest"]["chip_type"], made["signature"]) == ("esp32c3", "Ed25519")
    ready = updates.call("esp_ota_flash_prepare", port="c3")
    assert (ready["running"], ready["next_slot"], ready["warnings"]) == ("factory", "ota_0", [])
    done = updates.call("esp_ota_deploy", package=made["path"], port="c3", public_key_file="key.pub.pem")
    assert (done["slot"], done["previous"], done["started"]) == ("ota_0", "factory", True)
    assert updates.progress
    assert updates.call("esp_ota_rollback", port="c3")["slot"] == "factory"
    assert "cannot roll back: otadata" in updates.call("esp_ota_rollback", port="c3")["error"]


def test_a_device_takes_an_update_over_http(updates):
    seen = []

    class Device(BaseHTTPRequestHandler):
        def do_PUT(self):
            seen.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    device = HTTPServer(("127.0.0.1", 0), Device)
    Thread(target=device.handle_request, daemon=True).start()
    package = updates.call("esp_ota_package_create", firmware_file="build", version="2")["path"]
    url = f"http://127.0.0.1:{device.server_port}/ota"
    sent = updates.call("esp_ota_deploy", package=package, target_url=url, method="PUT")
    device.server_close()
    assert (sent["success"], sent["status"], sent["port"]) == (True, 204, None)
    assert seen == [(BUILD / "pytest_esp_test.bin").read_bytes()]


@pytest.mark.parametrize(
    ("tool", "arguments", "error"),
    [
        ("esp_ota_package_create", {"firmware_file": "nothing", "version": "1"}, "nothing"),
        ("esp_ota_package_create", {"firmware_file": "../x", "version": "1"}, "outside the folders"),
        (
            "esp_ota_package_create",
            {"firmware_file": "build", "version": "1", "output_file": "../x"},
            "outside the folders",
        ),
        ("esp_ota_deploy", {"package": "none.espota", "port": "c3"}, "none.espota does not exist"),
        ("esp_ota_deploy", {"package": "/etc/passwd", "port": "c3"}, "outside the folders"),
        ("esp_ota_deploy", {"package": "x", "target_url": "file:///etc/passwd"}, "invalid update URL"),
        ("esp_ota_deploy", {"package": "x", "target_url": "http://d/", "port": "c3"}, "cannot be used together"),
        ("esp_ota_deploy", {"package": "x", "port": "guarded"}, "does not allow 'write'"),
        ("esp_ota_flash_prepare", {"port": "esp32"}, "there is no partition table"),
    ],
)
def test_what_is_refused(updates, tool, arguments, error):
    answer = updates.call(tool, **arguments)
    assert error in answer["error"]
    assert not answer["success"]


def test_a_server_with_a_key_of_its_own(serve, updates):
    unsigned = updates.call("esp_ota_package_create", firmware_file="build", version="2")["path"]
    signed = updates.call("esp_ota_package_create", firmware_file="build", version="3", key_file="key.pem")["path"]
    updates.call("esp_release", board="c3")
    strict = serve(update_key=updates.folder / "key.pub.pem")
    assert "is not signed" in strict.call("esp_ota_deploy", package=unsigned, port="c3")["error"]
    assert "its own key" in strict.call("esp_ota_deploy", package=signed, port="c3", public_key_file="key.pem")["error"]
    assert "is not signed" in strict.call("esp_ota_deploy", package=unsigned, target_url="http://127.0.0.1:9/")["error"]
