"""Updates over HTTP: sends the app image to a server on the device, which installs it."""

from __future__ import annotations

import http.client
import os
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from pytest_esp.errors import OperationError, RefusedError
from pytest_esp.formats.files import ReadPath, resolve
from pytest_esp.link.logs import Progress
from pytest_esp.operations.ota.package import Package, unpack
from pytest_esp.operations.registry import file_operation
from pytest_esp.operations.security.secret_names import is_secret_name
from pytest_esp.secrets import hide, remember

_CHUNK = 16 * 1024
_MOST_TEXT = 4096  # bytes of a response to keep
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, token
_OWN_HEADERS = ("content-length", "content-type", "host", "transfer-encoding")


@dataclass(frozen=True)
class Upload:
    """The response of the device.

    Attributes:
        target_url: without user name and password.
        status: HTTP status, 200 to 299.
        answer: the beginning of the response body.
        bytes_sent: size of the image.
        elapsed_seconds: time until the response.
    """

    target_url: str
    status: int
    answer: str
    bytes_sent: int
    elapsed_seconds: float


@file_operation(group="ota")
def upload(
    package: ReadPath,
    target_url: str,
    *,
    public_key_file: ReadPath | None = None,
    method: Literal["POST", "PUT"] = "POST",
    form_field: str | None = None,
    headers: Mapping[str, str] | None = None,
    ca_file: ReadPath | None = None,
    timeout: float = 30.0,
    progress: Progress | None = None,
) -> Upload:
    """Send the image of a package to a device, which installs it.

    The body is the image (``application/octet-stream``), as expected by ESP-IDF apps with ``httpd_req_recv``, or one
    field of a form, as expected by Arduino's ``HTTPUpdateServer``. Headers contain its version (``X-Update-Version``)
    and SHA-256 (``X-Update-SHA256``). Redirects are not followed.

    Args:
        package: file of the package.
        target_url: update URL of the device, http or https.
        public_key_file: public key in PEM; the package must then be signed with its private key.
        method: HTTP method.
        form_field: name of the field for a ``multipart/form-data`` body, e.g. ``"update"`` for Arduino.
        headers: additional HTTP headers, e.g. ``Authorization``; their values are never shown.
        ca_file: certificates in PEM to verify the device's certificate with, instead of the system's.
        timeout: maximum seconds without receiving or sending a byte.
        progress: called with bytes done and total.

    Raises:
        RefusedError: if the URL is not supported, or the package is not signed as required.
        OperationError: if the package is damaged, or the device cannot be reached or rejects it.
    """
    target = _target(target_url)
    fields = _headers(headers)
    update, image = unpack(package, public_key_file)
    head, tail, kind = _envelope(update, form_field)
    size = len(image)
    fields |= {
        "Content-Type": kind,
        "Content-Length": str(len(head) + size + len(tail)),
        "X-Update-Version": update.manifest.version.encode("ascii", "replace").decode(),
        "X-Update-SHA256": update.manifest.sha256,
    }
    shown = target._replace(netloc=_address(target)).geturl()
    path = target._replace(scheme="", netloc="", fragment="").geturl() or "/"
    begun = time.monotonic()
    connection = _connection(target, ca_file, timeout)
    try:
        response, sent = _exchange(connection, method, path, _body(head, image, tail, progress), fields)
        answer = _text_of(response, timeout)
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(shown, error) from error
    finally:
        connection.close()
    if not 200 <= response.status < 300:
        raise _refused(response, answer, f"sending {size} bytes to {shown}")
    if not sent:
        raise _unreachable(shown, BrokenPipeError())
    return Upload(shown, response.status, answer, size, round(time.monotonic() - begun, 3))


def _target(url: str) -> SplitResult:
    try:
        target = urlsplit(url)
        usable = target.scheme in ("http", "https") and target.hostname and target.port != 0
    except ValueError:
        usable, target = False, urlsplit("")
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise RefusedError(
            f"invalid update URL {url.partition('@')[2] or url!r}", hint="use http://DEVICE/PATH or https://DEVICE/PATH"
        )
    if target.username is not None:
        raise RefusedError("the URL contains a user name or password", hint="use an Authorization header instead")
    return target


def _address(target: SplitResult) -> str:
    host = f"[{target.hostname}]" if ":" in (target.hostname or "") else str(target.hostname)
    return host if target.port is None else f"{host}:{target.port}"


def _headers(given: Mapping[str, str] | None) -> dict[str, str]:
    fields = dict(given or {})
    for name, value in fields.items():
        if is_secret_name(name):
            remember(value, *value.split()[1:])  # "Bearer ...": without the word, too
    for name, value in fields.items():
        is_text = value.isprintable() and value == value.encode("latin-1", "replace").decode("latin-1")
        if not _HEADER.fullmatch(name) or not is_text or name.lower() in _OWN_HEADERS:
            raise OperationError(
                f"invalid header {name!r}", hint="use one line of text (Latin-1), and a name that HTTP does not reserve"
            )
    return fields


def _envelope(update: Package, form_field: str | None) -> tuple[bytes, bytes, str]:
    """Return the data before and after the image, and the content type."""
    if form_field is None:
        return b"", b"", "application/octet-stream"
    if not form_field.isprintable() or '"' in form_field:
        raise OperationError(f"invalid field name {form_field!r}")
    border = f"update-{update.manifest.sha256[:32]}"
    head = (
        f'--{border}\r\nContent-Disposition: form-data; name="{form_field}"; filename="firmware.bin"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return head.encode(), f"\r\n--{border}--\r\n".encode(), f"multipart/form-data; boundary={border}"


def _body(head: bytes, image: bytes, tail: bytes, progress: Progress | None) -> Iterator[bytes]:
    yield head
    for start in range(0, len(image), _CHUNK):
        yield image[start : start + _CHUNK]
        if progress is not None:
            progress(min(start + _CHUNK, len(image)), len(image))
    yield tail


def _connection(
    target: SplitResult, ca_file: str | os.PathLike[str] | None, timeout: float
) -> http.client.HTTPConnection:
    host = str(target.hostname)
    if target.scheme == "http":
        return http.client.HTTPConnection(host, target.port, timeout=timeout)
    try:
        context = ssl.create_default_context(cafile=resolve(ca_file) if ca_file is not None else None)
    except OSError as error:
        raise OperationError(f"the certificates in {ca_file} cannot be used: {error.strerror or error}") from error
    return http.client.HTTPSConnection(host, target.port, timeout=timeout, context=context)


def _exchange(
    connection: http.client.HTTPConnection, method: str, path: str, body: Iterator[bytes], fields: Mapping[str, str]
) -> tuple[http.client.HTTPResponse, bool]:
    """Return the response, and whether everything was sent: a device may reject a request before reading all of it."""
    connection.connect()
    try:
        connection.request(method, path, body=body, headers=dict(fields))
    except (BrokenPipeError, ConnectionResetError):
        return connection.getresponse(), False
    return connection.getresponse(), True


def _text_of(response: http.client.HTTPResponse, timeout: float) -> str:
    """Return the beginning of a response, as far as it arrives in time."""
    deadline, parts, missing = time.monotonic() + timeout, list[bytes](), _MOST_TEXT
    while missing and time.monotonic() < deadline and (part := response.read1(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts).decode("utf-8", "replace")


def _refused(response: http.client.HTTPResponse, answer: str, attempted: str) -> OperationError:
    elsewhere = response.getheader("Location")
    if 300 <= response.status < 400 and elsewhere is not None:
        return OperationError(
            f"the device redirects the update: HTTP {response.status} to {elsewhere[:200]!r}",
            attempted=attempted,
            hint="redirects are not followed; use that URL if it is the right one",
        )
    return OperationError(
        f"the device rejected the update: HTTP {response.status} {response.reason}",
        attempted=attempted,
        hint=hide(answer.strip())[:200] or "check that the device accepts updates at this URL, with this method",
    )


def _unreachable(url: str, error: Exception) -> OperationError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return OperationError(
            f"the certificate of {url} is not trusted: {error.verify_message}", hint="give its certificate as ca_file"
        )
    if isinstance(error, TimeoutError):
        message = f"timed out waiting for {url}"
    elif isinstance(error, (BrokenPipeError, ConnectionResetError, http.client.RemoteDisconnected)):
        message = f"{url} closed the connection"
    else:
        message = f"{url} cannot be reached: {error}"
    return OperationError(
        message, hint="check that the device is on and listens there; an incomplete update leaves its old app unchanged"
    )
