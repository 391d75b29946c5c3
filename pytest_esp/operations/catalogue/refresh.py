"""Fetches the lifecycle of all parts from Espressif's product selector on request, and saves it.

Source: the selector's own web page reads ``/api/user/products``: an object with ``results``, one entry for each part
number with ``mpn``, ``name``, ``type``, ``status`` and ``replacedByName``. It is undocumented and may change.
"""

from __future__ import annotations

import datetime
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from platformdirs import user_cache_path

from pytest_esp import USER_AGENT
from pytest_esp.errors import OperationError
from pytest_esp.operations.registry import file_operation

URL = "https://products.espressif.com/api/user/products?language=en"
URL_VARIABLE = "PYTEST_ESP_CATALOGUE_URL"
"""Environment variable with another URL, e.g. of a mirror."""

_FORMAT = 1  # of the saved file
_LARGEST = 32 * 1024 * 1024
_SILENCE = 30.0  # seconds without a byte
_FEWEST = 20  # parts; the selector has some three hundred
_STATUSES = {"mass production": "active", "sample": "sample", "nrnd": "nrnd", "eol": "eol", "replaced": "replaced"}

Status = Literal["active", "sample", "nrnd", "replaced", "eol", "unknown"]
"""Lifecycle in the vendor's words: mass production, sample, not recommended for new designs, replaced, end of life."""


@dataclass(frozen=True)
class VendorPart:
    """The vendor's data for a part number; *family* is the product's name."""

    family: str
    status: Status
    replaced_by: str | None


@dataclass(frozen=True)
class Refreshed:
    """The fetched data: time in UTC (ISO 8601), URL, and the parts by part number."""

    fetched: str
    url: str
    parts: Mapping[str, VendorPart]


@dataclass(frozen=True)
class RefreshReport:
    """The result of a refresh.

    Attributes:
        url: source of the data.
        fetched: UTC, ISO 8601.
        parts: number of part numbers in the vendor's list.
        by_status: number of parts with each status.
        saved: the file with the data.
    """

    url: str
    fetched: str
    parts: int
    by_status: dict[str, int]
    saved: Path


@file_operation(group="products")
def refresh(url: str | None = None) -> RefreshReport:
    """Fetch the lifecycle of all parts from the vendor, and save it in the user's cache folder.

    Nothing is changed unless the response is complete and valid.

    Args:
        url: URL to use instead of the vendor's, or of that in PYTEST_ESP_CATALOGUE_URL.

    Raises:
        OperationError: if it cannot be fetched, or is incomplete or invalid.
    """
    address = url or os.environ.get(URL_VARIABLE) or URL
    if urlsplit(address).scheme not in ("http", "https"):
        raise OperationError(f"invalid URL {address!r}", hint="use https://... or http://...")
    parts = _parse(_fetch(address), address)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    path = _save(Refreshed(now, address, parts))
    counts: dict[str, int] = {}
    for part in parts.values():
        counts[part.status] = counts.get(part.status, 0) + 1
    return RefreshReport(address, now, len(parts), counts, path)


def refreshed() -> Refreshed | None:
    """Return the data saved by the last refresh; None if there was none.

    Raises:
        OperationError: if the file is damaged.
    """
    path = _path()
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    try:
        if content["format"] != _FORMAT:
            return None
        parts = {name: VendorPart(**entry) for name, entry in content["parts"].items()}
        return Refreshed(str(content["fetched"]), str(content["url"]), parts)
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, repr(error)) from error


def _damaged(path: Path, why: str) -> OperationError:
    return OperationError(f"{path} is damaged: {why}", hint="delete it, or refresh the catalogue again")


def _path() -> Path:
    return user_cache_path("pytest-esp") / "products.json"


def _save(content: Refreshed) -> Path:
    path = _path()
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"format": _FORMAT, **asdict(content)}, indent=1), "utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OperationError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def _fetch(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT, "Accept": "application/json"})
    hint = f"the catalogue is unchanged; set {URL_VARIABLE} to use a mirror, or https_proxy to use a proxy"
    try:
        with urllib.request.urlopen(request, timeout=_SILENCE) as response:
            data = response.read(_LARGEST + 1)
            announced = response.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        with error:
            raise OperationError(f"the server returned HTTP {error.code}: {url}", hint=hint) from error
    except http.client.IncompleteRead as error:
        raise OperationError(f"the download ended early, after {len(error.partial)} bytes: {url}", hint=hint) from error
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", None) or error
        raise OperationError(f"{url} cannot be fetched: {reason}", hint=hint) from error
    if len(data) > _LARGEST:
        raise OperationError(f"{url} has more than {_LARGEST} bytes: it is not a catalogue", hint=hint)
    if announced is not None and len(data) < int(announced):
        raise OperationError(f"the download ended early, after {len(data)} of {announced} bytes: {url}", hint=hint)
    return data


def _parse(data: bytes, url: str) -> dict[str, VendorPart]:
    wrong = f"{url} is not the catalogue"
    try:
        content = json.loads(data)
    except ValueError as error:
        raise OperationError(f"{wrong}: not JSON ({error})", hint="check for an error page of a proxy") from error
    rows = cast("dict[str, Any]", content).get("results") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise OperationError(f"{wrong}: it has no list 'results'", hint="check for a new format of the vendor")
    parts = dict(filter(None, (_vendor_part(row) for row in cast("list[Any]", rows))))
    if len(parts) < _FEWEST:
        raise OperationError(
            f"{wrong}: only {len(parts)} of its {len(rows)} entries have a part number and a lifecycle",
            hint="check for a new format of the vendor",
        )
    return parts


def _vendor_part(row: Any) -> tuple[str, VendorPart] | None:
    if not isinstance(row, dict):
        return None
    entry = cast("dict[str, Any]", row)
    number, family, status = entry.get("mpn"), entry.get("name"), entry.get("status")
    if not (isinstance(number, str) and number and isinstance(family, str) and isinstance(status, str)):
        return None
    found = cast(Status, _STATUSES.get(status.strip().casefold(), "unknown"))
    return number, VendorPart(family, found, str(entry.get("replacedByName") or "") or None)
