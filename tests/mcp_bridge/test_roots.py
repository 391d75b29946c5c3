"""The default roots of a server: the working folder, unless it is / or contains home folders."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path, PureWindowsPath

import pytest

from mcp_bridge.settings import default_roots, is_broad

# -- the default


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder below /tmp, as `HOME` names it."""
    home = tmp_path / "homes" / "me"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    for variable in ("MCP_ESP_PROJECT_DIR", "MCP_PROJECT_ROOTS"):
        monkeypatch.delenv(variable, raising=False)
    return home


def test_the_working_folder_is_the_default(home, monkeypatch, tmp_path):
    for folder in (home / "project", home / "a" / "b", tmp_path / "bench", tmp_path / "homes" / "you"):
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)
        assert default_roots() == (folder,)


def test_a_home_folder_and_its_parents_are_not(home, monkeypatch):
    for folder in (home, *home.parents):
        monkeypatch.chdir(folder)
        assert default_roots() == ()


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX layout")
@pytest.mark.parametrize("spelling", ["/", "//", "/tmp/..", "/proc/self/root", "/home", "/root", "/var"])
def test_folders_of_the_system_that_hold_homes_are_not(home, monkeypatch, spelling):
    if not Path(spelling).is_dir():
        pytest.skip("it does not exist here")
    monkeypatch.chdir(spelling)
    assert default_roots() == ()


def test_a_link_does_not_hide_a_home_folder(home, monkeypatch, tmp_path):
    (tmp_path / "link").symlink_to(home)
    monkeypatch.chdir(tmp_path / "link")
    assert default_roots() == ()
    real = tmp_path / "disk" / "me"
    real.mkdir(parents=True)
    (tmp_path / "linked").symlink_to(real)
    monkeypatch.setenv("HOME", str(tmp_path / "linked"))
    monkeypatch.chdir(real)
    assert default_roots() == ()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a user database")
def test_the_home_folder_of_the_user_database_counts_whatever_home_says(home, monkeypatch):
    import pwd

    own = pwd.getpwuid(os.getuid()).pw_dir
    if not os.access(own, os.X_OK):
        pytest.skip("this user has no home folder")
    monkeypatch.setenv("HOME", "/nowhere")
    monkeypatch.chdir(own)
    assert default_roots() == ()


@pytest.mark.skipif(sys.platform == "win32", reason="the folder cannot be removed there")
def test_a_deleted_folder_is_not(home, monkeypatch):
    folder = home / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert default_roots() == ()


@pytest.mark.parametrize("variable", ["MCP_ESP_PROJECT_DIR", "MCP_PROJECT_ROOTS"])
def test_what_the_user_names_is_used_however_broad(home, monkeypatch, variable):
    monkeypatch.chdir("/")
    monkeypatch.setenv(variable, os.pathsep.join(["/", "~"]))
    assert default_roots() == (Path("/"), home)


@pytest.mark.parametrize(
    ("folder", "is_refused"),
    [
        ("C:\\", True),
        ("d:/", True),
        ("\\\\server\\share\\", True),
        ("C:\\Users", True),
        ("c:\\users\\ME", True),
        ("C:\\Users\\you", True),
        ("E:\\homes", True),
        ("E:\\homes\\me", True),
        ("C:\\Users\\me\\blink", False),
        ("D:\\blink", False),
        ("\\\\server\\share\\blink", False),
        ("E:\\homes\\you", False),
    ],
)
def test_drives_and_home_folders_of_windows(folder, is_refused):
    homes = [PureWindowsPath("C:\\Users\\me"), PureWindowsPath("E:\\homes\\me")]
    assert is_broad(PureWindowsPath(folder), homes, [PureWindowsPath("C:\\Users")]) == is_refused


# -- a server without folders

# Calls of every tool that takes a file, each with all of them; {there} is a file that exists, {new} one that does not.
CALLS = [
    ("esp_elf_to_ram_binary", {"elf_file": "{there}", "chip_type": "esp32c3", "output_file": "{new}"}),
    ("esp_load_ram", {"firmware": "{there}"}),
    ("esp_serial_monitor", {"elf_file": "{there}", "duration_seconds": 0.1}),
    ("esp_flash_backup", {"output_dir": "{new}"}),
    ("esp_flash_firmware", {"firmware_path": "{there}", "address": 0x10000}),
    ("esp_flash_firmware", {"files": [{"address": 0x10000, "path": "{there}"}]}),
    ("esp_flash_multi", {"files": [{"address": 0x10000, "path": "{there}"}]}),
    ("esp_flash_read", {"address": 0, "size": 4, "output_file": "{new}"}),
    ("esp_flash_restore", {"backup_dir": "{folder}"}),
    ("esp_flash_verify", {"firmware_path": "{there}", "address": 0}),
    ("esp_verify_flash", {"files": [{"address": 0, "path": "{there}"}]}),
    ("esp_smart_backup", {"output_dir": "{new}"}),
    ("esp_smart_restore", {"backup_dir": "{folder}"}),
    ("esp_encryption_enable", {"key_file": "{there}", "firmware_path": "{there}"}),
    ("esp_secure_boot_enable", {"key_file": "{there}", "firmware_path": "{there}"}),
    (
        "esp_flash_encrypt",
        {
            "key_file": "{there}",
            "input_file": "{there}",
            "output_file": "{new}",
            "address": 0x10000,
            "chip_type": "esp32c3",
        },
    ),
    ("esp_nvs_partition_create", {"data": "{there}", "output_file": "{new}"}),
    ("esp_nvs_partition_create", {"data": {"a": {"b": 1}}, "output_file": "{new}"}),
    ("esp_nvs_read", {"key_file": "{there}"}),
    ("esp_partition_create", {"layout": "{there}.csv", "flash_size": "4MB"}),
    ("esp_partition_create_ota", {"flash_size": "4MB", "output_file": "{new}"}),
    (
        "esp_partition_custom",
        {
            "config": {"partitions": [{"name": "app", "type": "app", "subtype": "factory", "size": "1MB"}]},
            "output_file": "{new}",
        },
    ),
    ("esp_partition_flash", {"partition_file": "{there}"}),
    ("esp_app_prepare", {"elf_file": "{there}", "chip_type": "esp32c3"}),
    ("esp_binary_merge", {"files": "{there}", "output_file": "{new}"}),
    ("esp_binary_merge", {"files": [{"address": 0, "path": "{there}"}], "output_file": "{new}"}),
    ("esp_binary_optimize", {"binary_file": "{there}", "output_dir": "{new}"}),
    ("esp_bootloader_build", {"chip_type": "esp32c3", "output_file": "{new}"}),
    ("esp_elf_to_binary", {"elf_file": "{there}", "chip_type": "esp32c3"}),
    ("esp_firmware_analyze", {"binary_file": "{there}"}),
    ("esp_firmware_analyze", {"binary_file": "{folder}"}),
    ("esp_size_analysis", {"elf_file": "{there}"}),
    ("esp_ota_deploy", {"package": "{there}"}),
    ("esp_ota_package_create", {"firmware_file": "{there}", "version": "1.0"}),
    ("esp_ota_package_create", {"firmware_file": "{folder}", "version": "1.0"}),
    ("esp_core_dump_analyze", {"dump_file": "{there}"}),
    ("esp_core_dump_analyze", {"elf_file": "{there}"}),
    ("esp_diagnostic_report", {"output_file": "{new}"}),
    ("esp_diagnostic_report", {"elf_file": "{there}"}),
    ("esp_memory_dump", {"address": 0x3FC80000, "size": 16, "output_file": "{new}"}),
    ("esp_batch_program", {"ports": ["c3"], "firmware": "{there}", "output_dir": "{new}"}),
    ("esp_batch_program", {"ports": ["c3"], "config": {"firmware": "{there}"}}),
    (
        "esp_batch_program",
        {
            "ports": ["c3"],
            "firmware": "{there}",
            "devices": [{"nvs": {"a": {"b": {"type": "string", "file": "{there}"}}}}],
        },
    ),
    ("esp_calibration_data_write", {"data": "{there}"}),
    ("esp_manufacturing_data_write", {"data": {"a": {"type": "string", "file": "{there}"}}}),
    ("esp_factory_program", {"config": "{there}"}),
    ("esp_factory_program", {"config": {"firmware": "{there}"}}),
    ("esp_provision_device", {"config": "{there}"}),
    ("esp_qemu_flash", {"instance_id": "none", "firmware_path": "{there}"}),
    ("esp_qemu_start", {"chip_type": "esp32", "flash_image": "{there}"}),
    ("esp_sim_start", {"chip_type": "esp32c3", "flash_image": "{there}"}),
    ("esp_idf_build_project", {"project_path": "{folder}"}),
    ("esp_idf_flash_project", {"project_path": "{folder}"}),
    ("esp_idf_monitor", {"project_path": "{folder}"}),
]
MENTIONED = {"esp_enable_flash_encryption"}  # its answer repeats the file's name, and does not read the file
FILES = re.compile(
    r"(^|_)(file|files|path|dir|firmware|elf|image|package|layout|config|devices)$|^(data|cal_data|mfg_data)$"
)


def filled(value, names):
    text = json.dumps(value)
    for word, name in names.items():
        text = text.replace("{" + word + "}", name)
    return json.loads(text)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "there").write_text("secret-5f0e1c2b7d")
    return {"there": str(folder / "there"), "new": str(folder / "new"), "folder": str(folder)}


def test_every_tool_that_takes_a_file_is_tried(server):
    takes = {
        name
        for name, tool in server.list_tools().items()
        if any(FILES.search(parameter) for parameter in tool.input_schema.get("properties", {}))
    }
    assert takes == {name for name, _ in CALLS} | MENTIONED


def test_without_folders_no_tool_opens_a_file(serve, places):
    server = serve(roots=())
    properties = {name: tool.input_schema["properties"] for name, tool in server.list_tools().items()}
    wrong = []
    for name, arguments in CALLS:
        given = filled(arguments, places)
        if "port" in properties[name]:
            given["port"] = "c3"
        answer = server.call(name, **given)
        if "confirm" in answer:
            answer = server.call(name, **given, confirm=answer["confirm"])
        if "--roots" not in (answer.get("hint") or "") or "may not be opened" not in answer.get("error", ""):
            wrong.append((name, given, answer))
    assert not wrong
    assert os.listdir(places["folder"]) == ["there"]


@pytest.mark.parametrize("name", ["image.bin", ".", "", "~/x", "../x", "/etc/passwd", "a\0b"])
def test_however_a_file_is_named(serve, name):
    server = serve(roots=())
    answer = server.call("esp_firmware_analyze", binary_file=name)
    assert "--roots" in answer["hint"]


def test_other_tools_work_without_folders(serve):
    server = serve(roots=())
    assert server.call("esp_detect_chip", port="c3")["success"]
    assert len(server.call("esp_flash_read", port="c3", address=0, size=4)["data"]) > 0
    assert server.call("esp_server_info")["roots"] == []
    assert server.read("esp://config")["roots"] == []


# -- as clients start it


def ask(folder, rack, file, *arguments, **environment):
    """Return the answers of a server that was started in *folder* to calls that read and write files."""
    messages = [
        {
            "method": "initialize",
            "id": 0,
            "params": {
                "protocolVersion": "2025-06-18",
                "capabilities": {},
                "clientInfo": {"name": "t", "version": "0"},
            },
        },
        {"method": "notifications/initialized"},
    ]
    for number, (name, given) in enumerate(
        [
            ("esp_server_info", {}),
            ("esp_firmware_analyze", {"binary_file": str(file)}),
            (
                "esp_nvs_partition_create",
                {"data": {"a": {"b": 1}}, "output_file": str(file.with_name("nvs.bin")), "size": "0x3000"},
            ),
        ],
        1,
    ):
        messages.append({"method": "tools/call", "id": number, "params": {"name": name, "arguments": given}})
    answers = {}
    process = subprocess.Popen(
        [sys.executable, "-m", "mcp_bridge", "--rack", rack, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=folder,
        env=os.environ | environment,
    )
    with process:
        for message in messages:
            process.stdin.write(json.dumps({"jsonrpc": "2.0"} | message) + "\n")
            process.stdin.flush()
            if "id" in message:
                answer = json.loads(process.stdout.readline())
                answers[answer["id"]] = answer["result"].get("structuredContent")
        process.stdin.close()
    return [answers[number] for number in (1, 2, 3)]


@pytest.fixture
def file(tmp_path, home, build_of):
    shutil.copy(build_of("esp32c3") / "bootloader" / "bootloader.bin", tmp_path / "image.bin")
    return tmp_path / "image.bin"


@pytest.mark.parametrize("place", ["root", "home", "parent"])
def test_started_in_a_broad_folder_it_runs_and_opens_nothing(serve, tmp_path, home, file, place):
    folder = {"root": Path(home.anchor), "home": home, "parent": home.parent}[place]
    info, *refused = ask(folder, tmp_path / "project" / "boards.toml", file)
    assert info["success"]
    assert info["roots"] == []
    for answer in refused:
        assert not answer["success"]
        assert "--roots" in answer["hint"]
    assert not file.with_name("nvs.bin").exists()


@pytest.mark.parametrize("how", ["option", "environment"])
def test_the_root_folder_is_used_if_the_user_names_it(serve, tmp_path, home, file, how):
    arguments, environment = (["--roots", "/"], {}) if how == "option" else ([], {"MCP_PROJECT_ROOTS": "/"})
    info, *answers = ask("/", tmp_path / "project" / "boards.toml", file, *arguments, **environment)
    assert info["roots"] == ["/"]
    assert [answer["success"] for answer in answers] == [True, True], answers
    assert file.with_name("nvs.bin").exists()
