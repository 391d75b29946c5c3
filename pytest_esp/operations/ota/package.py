"""An update as one file: the app image, a manifest with digests, and a signature.

A package is a ZIP archive of ``manifest.json``, ``app.bin`` and, if it is signed, ``manifest.sig``: the signature of
the manifest's bytes, by Ed25519 (RFC 8032), or by ECDSA on P-256 with SHA-256 (FIPS 186-5, DER).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from pytest_esp.errors import FirmwareError, OperationError, RefusedError
from pytest_esp.formats.files import ReadPath, WritePath, new_file, resolve, save
from pytest_esp.formats.firmware import Firmware
from pytest_esp.formats.images import app_of, chip_of
from pytest_esp.formats.regions import Region, is_blank
from pytest_esp.operations.firmware.image_report import report
from pytest_esp.operations.registry import file_operation
from pytest_esp.operations.security.secret_names import remember_key

FORMAT = "pytest-esp update 1"
SUFFIX = ".espota"
_MANIFEST, _IMAGE, _SIGNATURE = "manifest.json", "app.bin", "manifest.sig"
# No app is larger than what a chip can map; manifests and signatures are far smaller than these limits.
_LIMITS = {_MANIFEST: 64 * 1024, _IMAGE: 32 * 1024 * 1024, _SIGNATURE: 1024}
_MAX_VERSION = 128
_NOT_IN_NAMES = re.compile(r"[^\w.+-]")
_ONE_APP = "give the image of a single app (an update replaces nothing but the app)"

_PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
_PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey


@dataclass(frozen=True)
class Manifest:
    """The contents of a package. Digests are 64 hex digits.

    Attributes:
        format: `FORMAT`.
        version: version of the update, as given by its author.
        chip_type: as esptool names it.
        project: from the app's descriptor, like *app_version*, *idf_version* and *elf_sha256*; empty without one.
        size: of the image in bytes.
        sha256: of the image.
        created: UTC, ISO 8601.
    """

    format: str
    version: str
    chip_type: str
    project: str
    app_version: str
    idf_version: str
    elf_sha256: str
    size: int
    sha256: str
    created: str


@dataclass(frozen=True)
class Package:
    """An update that was verified.

    Attributes:
        path: its file.
        signature: ``"Ed25519"`` or ``"ECDSA-P256"``; None if it is not signed.
        signed_by: SHA-256 of the public key (DER) that verified the signature; None if no key was given.
    """

    path: Path
    manifest: Manifest
    signature: str | None
    signed_by: str | None


@file_operation(group="ota")
def create(
    firmware_file: ReadPath,
    version: str,
    output_file: WritePath | None = None,
    *,
    key_file: ReadPath | None = None,
    overwrite: bool = False,
) -> Package:
    """Create an update package from an app: its image, a manifest with the SHA-256, and a signature if a key is given.

    Args:
        firmware_file: the image of an app, or a build folder whose app to use.
        version: version of the update; one line.
        output_file: file for the package; by default FIRMWARE-VERSION.espota beside *firmware_file*.
        key_file: private key in PEM, Ed25519 or P-256, to sign it with.
        overwrite: replace *output_file* if it exists.

    Raises:
        FirmwareError: if there is no app, or it is damaged.
        OperationError: if the version, the key or the file is invalid.
    """
    beside = f"{Path(firmware_file).with_suffix('')}-{_NOT_IN_NAMES.sub('_', version)}{SUFFIX}"
    path = new_file(beside if output_file is None else output_file, overwrite)
    if not version.strip() or not version.isprintable() or len(version) > _MAX_VERSION:
        raise OperationError(f"invalid version {version!r}", hint=f"use up to {_MAX_VERSION} printable characters")
    key = _private_key(Path(key_file)) if key_file is not None else None
    region = _app_of_build(Firmware.open(firmware_file))
    manifest = _describe(region, version)
    text = (json.dumps(asdict(manifest), indent=2) + "\n").encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr(_MANIFEST, text)
        out.writestr(_IMAGE, region.data)
        if key is not None:
            out.writestr(_SIGNATURE, _sign(key, text))
    save(path, archive.getvalue())
    return _opened(path, key.public_key() if key else None)[0]


@file_operation(group="ota")
def read(package: ReadPath, *, public_key_file: ReadPath | None = None) -> Package:
    """Open a package, and verify it completely: manifest, size, SHA-256, the image itself, and the signature.

    Args:
        package: file of the package.
        public_key_file: public key in PEM; the package must then be signed with its private key.

    Raises:
        OperationError: if it cannot be read, is not a package, or is damaged.
        RefusedError: if *public_key_file* is given and the package is not signed, or with another key.
        FirmwareError: if the image is damaged.
    """
    return unpack(package, public_key_file)[0]


def unpack(path: str | os.PathLike[str], public_key_file: str | os.PathLike[str] | None) -> tuple[Package, bytes]:
    """Open a package like `read`; return it and the image.

    Raises:
        OperationError, RefusedError, FirmwareError: see `read`.
    """
    return _opened(Path(path), _public_key(Path(public_key_file)) if public_key_file is not None else None)


# -- making one


def _app_of_build(firmware: Firmware) -> Region:
    """Return the only app of a build."""
    apps = [region for region in firmware.regions if app_of(region.data) is not None]
    if len(apps) == 1:
        return apps[0]
    if not apps and len(firmware.regions) == 1 and chip_of(firmware.regions[0].data):
        return firmware.regions[0]  # an app that was built without ESP-IDF has no descriptor
    what = f"{len(apps)} apps" if apps else "no app"
    raise FirmwareError(f"{firmware.name} has {what}", hint=_ONE_APP)


def _describe(region: Region, version: str) -> Manifest:
    chip = check_app(region.data, region.source)
    app = app_of(region.data)
    return Manifest(
        format=FORMAT,
        version=version,
        chip_type=chip,
        project=app.project if app else "",
        app_version=app.version if app else "",
        idf_version=app.idf_version if app else "",
        elf_sha256=app.elf_sha256 if app else "",
        size=region.size,
        sha256=_sha256(region.data),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def check_app(image: bytes, source: str) -> str:
    """Verify an image's checksum and hash as the bootloader does; return its chip.

    Raises:
        FirmwareError: if it is not an app, more than one, or damaged.
    """
    found = report(image, source)
    if found.chip_type == "esp8266":
        raise FirmwareError(f"{source} is for the ESP8266", hint="use a build for another chip")
    if not found.checksum_valid or found.hash_valid is False:
        raise FirmwareError(f"{source} is damaged: its checksum or hash is wrong", hint="build it again")
    if found.problem is not None:
        raise FirmwareError(f"{source} is damaged: {found.problem}", hint="build it again")
    if found.kind != "app":
        # The bootloader would also start a slot with a bootloader in it, and the board would be lost.
        raise FirmwareError(f"{source} begins with a {found.kind}, not with an app", hint=_ONE_APP)
    rest = image[found.end - found.offset :]
    if any(rest) and not is_blank(rest):
        raise FirmwareError(f"{source} has {len(rest)} unexpected bytes after its app", hint=_ONE_APP)
    return found.chip_type


# -- reading one


def _opened(path: Path, key: _PublicKey | None) -> tuple[Package, bytes]:
    parts = _parts(path)
    signature = parts.get(_SIGNATURE)
    if key is not None:
        if signature is None:
            raise RefusedError(f"{path} is not signed, but a key is set", hint="use a signed package, or omit the key")
        _verify(key, signature, parts[_MANIFEST], path)
    manifest = _manifest(parts[_MANIFEST], path)
    image = parts[_IMAGE]
    if len(image) != manifest.size or _sha256(image) != manifest.sha256:
        raise OperationError(f"{path}: the image does not match its manifest", hint="fetch the package again")
    if check_app(image, f"the image in {path}") != manifest.chip_type:
        raise OperationError(f"{path}: the image is not for the {manifest.chip_type}, the chip in its manifest")
    return Package(path, manifest, _kind(signature), _fingerprint(key) if key else None), image


def _parts(path: Path) -> dict[str, bytes]:
    """Return the members of the archive, after checking their sizes."""
    try:
        with resolve(path).open("rb") as file, zipfile.ZipFile(file) as archive:
            found = {member.filename: member for member in archive.infolist()}
            missing = [name for name in (_MANIFEST, _IMAGE) if name not in found]
            strange = sorted(found.keys() - _LIMITS.keys())
            if missing or strange or len(found) != len(archive.infolist()):
                wrong = f"has no {missing[0]}" if missing else f"contains {', '.join(strange) or 'a file twice'}"
                raise OperationError(
                    f"{path} is not an update package: it {wrong}", hint="create one from the app image"
                )
            return {name: _read(archive, found[name]) for name in found}
    except FileNotFoundError as error:
        raise OperationError(f"package {path} does not exist", hint="create one from the app's image") from error
    except (OperationError, RefusedError) as error:
        error.attempted = error.attempted or f"reading {path}"
        raise
    except OSError as error:
        raise OperationError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # zipfile and zlib raise many kinds of errors for damaged archives
        raise OperationError(
            f"{path} is not an update package, or damaged: {error}", hint="create one from the app's image"
        ) from error


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    limit = _LIMITS[member.filename]
    with archive.open(member) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OperationError(f"{member.filename} is larger than {limit} bytes")
    return data


def _manifest(text: bytes, path: Path) -> Manifest:
    try:
        found = json.loads(text)
        values = {item.name: found.pop(item.name) for item in fields(Manifest)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OperationError(f"{path}: its manifest cannot be read: {error}") from error
    wrong = [item.name for item in fields(Manifest) if type(values[item.name]).__name__ != item.type]
    if found or wrong or values["format"] != FORMAT:
        problem = f"unknown {sorted(found)}" if found else f"invalid {wrong or values['format']}"
        raise OperationError(f"{path}: its manifest does not have the format {FORMAT!r}: {problem}")
    if not str(values["version"]).isprintable():
        raise OperationError(f"{path}: its version {values['version']!r} is not one line of text")
    return Manifest(**values)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- signatures


def _sign(key: _PrivateKey, data: bytes) -> bytes:
    return key.sign(data) if isinstance(key, ed25519.Ed25519PrivateKey) else key.sign(data, ec.ECDSA(hashes.SHA256()))


def _verify(key: _PublicKey, signature: bytes, data: bytes, path: Path) -> None:
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, data)
        else:
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise RefusedError(
            f"{path} was not signed with this key, or was modified afterwards", hint="do not install it"
        ) from error


def _kind(signature: bytes | None) -> str | None:
    if signature is None:
        return None
    return "Ed25519" if len(signature) == 64 else "ECDSA-P256"  # DER sequences of two integers have other lengths


def _fingerprint(key: _PublicKey) -> str:
    return _sha256(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))


def _private_key(path: Path) -> _PrivateKey:
    key = _load_key(path, lambda data: serialization.load_pem_private_key(remember_key(data), None), "private")
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise _wrong_kind(path)


def _public_key(path: Path) -> _PublicKey:
    key = _load_key(path, serialization.load_pem_public_key, "public")
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise _wrong_kind(path)


def _wrong_kind(path: Path) -> OperationError:
    return OperationError(
        f"the key in {path} is neither Ed25519 nor P-256",
        hint="make one with `openssl genpkey -algorithm ed25519 -out key.pem`",
    )


def _load_key(path: Path, parse: Callable[[bytes], Any], kind: str) -> Any:
    """Return the key; messages never quote the file."""
    try:
        return parse(resolve(path).read_bytes())
    except OSError as error:
        raise OperationError(f"the key {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise OperationError(
            f"{path} is not a {kind} key in PEM without a password",
            hint="to get the public key of a private one, use `openssl pkey -in key.pem -pubout`",
        ) from error
