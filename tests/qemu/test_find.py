"""Where QEMU is looked for, and what is made of what is found there."""

import json
import os
import shutil
import stat
import subprocess
import sys
import time

import pytest

from pytest_esp.errors import BackendError
from pytest_esp.qemu import find as find_module
from pytest_esp.qemu.find import find, find_all, why_missing
from pytest_esp.qemu.machines import machine_for

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins for QEMU are shell scripts")

ESPRESSIF = """
case "$*" in
--version) echo "QEMU emulator version 9.2.2 (esp_develop_9.2.2_20260417)"; echo "Copyright (c) Fabrice Bellard";;
"-machine help") echo "Supported machines are:"; {machines} echo "none                 empty machine";;
*) echo "qemu: -device $2: Device '${{2%,help}}' not found" >&2;;
esac
"""
DEBIAN = """
case "$*" in
--version) echo "QEMU emulator version 7.2.9 (Debian 1:7.2+dfsg-7+deb12u5)";;
*) echo "Supported machines are:"; echo "kc705                kc705 EVB (dc232b)";;
esac
"""


@pytest.fixture(autouse=True)
def machine_of_nobody(tmp_path, monkeypatch):
    """A user who has no QEMU, no tools and no cache."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("QEMU_XTENSA_PATH", "QEMU_RISCV_PATH", "IDF_TOOLS_PATH", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("sleep", "ps"):  # what the tests need, and no QEMU of this machine
        (programs / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(find_module, "_failures", {})
    find_module._answers.cache_clear()
    return home


def qemu(folder, *machines, name="qemu-system-xtensa", script=ESPRESSIF):
    """A stand-in for a build of QEMU, which answers what is asked of it and writes down that it was asked."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    lines = "".join(f'echo "{machine}                Espressif machine";' for machine in machines)
    body = script.format(machines=lines) if script is ESPRESSIF else script
    path.write_text(f'#!/bin/sh\necho "$*" >>"$0.asked"\n{body}')
    path.chmod(0o755)
    return path


def asked(path):
    log = path.with_name(f"{path.name}.asked")
    return log.read_text().splitlines() if log.exists() else []


def on_path(monkeypatch, *folders):
    monkeypatch.setenv("PATH", os.pathsep.join([*map(str, folders), os.environ["PATH"]]))


def test_the_variable_comes_first_then_the_path_then_the_tools_of_esp_idf(tmp_path, monkeypatch, machine_of_nobody):
    installed = qemu(machine_of_nobody / ".espressif/tools/qemu-xtensa/esp_develop_9.2.2_20260417/qemu/bin", "esp32")
    assert find("xtensa").path == installed
    in_tools = qemu(tmp_path / "idf/tools/qemu-xtensa/esp_develop_9.0.0_20240606/qemu/bin", "esp32")
    monkeypatch.setenv("IDF_TOOLS_PATH", str(tmp_path / "idf"))
    assert find("xtensa").path == in_tools
    on_the_path = qemu(tmp_path / "bin", "esp32")
    on_path(monkeypatch, tmp_path / "bin")
    assert find("xtensa").path == on_the_path
    named = qemu(tmp_path / "own", "esp32")
    monkeypatch.setenv("QEMU_XTENSA_PATH", str(named))
    assert find("xtensa").path == named
    monkeypatch.setenv("QEMU_XTENSA_PATH", str(named.parent))  # the folder that holds it
    assert find("xtensa").path == named
    assert [(found.path, found.origin) for found in find_all()] == [
        (named, "QEMU_XTENSA_PATH"),
        (on_the_path, "PATH"),
        (in_tools, "ESP-IDF tools"),
        (installed, "ESP-IDF tools"),
    ]


def test_a_build_is_described_by_its_own_answers(tmp_path, monkeypatch):
    path = qemu(tmp_path, "esp32", "esp32s3")
    monkeypatch.setenv("QEMU_XTENSA_PATH", str(path))
    found = find("xtensa")
    assert found.version == "9.2.2 (esp_develop_9.2.2_20260417)"
    assert found.machines == {"esp32", "esp32s3"}
    assert found.drivers == frozenset()
    with pytest.raises(BackendError, match=r"no eFuse device for esp32s3: expected one of nvram\.esp32s3\.efuse"):
        found.efuse_driver(machine_for("esp32s3"))


def test_the_newest_of_several_versions_is_taken(machine_of_nobody):
    names = [
        "esp_develop_9.2.2_20250817",
        "esp_develop_9.2.2_20260417",
        "esp_develop_10.0.0_20261001",
        "esp_develop_9.2.2_local",
        "esp-develop-20220919",
        "8.0.0",
    ]
    for name in names:
        qemu(machine_of_nobody / ".espressif/tools/qemu-xtensa" / name / "qemu/bin", "esp32")
    assert [found.path.parents[2].name for found in find_all()] == [
        "esp_develop_10.0.0_20261001",
        "esp_develop_9.2.2_20260417",
        "esp_develop_9.2.2_20250817",
        "esp_develop_9.2.2_local",
        "8.0.0",
        "esp-develop-20220919",
    ]


def test_a_distributions_qemu_is_passed_over_and_named_if_there_is_no_other(tmp_path, monkeypatch, machine_of_nobody):
    debian = qemu(tmp_path / "bin", script=DEBIAN)
    on_path(monkeypatch, tmp_path / "bin")
    with pytest.raises(BackendError) as caught:
        find("xtensa")
    assert f"{debian} is QEMU 7.2.9 (Debian 1:7.2+dfsg-7+deb12u5) without Espressif's machines" in str(caught.value)
    assert "pytest-esp qemu install" in caught.value.hint
    assert why_missing("esp32").endswith("(pytest-esp qemu install)")
    espressif = qemu(machine_of_nobody / ".espressif/tools/qemu-xtensa/9/qemu/bin", "esp32")
    assert find("xtensa").path == espressif
    assert why_missing("esp32") is None


def test_the_next_build_is_taken_if_one_lacks_the_machine(tmp_path, monkeypatch, machine_of_nobody):
    older = qemu(tmp_path / "bin", "esp32")
    on_path(monkeypatch, tmp_path / "bin")
    assert why_missing("esp32s3") == (
        f"no QEMU for xtensa with the machine esp32s3 is installed; {older} has no machine esp32s3, only esp32 "
        "(pytest-esp qemu install)"
    )
    newer = qemu(machine_of_nobody / ".espressif/tools/qemu-xtensa/9/qemu/bin", "esp32", "esp32s3")
    assert find("xtensa", "esp32s3").path == newer
    assert find("xtensa", "esp32").path == older


def test_one_binary_with_two_names_is_one(tmp_path, monkeypatch):
    path = qemu(tmp_path / "one", "esp32")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    on_path(monkeypatch, tmp_path / "one", tmp_path / "two")
    assert [found.path for found in find_all()] == [path]


def test_an_installation_under_way_is_not_an_installation(machine_of_nobody):
    qemu(machine_of_nobody / ".espressif/tools/qemu-xtensa/.esp_develop_9.2.2_20260417.x1/qemu/bin", "esp32")
    assert find_all() == []
    assert why_missing("esp32") == "no QEMU for xtensa with the machine esp32 is installed (pytest-esp qemu install)"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("kill -SEGV $$", r"was killed by SIGSEGV for --version"),
        ("echo hello", r"is not QEMU: --version printed 'hello'"),
        ("exit 3", r"failed with exit code 3 for --version: 'nothing'"),
        (DEBIAN, r"is QEMU 7\.2\.9 .* without Espressif's machines"),
        (
            "echo 'qemu: error while loading shared libraries: libslirp.so.0: cannot open it'; exit 127",
            r"exit code 127 .* libslirp\.so\.0",
        ),
    ],
    ids=["crashes", "is something else", "fails", "distribution", "lacks a library"],
)
def test_what_the_variable_names_and_cannot_be_used_is_an_error(script, reason, tmp_path, monkeypatch):
    path = qemu(tmp_path, script=script)
    other = qemu(tmp_path / "bin", "esp32")
    on_path(monkeypatch, other.parent)  # which is not taken silently instead
    monkeypatch.setenv("QEMU_XTENSA_PATH", str(path))
    with pytest.raises(BackendError, match=reason) as caught:
        find("xtensa")
    assert f"QEMU_XTENSA_PATH is set to {path}, which" in caught.value.message
    assert caught.value.hint
    assert why_missing("esp32") == caught.value.message


def test_missing_libraries_are_named_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv(
        "QEMU_XTENSA_PATH", str(qemu(tmp_path, script="echo 'dyld: Library not loaded: x'; kill -ABRT $$"))
    )
    with pytest.raises(BackendError, match=r"SIGABRT.*Library not loaded") as caught:
        find("xtensa")
    assert "libslirp" in caught.value.hint


def test_a_file_that_is_missing_or_no_program(tmp_path, monkeypatch):
    monkeypatch.setenv("QEMU_XTENSA_PATH", str(tmp_path / "gone"))
    assert why_missing("esp32") == f"QEMU_XTENSA_PATH is set to {tmp_path / 'gone'}, which does not exist"
    monkeypatch.setenv("QEMU_XTENSA_PATH", str(tmp_path))
    assert why_missing("esp32") == f"QEMU_XTENSA_PATH is set to {tmp_path / 'qemu-system-xtensa'}, which does not exist"
    text = tmp_path / "readme"
    text.write_text("no program")
    monkeypatch.setenv("QEMU_XTENSA_PATH", str(text))
    assert "is not executable" in why_missing("esp32")
    text.chmod(0o755)
    assert "cannot be run: Exec format error" in why_missing("esp32") or "is not executable" in why_missing("esp32")
    text.write_text("#!/no/such/shell\n")
    assert "needs a dynamic loader that this system does not have" in why_missing("esp32")


def test_a_build_for_other_chips(tmp_path, monkeypatch):
    monkeypatch.setenv("QEMU_XTENSA_PATH", str(qemu(tmp_path, "esp32c3")))
    assert why_missing("esp32").endswith("is QEMU for other chips: esp32c3")


def test_a_build_that_hangs_is_given_up_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(find_module, "_ANSWER_TIME", 0.3)
    path = qemu(tmp_path, script='sleep 600 & echo $! >"$0.pid"; wait')
    monkeypatch.setenv("QEMU_XTENSA_PATH", str(path))
    begun = time.monotonic()
    assert "did not respond to --version within 0.3 s" in why_missing("esp32")
    assert time.monotonic() - begun < 5
    child = int(path.with_name(f"{path.name}.pid").read_text())
    end = time.monotonic() + 5
    while _is_alive(child) and time.monotonic() < end:
        time.sleep(0.01)
    assert not _is_alive(child)
    assert "did not respond to" in why_missing("esp32s3")
    assert len(asked(path)) == 1  # once is enough for a while


def _is_alive(pid):
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def test_a_failure_is_forgotten_after_a_while(tmp_path, monkeypatch):
    path = qemu(tmp_path, script="exit 127")
    monkeypatch.setenv("QEMU_XTENSA_PATH", str(path))
    assert why_missing("esp32")
    monkeypatch.setattr(find_module, "_FAILURE_KEPT", 0)
    assert why_missing("esp32")
    assert len(asked(path)) == 2


class TestTheCache:
    """A run does not ask a build that another run has asked."""

    @pytest.fixture
    def path(self, tmp_path, monkeypatch):
        path = qemu(tmp_path / "bin", "esp32")
        monkeypatch.setenv("QEMU_XTENSA_PATH", str(path))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        return path

    def fresh_process(self):
        """What a new process knows: the disk only."""
        find_module._answers.cache_clear()

    def test_it_saves_the_processes(self, path):
        first = find("xtensa")
        count = len(asked(path))
        assert count == 3  # version, machines, the eFuse device of the only machine
        self.fresh_process()
        assert find("xtensa") == first
        assert why_missing("esp32") is None
        assert len(asked(path)) == count

    def test_a_distributions_build_is_remembered_too(self, path):
        qemu(path.parent, script=DEBIAN)
        assert "without Espressif's machines" in why_missing("esp32")
        count = len(asked(path))
        self.fresh_process()
        assert "without Espressif's machines" in why_missing("esp32")
        assert len(asked(path)) == count

    def test_another_build_of_the_same_name_is_asked(self, path):
        assert find("xtensa").machines == {"esp32"}
        qemu(path.parent, "esp32", "esp32s3")
        assert find("xtensa").machines == {"esp32", "esp32s3"}
        os.utime(path, (1, 1))  # the same size, another time
        count = len(asked(path))
        self.fresh_process()
        find("xtensa")
        assert len(asked(path)) > count

    @pytest.mark.parametrize("rubbish", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"identity": {}}'])
    def test_rubbish_is_ignored(self, path, rubbish, tmp_path):
        first = find("xtensa")
        (kept,) = (tmp_path / "cache" / "pytest-esp").glob("qemu-*.json")
        whole = json.loads(kept.read_bytes())
        kept.write_bytes(rubbish)
        self.fresh_process()
        assert find("xtensa") == first
        assert json.loads(kept.read_bytes()) == whole  # and replaced

    def test_entries_of_another_shape_are_ignored(self, path, tmp_path):
        first = find("xtensa")
        (kept,) = (tmp_path / "cache" / "pytest-esp").glob("qemu-*.json")
        whole = json.loads(kept.read_bytes())
        kept.write_text(json.dumps(whole | {"machines": None}))
        self.fresh_process()
        assert find("xtensa") == first

    @pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write everywhere")
    def test_a_cache_that_cannot_be_written_is_no_harm(self, path, tmp_path):
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache").chmod(stat.S_IRUSR | stat.S_IXUSR)
        assert find("xtensa").machines == {"esp32"}

    def test_a_file_in_the_place_of_the_cache_folder_is_no_harm(self, path, tmp_path):
        (tmp_path / "cache").write_text("")
        assert find("xtensa").machines == {"esp32"}


def test_a_chip_without_a_machine_says_so():
    assert why_missing("esp32s2") == "QEMU has no machine for esp32s2; it has esp32, esp32s3, esp32c3"
