"""Files that files name, by a real client: those inside the roots are opened, those outside are refused unopened.

Every kind is laid out four times. First it names a file inside the roots, and the call must succeed and open it: else
it would prove nothing that the other three, which lead out by a relative name, an absolute one and a link, are refused.
"""

import io
import json
import os
import shutil
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from tests.operations.firmware.test_size_analysis import write_map

BUILD = Path(__file__).parents[1] / "firmware" / "build" / "esp32c3"
LISTING = "flasher_args.json"
TABLE = "nvs, data, nvs, 0x9000, 0x6000\nfactory, app, factory, 0x10000, 1M\n"
CASES = []


class Watch:
    """Notes all that this process opens, lists and changes, by the real names."""

    EVENTS = ("open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link")

    def __init__(self):
        self.seen = None

    def see(self, event, arguments):
        if self.seen is None or event not in self.EVENTS or threading.current_thread() is threading.main_thread():
            return
        self.seen += [os.path.realpath(os.fsdecode(one)) for one in arguments if isinstance(one, (str, bytes, Path))]


_watch = Watch()
sys.addaudithook(_watch.see)


class Site:
    """A folder of the project whose files name those of *place*."""

    def __init__(self, server, folder, place, way):
        self.server, self.folder, self.place, self._way = server, folder, place, way
        self.target = None

    def aim(self, name):
        """Choose the file of *place* that is named: the one that must, or must not, be opened."""
        self.target = self.place / name
        return self.target

    def name(self, name, beside="."):
        """Return how a file in the folder *beside* names one of *place*."""
        target, folder = self.aim(name), self.folder / beside
        if self._way == "absolute":
            return str(target)
        if self._way == "relative":
            return os.path.relpath(target, folder)
        link = folder / f"link{target.suffix}"  # some readers go by the ending
        link.symlink_to(target)
        return link.name

    def instead(self, path, name):
        """Put a link to a file of *place* where a tool looks for *path*."""
        path = self.folder / path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(self.aim(name))

    def build(self):
        shutil.copytree(BUILD, self.folder / "build")
        return str(self.folder / "build")

    def write(self, path, content):
        (self.folder / path).write_text(content if isinstance(content, str) else json.dumps(content))
        return str(self.folder / path)

    def board(self):
        """Return a board that has been flashed."""
        if not (self.server.folder / "first").exists():
            shutil.copytree(BUILD, self.server.folder / "first")
            assert self.server.call("esp_flash_firmware", firmware_path="first", port="c3")["success"]
        return "c3"

    def build_that_lists(self, name="app.bin"):
        """Return a build folder whose flasher_args.json names a file of *place*."""
        folder = self.build()
        listing = json.loads((BUILD / LISTING).read_text())
        listing["flash_files"]["0x10000"] = self.name(name, "build")
        self.write(f"build/{LISTING}", listing)
        return folder


def furnish(place):
    """Make what is named: the same inside and outside of the roots."""
    shutil.copytree(BUILD, place / "build")
    (place / "app.bin").write_bytes((BUILD / "pytest_esp_test.bin").read_bytes())
    (place / "app.elf").write_bytes((BUILD / "pytest_esp_test.elf").read_bytes())
    (place / "table.bin").write_bytes((BUILD / "partition_table" / "partition-table.bin").read_bytes())
    (place / "bootloader.bin").write_bytes((BUILD / "bootloader" / "bootloader.bin").read_bytes())
    (place / "table.csv").write_text(TABLE)
    (place / ".csv").write_text(TABLE)
    (place / "values.csv").write_text("key,type,encoding,value\nspace,namespace,,\nname,data,string,text\n")
    (place / "key.bin").write_bytes(bytes(range(64)))
    (place / "text.txt").write_text("some text")
    (place / "config.json").write_text(json.dumps({"firmware": "build", "boot": False}))
    (place / "test_own.py").write_text("def test_it(board):\n    assert board.chip\n")
    (place / "record").write_text("")
    write_map(place / "app.map", place / "app.elf")


def case(*ways, writes=False):
    """Add a kind of file; *ways* are those in which it can lead out, if not all."""
    ways = ways or ("relative", "absolute", "link")
    return lambda lay: CASES.append(pytest.param(lay, ways, writes, id=lay.__name__))


# -- builds


@case()
def esp_idf_build_flashed(site):
    return "esp_flash_firmware", {"firmware_path": site.build_that_lists(), "port": "c3"}


@case()
def esp_idf_build_merged(site):
    return "esp_binary_merge", {"files": site.build_that_lists(), "output_file": str(site.folder / "all.bin")}


@case()
def esp_idf_build_packed(site):
    return "esp_ota_package_create", {"firmware_file": site.build_that_lists(), "version": "1"}


@case()
def esp_idf_build_split(site):
    return "esp_binary_optimize", {"binary_file": site.build_that_lists(), "output_dir": str(site.folder / "parts")}


@case()
def elf_of_a_build(site):
    folder = site.build()
    site.write("build/project_description.json", {"app_elf": site.name("app.elf", "build")})
    return "esp_flash_firmware", {"firmware_path": folder, "port": "c3"}


@case("link")
def listing_of_a_build(site):
    folder = site.build()
    site.instead(f"build/{LISTING}", f"build/{LISTING}")
    return "esp_flash_firmware", {"firmware_path": folder, "port": "c3"}


@case("link")
def folder_of_a_build(site):
    (site.folder / "project").mkdir()
    site.instead("project/build", "build")
    site.target = site.place / "build" / LISTING
    return "esp_flash_firmware", {"firmware_path": str(site.folder / "project"), "port": "c3"}


@case("link")
def elf_beside_an_image(site):
    shutil.copy(BUILD / "pytest_esp_test.bin", site.folder / "one.bin")
    site.instead("one.elf", "app.elf")
    return "esp_ota_package_create", {"firmware_file": str(site.folder / "one.bin"), "version": "1"}


@case("link")
def arduino_build(site):
    shutil.copy(BUILD / "pytest_esp_test.bin", site.folder / "x.ino.bin")
    shutil.copy(BUILD / "bootloader" / "bootloader.bin", site.folder / "x.ino.bootloader.bin")
    site.instead("x.ino.partitions.bin", "table.bin")
    return "esp_flash_firmware", {"firmware_path": str(site.folder), "port": "c3"}


@case("link")
def platformio_build(site):
    shutil.copy(BUILD / "pytest_esp_test.bin", site.folder / "firmware.bin")
    shutil.copy(BUILD / "pytest_esp_test.elf", site.folder / "firmware.elf")
    shutil.copy(BUILD / "partition_table" / "partition-table.bin", site.folder / "partitions.bin")
    site.instead("bootloader.bin", "bootloader.bin")
    return "esp_flash_verify", {"firmware_path": str(site.folder), "port": "c3"}


# -- tables and values


@case()
def partition_table(site):
    name = site.name("table.csv")
    return "esp_partition_create", {"layout": str(site.folder / name)}


@case("link")
def partition_table_beside_an_image(site):
    shutil.copy(BUILD / "pytest_esp_test.bin", site.folder / "one.bin")
    site.instead("partition_table/partition-table.bin", "table.bin")
    return "esp_firmware_analyze", {"binary_file": str(site.folder / "one.bin")}


@case()
def file_of_an_nvs_csv(site):
    rows = f"key,type,encoding,value\nspace,namespace,,\ntext,file,string,{site.name('text.txt')}\n"
    values = site.write("values.csv", rows)
    return "esp_nvs_partition_create", {"data": values, "output_file": str(site.folder / "nvs.bin")}


# -- production


def program(config):
    return "esp_factory_program", {"config": config, "port": "c3"}


@case()
def firmware_of_a_factory_configuration(site):
    name = site.name("build")
    site.target = site.place / "build" / LISTING
    return program(site.write("config.json", {"firmware": name, "boot": False}))


@case()
def build_of_a_factory_configuration(site):
    site.build_that_lists()
    return program(site.write("config.toml", 'firmware = "build"\nboot = false\n'))


@case("link")
def factory_configuration(site):
    site.instead("config.json", "config.json")
    return program(str(site.folder / "config.json"))


@case()
def table_of_a_factory_configuration(site):
    site.build()
    return program(
        site.write("config.json", {"firmware": "build", "boot": False, "partition_table": site.name("table.csv")})
    )


@case("absolute")
def table_of_a_factory_configuration_that_is_only_an_ending(site):
    return program({"firmware": site.build(), "boot": False, "partition_table": site.name(".csv")})


@case()
def nvs_of_a_factory_configuration(site):
    site.build()
    return program(site.write("config.json", {"firmware": "build", "boot": False, "nvs": site.name("values.csv")}))


@case()
def value_of_a_factory_configuration(site):
    site.build()
    nvs = {"space": {"key": {"file": site.name("text.txt"), "type": "string"}}}
    return program(site.write("config.json", {"firmware": "build", "boot": False, "nvs": nvs}))


@case()
def key_of_a_factory_configuration(site):
    site.build()
    keys = {"nvs_key_file": site.name("key.bin"), "nvs": {"space": {"key": "value"}}}
    return program(site.write("config.json", {"firmware": "build", "boot": False, **keys}))


@case()
def value_of_one_board_in_a_batch(site):
    own = {"nvs": {"space": {"key": {"file": str(site.folder / site.name("text.txt"))}}}}
    return "esp_batch_program", {
        "ports": ["c3"], "firmware": site.build(), "config": {"boot": False}, "devices": [own], "look": False,
        "output_dir": str(site.folder / "record"),
    }  # fmt: skip


@case("link", writes=True)
def record_of_a_batch(site):
    site.instead("record/boards.jsonl", "record")
    return "esp_batch_program", {
        "ports": ["c3"], "firmware": site.build(), "config": {"boot": False}, "look": False,
        "output_dir": str(site.folder / "record"),
    }  # fmt: skip


@case()
def credential_of_a_provisioning(site):
    config = site.write("config.json", {"credentials": {"token": {"file": site.name("text.txt"), "type": "string"}}})
    return "esp_provision_device", {"config": config, "port": site.board()}


@case()
def calibration_data(site):
    data = site.write("data.json", {"table": {"file": site.name("text.txt")}})
    return "esp_calibration_data_write", {"data": data, "port": site.board()}


# -- what builders look for beside a file


@case("link")
def map_beside_an_elf(site):
    shutil.copy(BUILD / "pytest_esp_test.elf", site.folder / "app.elf")
    site.instead("app.map", "app.map")
    return "esp_size_analysis", {"elf_file": str(site.folder / "app.elf"), "chip_type": "esp32c3"}


@case("link")
def listing_beside_an_elf(site):
    shutil.copy(BUILD / "pytest_esp_test.elf", site.folder / "app.elf")
    site.instead(LISTING, f"build/{LISTING}")
    return "esp_app_prepare", {"elf_file": str(site.folder / "app.elf"), "chip_type": "esp32c3"}


@case()
def image_of_a_bootloader(site):
    image = str(site.folder / site.name("bootloader.bin"))
    return "esp_bootloader_build", {
        "chip_type": "esp32c3", "config": {"image": image}, "output_file": str(site.folder / "made.bin")
    }  # fmt: skip


@case("link")
def elf_of_a_monitor(site):
    site.instead("app.elf", "app.elf")
    site.target = site.place  # opened only if the app crashes
    return "esp_serial_monitor", {"port": "c3", "duration_seconds": 0.1, "elf_file": str(site.folder / "app.elf")}


# -- backups


def backed_up(site, member):
    backup, first = site.place / "backup", site.server.folder / "backup"
    if not first.exists():
        assert site.server.call("esp_smart_backup", output_dir="backup", port=site.board())["success"]
    shutil.copytree(first, backup)
    shutil.copytree(backup, site.folder / "backup")
    chosen = member or next(one.name for one in sorted(backup.iterdir()) if one.suffix == ".gz")
    site.instead(f"backup/{chosen}", f"backup/{chosen}")
    return str(site.folder / "backup")


@case("link")
def manifest_of_a_backup(site):
    return "esp_flash_restore", {"backup_dir": backed_up(site, "manifest.json"), "port": site.board()}


@case("link")
def chunk_of_a_backup(site):
    return "esp_flash_restore", {"backup_dir": backed_up(site, None), "port": site.board()}


@case("link")
def chunk_that_a_backup_goes_on_from(site):
    folder = backed_up(site, None)
    (site.folder / "backup" / "manifest.json").unlink()
    return "esp_flash_backup", {"output_dir": folder, "port": site.board()}


# -- what is written


@case("link", writes=True)
def flash_read_into_a_link(site):
    site.instead("read.bin", "record")
    read = {"address": 0, "size": 16, "output_file": str(site.folder / "read.bin"), "overwrite": True}
    return "esp_flash_read", {**read, "port": site.board()}


@case("link", writes=True)
def parts_in_a_linked_folder(site):
    site.instead("parts", ".")
    return "esp_binary_optimize", {"binary_file": site.build(), "output_dir": str(site.folder / "parts" / "new")}


@case("link", writes=True)
def file_that_is_not_complete_yet(site):
    """A file is written beside its place first, under a name that can be guessed."""
    site.instead(f".read.bin.{os.getpid()}.part", "record")
    read = {"address": 0, "size": 16, "output_file": str(site.folder / "read.bin")}
    return "esp_flash_read", {**read, "port": site.board()}


# -- the test


RACK = """
[boards.c3]
backend = "sim"
chip = "esp32c3"
flash_size = "2MB"
"""


@pytest.fixture
def server(serve, tmp_path):
    (tmp_path / "project" / "boards.toml").write_text(RACK)
    return serve()


def call(server, tool, arguments):
    """Call a tool, confirm what asks, and return the answer and all that was opened."""
    _watch.seen = []
    try:
        answer = server.call(tool, **arguments)
        if "confirm" in answer:
            answer = server.call(tool, **arguments, confirm=answer["confirm"])
        return answer, _watch.seen
    finally:
        _watch.seen = None


@pytest.mark.parametrize(("lay", "ways", "writes"), CASES)
def test_what_a_file_names(server, tmp_path, lay, ways, writes):
    inside, outside = server.folder / "kept", tmp_path / "outside"
    for place in (inside, outside):
        furnish(place)
    for way in ("inside", *ways):
        folder = server.folder / way
        folder.mkdir()
        leads_out = way != "inside"
        site = Site(server, folder, outside if leads_out else inside, way if leads_out else ways[0])
        tool, arguments = lay(site)
        before = snapshot(outside)
        answer, seen = call(server, tool, arguments)
        if not leads_out:
            assert answer["success"], answer
            assert writes or site.target == site.place or str(site.target.resolve()) in seen
            continue
        assert not answer["success"], (way, answer)
        assert "outside the folders" in answer["error"], (way, answer)
        assert str(server.folder) in answer["hint"]
        assert not [one for one in seen if Path(one).is_relative_to(outside)], way
        assert snapshot(outside) == before


def snapshot(folder):
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# -- other names


@pytest.mark.parametrize("name", ["../outside/x", "/outside/x", "image.bin", "link"])
def test_members_of_an_update_package(server, tmp_path, name):
    """Nothing is unpacked by its name, and what is no member of a package is refused."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        member = zipfile.ZipInfo(name)
        if name == "link":
            member.external_attr = 0o120777 << 16
        archive.writestr(member, "../outside/x")
    (server.folder / "update.espota").write_bytes(packed.getvalue())
    answer, seen = call(server, "esp_ota_deploy", {"package": "update.espota", "port": "c3"})
    assert "is not an update package" in answer["error"]
    assert not [one for one in seen if "outside" in one]
    assert sorted(one.name for one in tmp_path.iterdir() if one.name not in ("locks", "state")) == ["project"]


def test_a_client_cannot_write_the_rack_file(server):
    site = Site(server, server.folder, None, None)
    for name in ("boards.toml", "./boards.toml", "rack"):
        (server.folder / "rack").unlink(missing_ok=True)
        (server.folder / "rack").symlink_to("boards.toml")
        read = {"address": 0, "size": 16, "port": site.board(), "output_file": name, "overwrite": True}
        assert "may not be written here" in server.call("esp_flash_read", **read)["error"]
    assert (server.folder / "boards.toml").read_text() == RACK


def test_a_project_of_esp_idf(server, make_idf, tmp_path):
    project = make_idf(server.folder).project
    outside = tmp_path / "outside"
    furnish(outside)
    shutil.copytree(BUILD, project / "build")
    listing = {"flash_files": {"0x10000": str(outside / "app.bin")}}
    (project / "build" / LISTING).write_text(json.dumps(listing))
    lists = (project / "CMakeLists.txt").read_text()
    for _ in range(2):
        for tool in ("esp_idf_flash_project", "esp_idf_monitor"):
            answer, seen = call(server, tool, {"project_path": "blink", "port": "c3"})
            assert "outside the folders" in answer["error"], answer
            assert not [one for one in seen if Path(one).is_relative_to(outside)]
        (outside / "CMakeLists.txt").write_text(lists)
        (project / "CMakeLists.txt").unlink(missing_ok=True)
        (project / "CMakeLists.txt").symlink_to(outside / "CMakeLists.txt")


def test_a_link_among_others_in_a_project_does_not_matter(server, tmp_path):
    """A project may contain links to shared components; this one is not used."""
    furnish(tmp_path / "outside")
    shutil.copytree(BUILD, server.folder / "firmware" / "build")
    (server.folder / "firmware" / "components").symlink_to(tmp_path / "outside" / "build")
    answer, seen = call(server, "esp_flash_firmware", {"firmware_path": "firmware", "port": "c3"})
    assert answer["success"], answer
    assert not [one for one in seen if Path(one).is_relative_to(tmp_path / "outside")]


def test_the_key_for_updates_may_lie_anywhere(serve, tmp_path):
    """It is the server's own: a client may read it, but not write it."""
    key = tmp_path / "keys" / "update.pem"
    key.parent.mkdir()
    key.write_text("no key")
    server = serve(update_key=key)
    (server.folder / "update.espota").write_text("no package")
    deploy = {"package": "update.espota", "port": "c3"}
    assert "is not a public key" in server.call("esp_ota_deploy", **deploy)["error"]
    read = {"address": 0, "size": 16, "port": "c3", "output_file": str(key), "overwrite": True}
    assert "outside the folders" in server.call("esp_flash_read", **read)["error"]
