"""Installs Espressif's QEMU releases into ESP-IDF's tools, so that ESP-IDF finds them, too.

Names, sizes and SHA-256 sums of the archives are from ESP-IDF's ``tools/tools.json`` (the first is recommended by
ESP-IDF 5.5.5 and its master branch in July 2026). Each archive has a folder ``qemu`` with ``bin`` and ``share``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import lzma
import os
import platform
import ssl
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pytest_esp import USER_AGENT
from pytest_esp.errors import BackendError
from pytest_esp.names import nearest
from pytest_esp.qemu.find import TOOLS_VARIABLE, Qemu, binary_in, look_at, tools_folders
from pytest_esp.qemu.machines import Architecture

ASSETS_VARIABLE = "IDF_GITHUB_ASSETS"
RELEASES_PATH = "espressif/qemu/releases/download"

Progress = Callable[[str, int, int], None]
"""Called with the archive's name, the number of bytes downloaded, and its size in bytes."""

_SILENCE = 30.0  # timeout in seconds without data
_BLOCK = 64 * 1024

RELEASES: dict[str, dict[str, tuple[int, str]]] = {
    "esp_develop_9.2.2_20260417": {
        "xtensa-x86_64-linux-gnu": (15_619_396, "0eecb2a34a5586c0e59110f77b9343b7b336e82fdb0e1a30e1dc1bab8a547e35"),
        "xtensa-aarch64-linux-gnu": (15_111_492, "00de5985094c14e47d1b38464a006b8ed64fd0fa7a289c56da24f3a329f65339"),
        "xtensa-x86_64-apple-darwin": (3_870_980, "ae8170fe46bcdfa54a7c0d7afcdb7a066711991be680f72ff7bbc6c4ae3ad88f"),
        "xtensa-aarch64-apple-darwin": (3_867_936, "bb8c15810565d3df1665dc34962430885e11bc95575b228fb44698146be1e9d6"),
        "xtensa-x86_64-w64-mingw32": (35_996_720, "3c483d77f5350a568df1faf4d8dbc82c95d6bc2b826d0d4be910485e0a68ca2a"),
        "riscv32-x86_64-linux-gnu": (16_842_920, "547f03e04701a92cbb699f7f7d015adc1f5b5ef93cbb94c0dd9b7107e2d84e77"),
        "riscv32-aarch64-linux-gnu": (16_325_180, "a9f7b98636008edcf7a11c96f10b3a3ec83c2a890fc54c3e3ceb3ec9edace427"),
        "riscv32-x86_64-apple-darwin": (3_763_576, "a47c38c6e2eb9f5028eda9585dce999ce02b8983a2cdf71c48cfb10a14ae25fe"),
        "riscv32-aarch64-apple-darwin": (3_763_728, "67bff66ff7158f272ce167fc211c0f8f4c1a79b6f6174350678a6d5035644b30"),
        "riscv32-x86_64-w64-mingw32": (38_496_020, "697aa4800a1f52be0b1693b30e22a684f7ea93c46c489e619384cae7b0e9b87b"),
    },
    "esp_develop_9.2.2_20250817": {
        "xtensa-x86_64-linux-gnu": (15_648_448, "588bfaccd0f929650655d10a580f020c6ba9c131712d8fa519280081b8d126eb"),
        "xtensa-aarch64-linux-gnu": (15_123_084, "317f6e0fd1dba0886d8110709823d909593ef29438822a14f81ebe19d72ce7cd"),
        "xtensa-x86_64-apple-darwin": (4_092_932, "00b9dbc2124cf7633cb86f264fbc524226ad4001bce68bbdba43c9bdc4eb026e"),
        "xtensa-aarch64-apple-darwin": (3_882_404, "aa92e337461d482f5d9f31cd8efc0bd67b3de8fcfcfb567289cb43a59c184651"),
        "xtensa-x86_64-w64-mingw32": (34_664_956, "ef550b912726997f3c1ff4a4fb13c1569e2b692efdc5c9f9c3c926a8f7c540fa"),
        "riscv32-x86_64-linux-gnu": (16_850_080, "373b37a68bae3ef441ead24a7bfc950fcbfc274cbdd2b628fc6915f179eb1d8e"),
        "riscv32-aarch64-linux-gnu": (16_332_832, "f907a54313058f8a9681d2f48257d518950ff98bcd5a319194b4bee7c10cf223"),
        "riscv32-x86_64-apple-darwin": (4_086_872, "820028ee7cd2dd8fe8cd8ca5519ab6e792d15fea9367c4525cf63c0f707c0b1f"),
        "riscv32-aarch64-apple-darwin": (3_761_104, "234690b6fa7c1d5dfe3dbb2bdd0c2810755e7c98999a9f21c389a6046b7eb76d"),
        "riscv32-x86_64-w64-mingw32": (37_189_656, "9474015f24d27acb7516955ec932e5307226bd9d6652cdc870793ed36010ab73"),
    },
    "esp_develop_9.0.0_20240606": {
        "xtensa-x86_64-linux-gnu": (13_611_248, "071d117c44a6e9a1bc8664ab63b592d3e17ceb779119dcb46c59571a4a7a88c9"),
        "xtensa-aarch64-linux-gnu": (15_247_720, "43552f32b303a6820d0d9551903e54fc221aca98ccbd04e5cbccbca881548008"),
        "xtensa-x86_64-apple-darwin": (3_707_956, "0096734280ce04f558cd9bd72f35db39667f80d44309a35565f2f8c02d1f9cc3"),
        "xtensa-aarch64-apple-darwin": (3_456_764, "fb4ca6be7b1a4dbcf153879cf0582300f974371def0826c0c5b728f12812ad08"),
        "xtensa-x86_64-w64-mingw32": (33_957_256, "281659f7a1d49761ac6f54d0aeb14366cb93c002f21948b847a0e15c0b8f5425"),
        "riscv32-x86_64-linux-gnu": (14_454_468, "47120e826cfec7180db8cb611a7a4aed2e9b2191c2a739194f8ce085e63cdd8d"),
        "riscv32-aarch64-linux-gnu": (16_542_756, "3b6221a8b1881d2c9b9fa0b0bf8d7065c84153d2a54e429307bde9feae235c27"),
        "riscv32-x86_64-apple-darwin": (3_751_096, "3afa55d5abea52ccf18d0bc41fe819d568bd4ee1582989b1ee9b1ee4a609a31e"),
        "riscv32-aarch64-apple-darwin": (3_409_264, "69ba5154594fb2922d5490a49ea6b4925c024c6c37f875b42f9885f513e0bcdd"),
        "riscv32-x86_64-w64-mingw32": (36_274_632, "f49bb5c8f4d6e2cfbf7eeec21eb8ef190a57307778705bc689536ac13bde511c"),
    },
}
"""Version -> architecture and platform -> size in bytes and SHA-256 of the archive; newest version first."""

_PLATFORMS = {
    ("linux", "x86_64"): "x86_64-linux-gnu",
    ("linux", "amd64"): "x86_64-linux-gnu",
    ("linux", "aarch64"): "aarch64-linux-gnu",
    ("linux", "arm64"): "aarch64-linux-gnu",
    ("darwin", "x86_64"): "x86_64-apple-darwin",
    ("darwin", "arm64"): "aarch64-apple-darwin",
    ("win32", "amd64"): "x86_64-w64-mingw32",
}


@dataclass(frozen=True)
class Installed:
    """An installed QEMU.

    Attributes:
        already: whether it was already installed.
        found: whether `find` searches that folder; if not, set ``IDF_TOOLS_PATH`` to it.
    """

    architecture: Architecture
    version: str
    qemu: Qemu
    already: bool
    found: bool


@dataclass(frozen=True)
class _Archive:
    """A released archive for this platform; *size* is in bytes."""

    version: str
    name: str
    size: int
    sha256: str


def install(
    architecture: Architecture,
    *,
    tools: Path | None = None,
    url: str | None = None,
    version: str | None = None,
    on_progress: Progress | None = None,
) -> Installed:
    """Install a QEMU release, unless it is already installed, and return it. The installation is atomic.

    *tools* is the folder of ESP-IDF's tools (default: ``IDF_TOOLS_PATH``, else ~/.espressif). *url* replaces
    https://github.com/espressif/qemu/releases/download; ``IDF_GITHUB_ASSETS`` replaces github.com, as in ESP-IDF.
    *version* is one of `RELEASES`, by default the first. An archive in the folder ``dist`` of the tools, where ESP-IDF
    keeps them, is not downloaded.

    Raises:
        BackendError: if there is no release for this platform, or it cannot be downloaded, has a wrong checksum,
            cannot be written, or does not run.
    """
    archive = _archive(architecture, version)
    root = tools.expanduser().absolute() if tools else tools_folders()[0]
    folder = root / "tools" / f"qemu-{architecture}" / archive.version
    already = binary_in(folder, architecture).exists()
    if not already:
        with _told(folder.parent):
            folder.parent.mkdir(parents=True, exist_ok=True)
            # In the same folder, so that it can be renamed; hidden, so that it is not taken for an installation.
            with tempfile.TemporaryDirectory(
                prefix=f".{archive.version}.", dir=folder.parent, ignore_cleanup_errors=True
            ) as temporary:
                path = _get(archive, _base(url), root / "dist", Path(temporary), on_progress)
                _unpack(path, Path(temporary, "new"))
                _put(Path(temporary), folder, architecture)
    qemu = _started(folder, architecture)
    return Installed(architecture, archive.version, qemu, already, found=root in tools_folders())


def _archive(architecture: Architecture, version: str | None) -> _Archive:
    version = version or next(iter(RELEASES))
    if version not in RELEASES:
        raise BackendError(
            f"unknown QEMU release {version!r}; nearest: {nearest(version, RELEASES)}",
            hint="other versions: ESP-IDF's `idf_tools.py install qemu-xtensa qemu-riscv32`",
        )
    where = _platform()
    size, sha256 = RELEASES[version][f"{architecture}-{where}"]
    return _Archive(version, f"qemu-{architecture}-softmmu-{version}-{where}.tar.xz", size, sha256)


def _platform() -> str:
    """Return this platform's name in the archives' names."""
    here = (sys.platform, platform.machine().lower())
    if here not in _PLATFORMS:
        raise BackendError(
            f"Espressif releases no QEMU for {here[0]} on {here[1] or 'this machine'}; it does for "
            + ", ".join(dict.fromkeys(_PLATFORMS.values())),
            hint="build it from github.com/espressif/qemu, and name it: see docs/qemu.md",
        )
    return _PLATFORMS[here]


def _base(url: str | None) -> str:
    """Return the URL of the folder of releases."""
    if not url:
        assets = os.environ.get(ASSETS_VARIABLE, "").strip().rstrip("/")
        if "://" in assets:
            raise BackendError(
                f"{ASSETS_VARIABLE} is {assets!r}: it has no scheme, https is assumed",
                hint="e.g. dl.espressif.com/github_assets",
            )
        return f"https://{assets or 'github.com'}/{RELEASES_PATH}"
    if urlsplit(url).scheme not in ("http", "https", "file"):
        raise BackendError(f"{url!r} is not a valid URL", hint="expected https://..., http://... or file:///...")
    return url.rstrip("/")


def _get(archive: _Archive, base: str, dist: Path, temporary: Path, on_progress: Progress | None) -> Path:
    """Return the archive's file: the one in *dist*, else download it into *temporary*."""
    path = dist / archive.name
    if path.is_file():
        _check(path, archive, str(path))
        return path
    path = temporary / archive.name
    url = f"{base}/{archive.version.replace('_', '-')}/{archive.name}"
    _fetch(url, path, archive, dist, on_progress)
    _check(path, archive, url)
    return path


def _fetch(url: str, path: Path, archive: _Archive, dist: Path, on_progress: Progress | None) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT})
    done = 0
    with _network(url, dist):
        response = urllib.request.urlopen(request, timeout=_SILENCE)
    with response, path.open("wb") as file:
        announced = int(response.headers.get("Content-Length") or archive.size)
        while done <= archive.size:  # a longer file is wrong
            with _network(url, dist):
                block = response.read(_BLOCK)
            if not block:
                break
            file.write(block)
            done += len(block)
            if on_progress is not None:
                on_progress(archive.name, done, archive.size)
    if done < min(announced, archive.size):
        raise BackendError(f"the download ended early, after {done} of {archive.size} bytes: {url}", hint="try again")


@contextlib.contextmanager
def _network(url: str, dist: Path) -> Generator[None]:
    """Translate network errors."""
    try:
        yield
    except urllib.error.HTTPError as error:
        with error:
            what = "there is no" if error.code in (404, 410) else f"the server refused (HTTP {error.code})"
        raise BackendError(f"{what} {url}", hint=_elsewhere(url, dist)) from error
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", None) or error
        hint = _elsewhere(url, dist)
        if isinstance(reason, ssl.SSLCertVerificationError):
            hint = "set SSL_CERT_FILE to the certificates of your network, or " + hint
        raise BackendError(f"cannot download {url}: {_in_words(reason)}", hint=hint) from error


def _elsewhere(url: str, dist: Path) -> str:
    return (
        f"set {ASSETS_VARIABLE}=dl.espressif.com/github_assets to use Espressif's server, https_proxy to use a proxy, "
        f"or put the file into {dist} and try again"
    )


def _in_words(reason: object) -> str:
    if isinstance(reason, TimeoutError):
        return f"timed out after {_SILENCE:g} s without data"
    if isinstance(reason, http.client.IncompleteRead):
        return "the download ended early"
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__


def _check(path: Path, archive: _Archive, origin: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != archive.sha256:
        raise BackendError(
            f"{origin} is not the released archive: it has {path.stat().st_size} bytes and SHA-256 {found}, "
            f"expected {archive.size} bytes and {archive.sha256}",
            hint="nothing was installed; check that it is not incomplete, or a proxy's error page",
        )


def _unpack(path: Path, folder: Path) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise BackendError("this Python version unpacks archives unsafely", hint="use Python 3.11.4 or newer")
    try:
        with tarfile.open(path, "r:xz") as tar:
            tar.extractall(folder, filter="data")  # refuses devices, and paths and links that lead out of the folder
    except (tarfile.TarError, EOFError, lzma.LZMAError) as error:
        raise BackendError(f"cannot unpack {path.name}: {error}", hint="nothing was installed") from error


def _put(temporary: Path, folder: Path, architecture: Architecture) -> None:
    """Rename the unpacked folder to its final name."""
    new = temporary / "new"
    if not binary_in(new, architecture).is_file():
        raise BackendError(
            f"the archive has no {binary_in(Path(), architecture).as_posix()}", hint="nothing was installed"
        )
    if folder.exists() and not binary_in(folder, architecture).exists():
        folder.rename(temporary / "incomplete")
    try:
        new.rename(folder)
    except OSError:
        if not binary_in(folder, architecture).exists():  # else another process has just installed it
            raise


@contextlib.contextmanager
def _told(folder: Path) -> Generator[None]:
    """Translate file errors."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
        raise BackendError(
            f"cannot install QEMU in {folder}: {error.strerror or error}",
            hint=("it needs about 100 MB; " if full else "") + f"use another folder, or set {TOOLS_VARIABLE} to one",
        ) from error


def _started(folder: Path, architecture: Architecture) -> Qemu:
    """Return the installed build."""
    path = binary_in(folder, architecture)
    looked = look_at(path, architecture, "ESP-IDF tools")
    if looked.qemu is None:
        raise BackendError(f"{path} is installed, but {looked.problem}", hint=looked.hint or "see docs/qemu.md")
    return looked.qemu
