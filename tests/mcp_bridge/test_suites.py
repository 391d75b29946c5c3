"""Test suites that clients may run: those named when the server starts, and none that a client could write."""

import json

import pytest
from click.testing import CliRunner

from mcp_bridge.cli import main
from mcp_bridge.suites import named_suites
from pytest_esp.errors import OperationError

SUITE = "def test_it(esp):\n    assert esp.chip.identify().chip_type\n"


@pytest.fixture
def places(tmp_path):
    """A folder with suites, and one in which clients write."""
    suites, root = tmp_path / "suites", tmp_path / "root"
    (suites / "line").mkdir(parents=True)
    (suites / "line" / "test_line.py").write_text(SUITE)
    (suites / "test_own.py").write_text(SUITE)
    root.mkdir()
    (root / "test_client.py").write_text(SUITE)
    return suites, root


def test_files_folders_and_modules(places):
    suites, root = places
    names = [str(suites / "test_own.py"), str(suites / "line"), "pytest_esp.suites.test_reset", "pytest_esp.suites"]
    found = named_suites(names, [root])
    assert list(found) == names
    assert [path.name for path in found.values()] == ["test_own.py", "line", "test_reset.py", "suites"]


@pytest.mark.parametrize("name", ["none.py", "no_such_module", "no.such.module", "", "a\0b"])
def test_what_does_not_exist(name):
    with pytest.raises(OperationError, match="no such file, folder or module"):
        named_suites([name], [])


def inside(suites, root):
    return root / "test_client.py", root


def whole_root(suites, root):
    return root, root


def root_inside_a_suite(suites, root):
    (suites / "line" / "data").mkdir()
    return suites / "line", suites / "line" / "data"


def link_to_a_root(suites, root):
    (suites / "test_link.py").symlink_to(root / "test_client.py")
    return suites / "test_link.py", root


def link_inside_a_suite(suites, root):
    (suites / "line" / "more").symlink_to(root)
    return suites / "line", root


def configuration_beside_it(suites, root):
    (suites / "conftest.py").symlink_to(root / "conftest.py")
    return suites / "test_own.py", root


@pytest.mark.parametrize(
    "way",
    [inside, whole_root, root_inside_a_suite, link_to_a_root, link_inside_a_suite, configuration_beside_it],
)
def test_what_a_client_could_write(places, way):
    suite, root = way(*places)
    with pytest.raises(OperationError, match="where clients may write files") as caught:
        named_suites([str(suite)], [root])
    assert "--roots" in caught.value.hint


def test_the_server_does_not_start(places):
    _, root = places
    said = CliRunner().invoke(main, ["--suites", str(root / "test_client.py"), "--roots", str(root)])
    assert said.exit_code == 1
    assert "clients may write files" in said.output


# -- calls


@pytest.mark.parametrize(
    "name", ["test_client.py", "{root}/test_client.py", "../project/test_client.py", "identity,test_client.py", "", "."]
)
def test_a_client_cannot_run_what_it_wrote(server, name):
    (server.folder / "test_client.py").write_text("raise SystemExit(open('was_run', 'w').write('1'))\n")
    answer = server.call("esp_production_test", test_suite=name.format(root=server.folder), port="c3")
    assert "does not offer the suite" in answer["error"]
    assert not (server.folder / "was_run").exists()


EVIL = "open({mark!r}, 'w').write('1')\n"


@pytest.mark.parametrize("file", ["conftest.py", "pytest.py", "esptool.py", "test_identity.py", "sitecustomize.py"])
@pytest.mark.parametrize("built_in", [True, False])
def test_what_a_client_writes_into_the_working_folder_is_not_run(serve, places, monkeypatch, file, built_in):
    suites, _ = places
    server = serve(suites=(str(suites / "test_own.py"),))
    monkeypatch.chdir(server.folder)
    mark = server.folder / "was_run"
    (server.folder / file).write_text(EVIL.format(mark=str(mark)))
    (server.folder / "pytest.ini").write_text("[pytest]\npythonpath = .\naddopts = -p esptool\n")
    name = "identity" if built_in else str(suites / "test_own.py")
    answer = server.call("esp_production_test", test_suite=name, port="c3")
    assert answer.get("passed"), answer
    assert not mark.exists()


# -- burns


BURNING = """
def test_it(esp):
    esp.efuse.burn("DIS_PAD_JTAG", 1)

def test_by_register(esp):
    with esp.link.session.use("burning", stub=False) as loader:
        loader.write_reg(0x600089D4, 2)
"""
MARKED = """
import pytest

@pytest.mark.burns
def test_it(esp):
    assert esp.efuse.burn("DIS_PAD_JTAG", 1).verified
"""


@pytest.fixture
def bench(serve, places, start_serving, tmp_path):
    """A function that makes a server with a suite, and a board in another process that counts as real."""
    suite = places[0] / "test_own.py"

    def make(source, **settings):
        suite.write_text(source)
        url = start_serving("sim", "esp32c3", "--listen", "rfc2217://127.0.0.1:0").url("rfc2217")
        (tmp_path / "project" / "boards.toml").write_text(
            f'[boards.devkit]\nbackend="serial"\nchip="esp32c3"\nport="{url}"\n'
            'allow=["read","write","burn"]\nallow_burn=["DIS_PAD_JTAG"]\n'
        )
        return serve(suites=(str(suite),), **settings), {"test_suite": str(suite), "port": "devkit"}

    return make


def is_burnt(server):
    return server.call("esp_efuse_read", efuse_name="DIS_PAD_JTAG", port="devkit")["value"] == "1"


def audit(tmp_path):
    return [json.loads(line) for path in tmp_path.rglob("efuse-audit.jsonl") for line in path.read_text().splitlines()]


def test_without_consent_a_suite_burns_nothing(bench, tmp_path):
    server, call = bench(BURNING, burns_enabled=True)
    done = server.call("esp_production_test", **call)
    assert [test["outcome"] for test in done["tests"]] == ["failed", "failed"], done
    assert "does not allow burning eFuses" in done["tests"][0]["message"]
    assert "starts to burn eFuses" in done["tests"][1]["message"]
    assert not is_burnt(server)
    assert not audit(tmp_path)


def test_with_consent_a_suite_burns_what_allow_burn_lists(bench, tmp_path):
    server, call = bench(MARKED, burns_enabled=True)
    asked = server.call("esp_production_test", **call, allow_burn=True)
    assert "its tests may burn eFuses permanently: DIS_PAD_JTAG" in asked["plan"]
    assert not is_burnt(server)
    done = server.call("esp_production_test", **call, allow_burn=True, confirm=asked["confirm"])
    assert done.get("passed"), done
    assert is_burnt(server)
    assert [entry["stage"] for entry in audit(tmp_path)] == ["begin", "done"]


@pytest.mark.parametrize("settings", [{}, {"burns_enabled": True, "allow": frozenset()}])
def test_consent_is_not_enough(bench, tmp_path, settings):
    server, call = bench(MARKED, **settings)
    answer = server.call("esp_production_test", **call, allow_burn=True)
    if "confirm" in answer:
        answer = server.call("esp_production_test", **call, allow_burn=True, confirm=answer["confirm"])
    assert not answer.get("passed")
    assert not audit(tmp_path)
