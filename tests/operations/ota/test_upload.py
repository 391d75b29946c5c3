"""Updates over HTTP: to a device's own server, which is a real one here."""

import contextlib
import email
import email.policy
import hashlib
import http.server
import socket
import ssl
import threading
import time

import pytest

from pytest_esp.errors import OperationError, RefusedError
from pytest_esp.operations.ota import package
from pytest_esp.operations.ota.upload import upload


class Device(http.server.BaseHTTPRequestHandler):
    """Takes an update at /update, as the servers of apps do."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.command, self.path, dict(self.headers), body))
        status, answer = self.server.answer
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "file:///etc/passwd")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.fixture
def device():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Device)
    server.seen, server.answer = [], (200, b"updated, rebooting")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}/update?slot=next"
    yield server
    server.shutdown()
    server.server_close()


def test_the_device_gets_the_image(device, package_of, image_of):
    seen = []
    result = upload(package_of("esp32c3", "2.0"), device.url, progress=lambda *done: seen.append(done))
    assert (result.status, result.answer, result.target_url) == (200, "updated, rebooting", device.url)
    ((method, path, headers, body),) = device.seen
    assert (method, path, body) == ("POST", "/update?slot=next", image_of("esp32c3", "2.0"))
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["X-Update-Version"] == "2.0"
    assert headers["X-Update-SHA256"] == hashlib.sha256(body).hexdigest()
    assert seen[-1] == (len(body), len(body)) == (result.bytes_sent, result.bytes_sent)


def test_the_form_of_arduino(device, package_of, image_of):
    upload(package_of("esp32", "2.0"), device.url, form_field="update", headers={"Authorization": "Basic eDp5"})
    ((_, _, headers, body),) = device.seen
    assert headers["Authorization"] == "Basic eDp5"
    form = email.message_from_bytes(
        b"Content-Type: " + headers["Content-Type"].encode() + b"\r\n\r\n" + body, policy=email.policy.HTTP
    )
    (part,) = form.iter_parts()
    assert part.get_param("name", header="content-disposition") == "update"
    assert part.get_payload(decode=True) == image_of("esp32", "2.0")


@pytest.mark.parametrize(("status", "answer"), [(401, b"who are you?"), (500, b""), (302, b"")])
def test_a_device_that_refuses(device, package_of, status, answer):
    device.answer = (status, answer)
    with pytest.raises(OperationError, match=f"HTTP {status}") as caught:
        upload(package_of("esp32", "2.0"), device.url)
    assert answer.decode() in caught.value.hint


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://device/",
        "http://",
        "device",
        "http://device:port/",
        "http://a b/",
        "http://[x/",
        "http://x/größe",
    ],
)
def test_what_is_no_address(url, package_of):
    with pytest.raises(RefusedError, match="invalid update URL"):
        upload(package_of("esp32", "2.0"), url)


def test_passwords_are_not_shown(package_of):
    with pytest.raises(RefusedError) as caught:
        upload(package_of("esp32", "2.0"), "http://me:hunter2@device/")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("headers", [{"X": "a\r\nY: b"}, {"X": "€"}, {"a b": "c"}, {"Content-Length": "1"}])
def test_headers_that_cannot_be_sent(device, package_of, headers):
    with pytest.raises(OperationError, match="invalid header"):
        upload(package_of("esp32", "2.0"), device.url, headers=headers)
    assert not device.seen


def test_nobody_listens(package_of):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(OperationError, match="cannot be reached"):
        upload(package_of("esp32", "2.0"), f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize(
    ("reads", "words"), [(0, "closed the connection|cannot be reached"), (None, "timed out waiting")]
)
def test_a_device_that_dies_or_hangs(package_of, reads, words):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            client, _ = server.accept()
            if reads is None:
                client.recv(1)
                ended.wait(5)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()

        ended = threading.Event()
        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(OperationError, match=words):
            upload(package_of("esp32", "2.0"), f"http://127.0.0.1:{server.getsockname()[1]}/", timeout=0.3)
        ended.set()
        thread.join()


@pytest.fixture
def large_package(image_of, tmp_path):
    """More than what fits into the buffers of a connection."""
    (tmp_path / "large.bin").write_bytes(image_of("esp32", "2.0").ljust(16 << 20, b"\xff"))
    return package.create(tmp_path / "large.bin", "2.0", tmp_path / "large.espota").path


def impatient(answer, *, afterwards=lambda client: None):
    """A device that reads no more than the beginning of a request; returns its address."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        with server, server.accept()[0] as client:
            client.recv(1000)
            client.sendall(answer)
            afterwards(client)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}/"


def test_a_device_that_refuses_before_it_has_all(large_package):
    answer = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 12\r\n\r\nwho are you?"
    with pytest.raises(OperationError, match="HTTP 401 Unauthorized") as caught:
        upload(large_package, impatient(answer))
    assert caught.value.hint == "who are you?"


def test_a_device_that_is_content_before_it_has_all(large_package):
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    with pytest.raises(OperationError, match="closed the connection"):
        upload(large_package, impatient(answer))


def test_an_answer_that_never_ends(package_of):
    def drip(client):
        with contextlib.suppress(OSError):
            while True:
                client.sendall(b".")
                time.sleep(0.02)

    url = impatient(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", afterwards=drip)
    result = upload(package_of("esp32", "2.0"), url, timeout=0.3)
    assert set(result.answer) == {"."}


def test_a_device_that_points_elsewhere(device, package_of):
    device.answer = (302, b"")
    with pytest.raises(OperationError, match="redirects the update: HTTP 302 to 'file:///etc/passwd'") as caught:
        upload(package_of("esp32", "2.0"), device.url)
    assert "redirects are not followed" in caught.value.hint


def test_an_unsigned_update_is_not_sent(device, package_of, keys):
    private, public = keys
    with pytest.raises(RefusedError, match="is not signed"):
        upload(package_of("esp32", "2.0"), device.url, public_key_file=public)
    assert not device.seen
    assert upload(package_of("esp32", "2.0", key_file=private), device.url, public_key_file=public).status == 200


def test_over_tls_with_the_devices_own_certificate(device, package_of, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    device.socket = context.wrap_socket(device.socket, server_side=True)
    url = device.url.replace("http://", "https://")
    with pytest.raises(OperationError, match="is not trusted"):
        upload(package_of("esp32", "2.0"), url)
    assert upload(package_of("esp32", "2.0"), url, ca_file=certificate[0]).status == 200


@pytest.fixture
def certificate(tmp_path):
    """A certificate of 127.0.0.1, signed by itself, and its key."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "device")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    paths = tmp_path / "device.pem", tmp_path / "device.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths
