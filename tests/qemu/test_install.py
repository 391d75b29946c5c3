"""Installing QEMU from a server: whole or not at all. The server is a local one, with an archive made here."""

import errno
import hashlib
import http.server
import io
import os
import socket
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from pytest_esp.cli.qemu_install import install_command
from pytest_esp.errors import BackendError
from pytest_esp.qemu import find as find_module
from pytest_esp.qemu import install as install_module
from pytest_esp.qemu.find import find, find_all
from pytest_esp.qemu.install import RELEASES, install

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins for QEMU are shell scripts")

VERSION = "esp_develop_9.2.2_20260417"
FOLDER = "esp-develop-9.2.2-20260417"
SCRIPT = """#!/bin/sh
case "$*" in
--version) echo "QEMU emulator version 9.2.2 (esp_develop_9.2.2_20260417)";;
"-machine help") echo "esp32                Espressif ESP32 machine"; echo "esp32c3              Espressif machine";;
esac
"""


@pytest.fixture(autouse=True)
def nobodys_home(tmp_path, monkeypatch):
    for name in ("QEMU_XTENSA_PATH", "QEMU_RISCV_PATH", "IDF_TOOLS_PATH", "IDF_GITHUB_ASSETS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(find_module, "_failures", {})


@pytest.fixture
def tools(tmp_path):
    return tmp_path / "home" / ".espressif"


class Server:
    """Serves files by name; what each request meets can be changed."""

    def __init__(self):
        self.files = {}
        self.requests = []
        self.status = 200
        self.cut_at = None
        self.chunked = False
        self.silent = threading.Event()
        self.silent.set()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.requests.append(self.path)
                outer.silent.wait(10)
                body = outer.files.get(self.path)
                if body is None or outer.status != 200:
                    self.send_error(404 if body is None else outer.status)
                    return
                self.send_response(200)
                self.send_header(
                    *(("Transfer-Encoding", "chunked") if outer.chunked else ("Content-Length", len(body)))
                )
                self.end_headers()
                body = body[: outer.cut_at]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(body), body) if outer.chunked else body)
                if outer.cut_at is None and outer.chunked:
                    self.wfile.write(b"0\r\n\r\n")
                self.close_connection = True

            def log_message(self, *args): ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # a client that has read enough
        self.url = f"http://127.0.0.1:{self._server.server_port}/releases"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.silent.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def archive(*members, script=SCRIPT, architecture="xtensa"):
    """A released archive: the binary, and *members* as `tarfile.TarInfo` with their contents."""
    binary = tarfile.TarInfo(f"qemu/bin/qemu-system-{architecture}")
    binary.mode = 0o755
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        for info, data in [*([(binary, script.encode())] if script else []), *members]:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def publish(server, monkeypatch):
    """Put an archive on the server, under the name for this platform, and its sum into the table."""

    def publish(data, architecture="xtensa"):
        here = install_module._platform()
        sums = {f"{architecture}-{here}": (len(data), hashlib.sha256(data).hexdigest())}
        monkeypatch.setitem(RELEASES, VERSION, RELEASES[VERSION] | sums)
        name = f"qemu-{architecture}-softmmu-{VERSION}-{here}.tar.xz"
        server.files[f"/releases/{FOLDER}/{name}"] = data
        return name

    return publish


def nothing_is_left(tools):
    return find_all() == [] and not list((tools / "tools").glob("*/*")) and not list((tools / "tools").glob("*/.*"))


def test_the_command_installs_both_and_find_finds_them(server, publish, tools):
    publish(archive())
    publish(archive(architecture="riscv32"), "riscv32")
    result = CliRunner().invoke(install_command, ["--url", server.url])
    assert result.exit_code == 0, result.output
    paths = [tools / f"tools/qemu-{kind}/{VERSION}/qemu/bin/qemu-system-{kind}" for kind in ("xtensa", "riscv32")]
    assert [find("xtensa").path, find("riscv32").path] == paths
    assert all(f"qemu-{path.name[12:]} {VERSION} installed: {path} (esp32, " in result.output for path in paths)
    assert not list(tools.glob("tools/*/.*"))

    again = CliRunner().invoke(install_command, ["--url", server.url])
    assert again.exit_code == 0
    assert again.output.count("is already installed") == 2
    assert len(server.requests) == 2


def test_another_folder_is_found_once_the_variable_names_it(server, publish, tmp_path, monkeypatch):
    publish(archive())
    publish(archive(architecture="riscv32"), "riscv32")
    arguments = ["--url", server.url, "--tools", str(tmp_path / "idf")]
    assert (
        f"set IDF_TOOLS_PATH={tmp_path / 'idf'} so that pytest-esp finds it\n"
        in CliRunner().invoke(install_command, arguments).output
    )
    assert find_all() == []
    monkeypatch.setenv("IDF_TOOLS_PATH", str(tmp_path / "idf"))
    assert find("xtensa").version == "9.2.2 (esp_develop_9.2.2_20260417)"
    assert "IDF_TOOLS_PATH" not in CliRunner().invoke(install_command, arguments[:2]).output


def test_what_comes_first_is_said(server, publish, tmp_path, monkeypatch):
    publish(archive())
    publish(archive(architecture="riscv32"), "riscv32")
    own = tmp_path / "own"
    own.write_text(SCRIPT)
    own.chmod(0o755)
    monkeypatch.setenv("QEMU_XTENSA_PATH", str(own))
    output = CliRunner().invoke(install_command, ["--url", server.url]).output
    assert output.count(f"not used: {own} is found first") == 1


def test_progress_is_reported(server, publish):
    data = archive((tarfile.TarInfo("qemu/share/rom.bin"), os.urandom(300_000)))
    name = publish(data)
    seen = []
    install("xtensa", url=server.url, on_progress=lambda *what: seen.append(what))
    assert [item[0] for item in seen] == [name] * len(seen)
    assert [item[1] for item in seen] == sorted({item[1] for item in seen})
    assert seen[-1][1:] == (len(data), len(data))
    assert len(seen) > 2


def test_the_archive_must_be_what_was_released(server, publish, tools):
    name = publish(archive())
    server.files[f"/releases/{FOLDER}/{name}"] = archive(script=SCRIPT.replace("9.2.2", "6.6.6"))
    with pytest.raises(BackendError, match=f"{name} is not the released archive: it has .* SHA-256") as caught:
        install("xtensa", url=server.url)
    assert "nothing was installed" in caught.value.hint
    assert nothing_is_left(tools)


def test_an_endless_answer_is_not_read_to_its_end(server, publish, tools):
    data = archive()
    name = publish(data)
    server.files[f"/releases/{FOLDER}/{name}"] = data + bytes(10_000_000)
    with pytest.raises(BackendError, match="is not the released archive") as caught:
        install("xtensa", url=server.url)
    length = int(caught.value.message.partition("it has ")[2].split()[0])
    assert len(data) < length <= len(data) + 64 * 1024
    assert nothing_is_left(tools)


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "chunked"])
def test_a_cut_download_leaves_nothing(chunked, server, publish, tools):
    publish(archive((tarfile.TarInfo("qemu/share/rom.bin"), os.urandom(300_000))))
    server.cut_at, server.chunked = 200_000, chunked
    with pytest.raises(BackendError, match="the download ended early"):
        install("xtensa", url=server.url)
    assert nothing_is_left(tools)
    server.cut_at = None
    assert not install("xtensa", url=server.url).already


@pytest.mark.parametrize(("status", "message"), [(404, "there is no http://"), (503, r"refused \(HTTP 503\) http://")])
def test_what_the_server_refuses(status, message, server, publish, tools):
    name = publish(archive())
    server.status = status
    with pytest.raises(BackendError, match=message) as caught:
        install("xtensa", url=server.url)
    assert f"/releases/{FOLDER}/{name}" in caught.value.message
    assert "IDF_GITHUB_ASSETS" in caught.value.hint
    assert nothing_is_left(tools)


def test_without_network_the_command_says_what_else_can_be_done(publish, tools):
    name = publish(archive())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    code = "from pytest_esp.cli import main, qemu_install; main.cli = qemu_install.install_command; main.main()"
    result = subprocess.run(
        [sys.executable, "-c", code, "--url", f"http://127.0.0.1:{port}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "Connection refused" in result.stderr
    assert f"put the file into {tools / 'dist'} and try again" in result.stderr
    assert name in result.stderr
    assert "Traceback" not in result.stderr
    assert nothing_is_left(tools)


def test_a_server_that_says_nothing(server, publish, monkeypatch, tools):
    publish(archive())
    monkeypatch.setattr(install_module, "_SILENCE", 0.2)
    server.silent.clear()
    with pytest.raises(BackendError, match=r"cannot download .*: timed out after 0\.2 s"):
        install("xtensa", url=server.url)
    assert nothing_is_left(tools)


def test_an_interruption_leaves_nothing(server, publish, tools):
    publish(archive((tarfile.TarInfo("qemu/share/rom.bin"), os.urandom(300_000))))

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        install("xtensa", url=server.url, on_progress=interrupt)
    assert nothing_is_left(tools)


def link(name, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


@pytest.mark.parametrize(
    "info",
    [
        tarfile.TarInfo("../../../../../evil"),
        tarfile.TarInfo("qemu/../../evil"),
        link("qemu/share", "/etc"),
        link("qemu/x", "../../.."),
    ],
    ids=lambda info: info.name + (f" -> {info.linkname}" if info.linkname else ""),
)
def test_an_archive_that_writes_elsewhere_is_refused(info, server, publish, tools, tmp_path):
    publish(archive((info, b"")))
    with pytest.raises(BackendError, match="cannot unpack"):
        install("xtensa", url=server.url)
    assert nothing_is_left(tools)
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no archive", "cannot unpack"),
        (archive()[:200], "cannot unpack"),
        (archive((tarfile.TarInfo("README"), b""), script=None), "has no qemu/bin/qemu-system-xtensa"),
    ],
    ids=["something else", "shortened", "without QEMU"],
)
def test_what_has_no_qemu_in_it_is_refused(data, message, server, publish, tools):
    publish(data)
    with pytest.raises(BackendError, match=message):
        install("xtensa", url=server.url)
    assert nothing_is_left(tools)


def test_what_does_not_run_here_is_said(server, publish):
    publish(archive(script="#!/bin/sh\necho 'error while loading shared libraries: libSDL2-2.0.so.0'\nexit 127"))
    with pytest.raises(BackendError, match=r"is installed, but failed with exit code 127 .* libSDL2") as caught:
        install("xtensa", url=server.url)
    assert "docs/qemu.md" in caught.value.hint


def test_an_incomplete_installation_is_replaced(server, publish, tools):
    publish(archive())
    (tools / f"tools/qemu-xtensa/{VERSION}/qemu/share").mkdir(parents=True)
    assert not install("xtensa", url=server.url).already
    assert find("xtensa").path.exists()
    assert [path.name for path in (tools / "tools/qemu-xtensa").iterdir()] == [VERSION]


def test_two_installations_at_once_are_one(server, publish, tools):
    publish(archive((tarfile.TarInfo("qemu/share/rom.bin"), os.urandom(300_000))))
    server.silent.clear()
    results = []
    threads = [threading.Thread(target=lambda: results.append(install("xtensa", url=server.url))) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(server.requests) < len(threads):
        threads[0].join(0.01)
    server.silent.set()
    for thread in threads:
        thread.join()
    assert len({result.qemu for result in results}) == 1
    assert len(results) == len(threads)
    assert [path.name for path in (tools / "tools/qemu-xtensa").iterdir()] == [VERSION]


class TestAnArchiveInDist:
    """ESP-IDF keeps what it fetched there, and a person without network can put it there."""

    def test_is_not_fetched(self, publish, server, tools):
        data = archive()
        name = publish(data)
        (tools / "dist").mkdir(parents=True)
        (tools / "dist" / name).write_bytes(data)
        assert not install("xtensa", url=server.url).already
        assert server.requests == []
        assert (tools / "dist" / name).exists()

    def test_must_be_right_too(self, publish, server, tools):
        data = archive()
        name = publish(data)
        (tools / "dist").mkdir(parents=True)
        (tools / "dist" / name).write_bytes(data[:-1])
        with pytest.raises(BackendError, match=f"dist/{name} is not the released archive"):
            install("xtensa", url=server.url)
        assert nothing_is_left(tools)


def test_a_folder_that_cannot_be_written(server, publish, tmp_path):
    publish(archive())
    (tmp_path / "file").touch()
    with pytest.raises(
        BackendError, match=f"cannot install QEMU in {tmp_path}/file/tools/qemu-xtensa: Not a dir"
    ) as caught:
        install("xtensa", url=server.url, tools=tmp_path / "file")
    assert caught.value.hint == "use another folder, or set IDF_TOOLS_PATH to one"


def test_a_full_disk():
    with pytest.raises(BackendError, match=os.strerror(errno.ENOSPC)) as caught, install_module._told(Path("/opt/idf")):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "it needs about 100 MB" in caught.value.hint


@pytest.mark.parametrize(("system", "machine"), [("linux", "riscv64"), ("win32", "ARM64"), ("freebsd14", "amd64")])
def test_a_platform_without_a_release(system, machine, monkeypatch):
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    with pytest.raises(BackendError, match=f"no QEMU for {system} on {machine.lower()}; it does for x86_64-linux-gnu"):
        install("xtensa")


def test_a_version_that_is_not_known():
    with pytest.raises(BackendError, match=r"unknown QEMU release .*_20260418'; nearest: esp_dev"):
        install("xtensa", version="esp_develop_9.2.2_20260418")


def test_esp_idfs_variable_for_a_mirror_of_github_is_honoured(server, monkeypatch, tools):
    monkeypatch.setenv("IDF_GITHUB_ASSETS", server.url.removeprefix("http://") + "/")
    with pytest.raises(BackendError) as caught:  # https is assumed, and this server does not speak it
        install("xtensa")
    assert f"https://{server.url[7:]}/espressif/qemu/releases/download/{FOLDER}/qemu-xtensa-" in caught.value.message
    monkeypatch.setenv("IDF_GITHUB_ASSETS", server.url)
    with pytest.raises(BackendError, match="it has no scheme, https is assumed"):
        install("xtensa")
    assert nothing_is_left(tools)


def test_an_url_that_is_none():
    with pytest.raises(BackendError, match="'mirror/qemu' is not a valid URL"):
        install("xtensa", url="mirror/qemu")


def test_a_folder_is_a_server_too(publish, server, tmp_path):
    data = archive()
    name = publish(data)
    (tmp_path / "mirror" / FOLDER).mkdir(parents=True)
    (tmp_path / "mirror" / FOLDER / name).write_bytes(data)
    assert install("xtensa", url=(tmp_path / "mirror").as_uri()).qemu.machines == {"esp32", "esp32c3"}


def test_the_table_is_complete():
    names = next(iter(RELEASES.values())).keys()
    platforms = set(install_module._PLATFORMS.values())
    assert names == {f"{kind}-{platform}" for kind in ("xtensa", "riscv32") for platform in platforms}
    assert all(release.keys() == names for release in RELEASES.values())
    entries = [entry for release in RELEASES.values() for entry in release.values()]
    assert len({sha256 for _, sha256 in entries}) == len(entries)
    assert all(len(bytes.fromhex(sha256)) == 32 and size > 3_000_000 for size, sha256 in entries)
    assert list(RELEASES) == sorted(RELEASES, reverse=True)
