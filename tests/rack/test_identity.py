"""However a port is named, it is one board."""

import errno
import getpass
import os
import socket
import stat
import sys
from types import SimpleNamespace

import pytest
from serial.tools import list_ports
from serial.tools.list_ports_common import ListPortInfo

from pytest_esp.errors import LeaseError, NoMatchError, PortError
from pytest_esp.rack import identity as identities
from pytest_esp.rack.config import load_rack
from pytest_esp.rack.identity import (
    canonical_host,
    canonical_port,
    check_port,
    coordinator_address,
    identity,
    lab_address,
    possible_ports,
    resolve_port,
    user_id,
)
from pytest_esp.rack.lease import acquire
from pytest_esp.rack.requirement import Requirement


def rack_of(tmp_path, **ports):
    path = tmp_path / "boards.toml"
    boards = (f'[boards.{name}]\nbackend="serial"\nchip="esp32c3"\nport="{port}"\n' for name, port in ports.items())
    path.write_text('[rack]\nlock_dir="locks"\n' + "".join(boards))
    return load_rack(path)


@pytest.fixture
def node():
    main, device = os.openpty()
    yield os.ttyname(device)
    os.close(main)
    os.close(device)


@pytest.fixture
def plugged_in(monkeypatch):
    """Lets the machine see USB serial ports; none of them need be there."""

    def plug_in(**serials):
        ports = []
        for name, serial in serials.items():
            port = ListPortInfo(f"/dev/{name}")
            port.vid, port.pid, port.serial_number = 0x303A, 0x1001, serial
            ports.append(port)
        monkeypatch.setattr(list_ports, "comports", lambda: ports)

    return plug_in


def test_a_symlink_a_by_id_name_and_the_device_node_are_one_board(tmp_path, node):
    by_id = tmp_path / "usb-Espressif-if00"
    by_id.symlink_to(node)
    link = tmp_path / "link"
    link.symlink_to(by_id)
    rack = rack_of(tmp_path, node=node, by_id=by_id, link=link, spied=f"spy://{link}?file=/dev/null")
    assert len({identity(spec, rack) for spec in rack.boards.values()}) == 1
    with rack.lease("node", purpose="one")[0], pytest.raises(LeaseError, match="held for"):
        rack.lease("link", purpose="two", timeout=0)
    with pytest.raises(NoMatchError, match="link is the same hardware as node"):
        acquire([rack.board("node"), rack.board("link")], rack=rack, purpose="both", count=2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("rfc2217://LocalHost:4000?ign_set_control", "rfc2217://127.0.0.1:4000"),
        ("socket://[::1]:4000", "socket://localhost:4000"),
        ("socket://lab:4000", "rfc2217://LAB:4000"),
        ("com7", r"\\.\COM7"),
        ("COM7:", r"//./com7"),
        *[
            (f"rfc2217://{host}:4000", "rfc2217://127.0.0.1:4000")
            for host in ("127.1", "0x7f000001", "2130706433", "127.0.0.2", "localhost.", "LOCALHOST", "board.localhost")
        ],
        *[
            (f"rfc2217://{host}:4000", "socket://127.0.0.1:4000")
            for host in ("[::1]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::]", "0.0.0.0", socket.gethostname())
        ],
        ("RFC2217://user:secret@LocalHost:04000/path?logging=debug&ign_set_control#end", "socket://127.0.0.1:4000"),
        ("rfc2217://lab.example.:4000", "rfc2217://LAB.example:4000"),
        ("rfc2217://[2001:DB8:0::1]:4000", "rfc2217://[2001:db8::1]:4000"),
        ("rfc2217://192.0.2.1:4000", "rfc2217://192.0.513:4000"),
        ("/dev/./ttyUSB7", "/dev//ttyUSB7"),
        ("/dev/../dev/ttyUSB7", "SPY:///dev/ttyUSB7?file=/dev/null"),
    ],
)
def test_remote_and_windows_ports_have_one_name(one, other):
    assert canonical_port(one) == canonical_port(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("socket://lab:4000", "socket://lab:4001"),
        ("socket://mylocalhost:4000", "socket://my127.0.0.1:4000"),
        ("COM7", "COM70"),
        ("/dev/ttyUSB0", "/dev/ttyUSB1"),
        ("socket://192.0.2.1:4000", "socket://192.0.2.2:4000"),
        ("socket://192.0.2.1:4000", "socket://127.0.0.1:4000"),
        ("spy:///dev/ttyUSB0", "spy:///dev/ttyUSB1"),
    ],
)
def test_different_ports_have_different_names(one, other):
    assert canonical_port(one) != canonical_port(other)


@pytest.fixture
def hosts(monkeypatch):
    """A name server that knows these hosts; the names that were asked for are in its `asked`."""
    known = {"lab": ["fe80::1", "192.0.2.9", "192.0.2.8"], "other": ["192.0.2.8"], "twin": ["198.51.100.1"]}
    asked = []

    def look_up(name, *_, **__):
        asked.append(name)
        if name not in known:
            raise socket.gaierror(-2, "Name or service not known")
        return [(0, 0, 0, "", (address, 0)) for address in known[name]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(identities, "_known_addresses", {})
    identities._addresses.cache_clear()
    yield SimpleNamespace(asked=asked, known=known)
    identities._addresses.cache_clear()


def test_a_host_is_known_by_its_address(hosts):
    assert canonical_host("lab") == canonical_host("LAB.") == canonical_host("other") == "192.0.2.8"
    assert canonical_host("twin") == "198.51.100.1"
    assert canonical_host("nowhere") == "nowhere"


def test_a_host_is_looked_up_once_and_a_failure_is_repeated_after_a_while(hosts, monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(identities, "time", SimpleNamespace(monotonic=lambda: clock.now))
    for _ in range(3):
        canonical_host("lab")
        canonical_host("later")
    assert sorted(hosts.asked) == ["lab", "later"]
    hosts.known["later"] = ["192.0.2.7"]
    clock.now += 60
    assert canonical_host("later") == "192.0.2.7"
    hosts.known["later"] = ["192.0.2.6"]
    clock.now += 60
    assert canonical_host("later") == "192.0.2.7"  # a board does not change its identity under a lease


def test_too_few_descriptors_do_not_change_an_identity(monkeypatch):
    class Full(socket.socket):
        def __init__(self, *_):
            raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", Full)
        with pytest.raises(PortError, match="too many open files"):
            canonical_host("192.0.2.77")
    assert canonical_host("192.0.2.77") == "192.0.2.77"


def test_another_node_of_the_same_device_is_that_device(tmp_path, monkeypatch):
    """As in a container, or made with mknod."""
    (tmp_path / "ttys" / "null").mkdir(parents=True)
    (tmp_path / "link").symlink_to("/dev/null")
    monkeypatch.setattr(identities, "_TTYS", tmp_path / "ttys")
    node = tmp_path / "node"
    try:
        os.mknod(node, 0o600 | stat.S_IFCHR, os.stat("/dev/null").st_rdev)
    except PermissionError:
        pytest.skip("only root can make device nodes")
    assert canonical_port(str(node)) == canonical_port(str(tmp_path / "link")) == "device:/dev/null"


def test_a_device_that_pyserial_searches_is_that_device(ports):
    ports(("ttyUSB1", 0x0403, 0x6001, "1"), ("ttyUSB0", 0x0403, 0x6001, "2"))
    assert canonical_port("hwgrep://0403:6001") == "device:/dev/ttyUSB0"
    assert canonical_port("HWGREP://0403:6001&n=1&skip_busy") == "device:/dev/ttyUSB1"
    assert canonical_port("hwgrep://0403:6001&n=2") == "url:hwgrep:0403:6001&n=2"
    assert canonical_port("hwgrep://(") == "url:hwgrep:("


def test_a_usb_port_is_its_device_for_whoever_names_it(ports):
    ports(("ttyACM0", 0x303A, 0x1001, "7C:DF"), ("ttyACM1", 0x303A, 0x1001, "7C:DE"))
    assert canonical_port("usb:303a:1001:serial=7c:df") == canonical_port("USB:303A:1001:SERIAL=7C:DF")
    assert canonical_port("usb:303a:1001:serial=7c:df") == "device:/dev/ttyACM0"
    with pytest.raises(PortError, match="several devices"):
        canonical_port("usb:303a:1001")
    assert possible_ports("usb:303a:1001") == {"device:/dev/ttyACM0", "device:/dev/ttyACM1"}
    assert possible_ports("usb:303a:1002") == set()


@pytest.mark.parametrize("port", ["rfc2217://lab:99999", "rfc2217://[::1", "socket://lab", "/dev/tty\0", "usb:1"])
def test_a_malformed_port_has_no_name(port):
    with pytest.raises(PortError, match="not a valid port"):
        canonical_port(port)


def test_the_board_of_a_rack_that_a_port_leads_to(tmp_path, ports):
    ports(("ttyACM0", 0x303A, 0x1001, "A"), ("ttyACM1", 0x303A, 0x1001, "B"))
    rack = rack_of(
        tmp_path, any="usb:303a:1001", b="usb:303a:1001:serial=B", far="rfc2217://localhost:4000", gone="usb:0403:6001"
    )
    for port, name in {
        "/dev/ttyACM1": "b",
        "/dev/./ttyACM0": "any",  # one of two: what the entry allows holds for both
        "usb:303A:1001:serial=a": "any",
        "socket://127.1:4000": "far",
    }.items():
        assert rack.board_at(port).name == name
    assert rack.board_at("/dev/ttyACM2") is None
    assert rack.board_at("socket://127.1:4001") is None


def test_a_usb_board_that_comes_back_as_another_device_node_is_the_same_board(tmp_path, monkeypatch):
    """A chip with native USB that is reset while its port is held open gets the next free number."""
    ttys, socket = tmp_path / "class", tmp_path / "devices/usb1/1-1/1-1.4/1-1.4:1.0"
    adapter = tmp_path / "devices/usb1/1-2/1-2:1.0"
    monkeypatch.setattr(identities, "_TTYS", ttys)

    def attach(name, device, port_number=None):
        device.mkdir(parents=True, exist_ok=True)
        if port_number is not None:
            (device / "port_number").write_text(f"{port_number}\n")
        (ttys / name).mkdir(parents=True)
        (ttys / name / "device").symlink_to(device)

    attach("ttyACM0", socket)
    attach("ttyACM1", socket)
    attach("ttyUSB0", adapter / "ttyUSB0", 0)
    attach("ttyUSB1", adapter / "ttyUSB1", 1)
    (tmp_path / "board").symlink_to("/dev/ttyACM1")
    assert canonical_port("/dev/ttyACM0") == canonical_port(str(tmp_path / "board")) == "usb-socket:1-1.4:1.0"
    assert canonical_port("/dev/ttyUSB0") == "usb-socket:1-2:1.0#0"  # an adapter with two ports is two boards
    assert canonical_port("/dev/ttyUSB1") == "usb-socket:1-2:1.0#1"
    assert canonical_port("/dev/ttyS0") == "device:/dev/ttyS0"


def test_usb_ids_and_serial_number_find_the_device_node(tmp_path, plugged_in):
    plugged_in(ttyACM0="7C:DF:A1:00:11:22", ttyACM1="7C:DF:A1:00:11:23", ttyACM2="34:85:18:00:00:01")
    rack = rack_of(
        tmp_path,
        whole="usb:303a:1001:serial=7c:df:a1:00:11:23",
        beginning="usb:303A:1001:serial=34:85",
        vague="usb:303a:1001:serial=7C:DF:A1",
        any="usb:303a:1001",
        other="usb:10c4:ea60",
        node="/dev/ttyACM1",
    )
    assert resolve_port(rack.board("whole")) == "/dev/ttyACM1"
    assert identity(rack.board("whole"), rack) == identity(rack.board("node"), rack)
    assert resolve_port(rack.board("beginning")) == "/dev/ttyACM2"
    with pytest.raises(PortError, match="matches several devices: /dev/ttyACM0, /dev/ttyACM1"):
        resolve_port(rack.board("vague"))
    with pytest.raises(PortError, match="add :serial=SERIAL"):
        resolve_port(rack.board("any"))
    with pytest.raises(PortError, match="no USB device usb:10c4:ea60 is plugged in") as caught:
        resolve_port(rack.board("other"))
    assert "usb:303a:1001:serial=7C:DF:A1:00:11:22 (/dev/ttyACM0)" in str(caught.value)


def test_a_board_that_is_not_plugged_in_is_passed_over(tmp_path, plugged_in):
    plugged_in()
    rack = rack_of(tmp_path, gone="usb:303a:1001", here="/dev/null")
    with rack.lease(Requirement(), purpose="one")[0] as lease:
        assert lease.spec.name == "here"
        with pytest.raises(LeaseError, match="here: held for"):
            rack.lease(Requirement(), purpose="two", timeout=0)
    with pytest.raises(PortError, match="gone: no USB device"):
        rack.lease("gone", purpose="one", timeout=0)
    with pytest.raises(PortError, match="gone: no USB device"):
        rack.lease(Requirement(count=2), purpose="both", timeout=0)


def test_a_waiter_notices_that_a_board_has_been_plugged_in(tmp_path, plugged_in, monkeypatch):
    monkeypatch.setattr("pytest_esp.rack.lease._RESOLVE_EVERY", 0.01)
    plugged_in()
    rack = rack_of(tmp_path, later="usb:303a:1001", held="/dev/null")
    with rack.lease("held", purpose="one")[0]:
        waiting = rack.lease(Requirement(), purpose="two", timeout=5, on_wait=lambda *_: plugged_in(ttyACM0="1"))
        assert waiting[0].spec.name == "later"
        waiting[0].release()


@pytest.mark.skipif(sys.platform == "win32", reason="there every user has a name")
def test_the_built_in_rack_works_for_a_user_without_a_name(tmp_path, monkeypatch):
    """As in a container that runs under any number."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTEST_ESP_LOCK_DIR", str(tmp_path / "locks"))
    for variable in ("PYTEST_ESP_RACK", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54321)
    with pytest.raises((KeyError, OSError)):
        getpass.getuser()
    with load_rack().lease("virtual-c3", purpose="me", timeout=0)[0] as lease:
        assert lease.held


def test_labgrid_places_are_known_by_coordinator_and_place(tmp_path):
    path = tmp_path / "boards.toml"
    path.write_text(
        '[boards.a]\nbackend="labgrid"\ncoordinator="lab.example:20408"\nplace="far"\n'
        '[boards.b]\nbackend="labgrid"\ncoordinator="Lab.Example"\nplace="far"\n'
    )
    rack = load_rack(path)
    assert identity(rack.board("a"), rack) == identity(rack.board("b"), rack) == "labgrid:lab.example:20408/far"


@pytest.mark.parametrize(
    ("one", "other"),
    [("lab.example", "LAB.example.:20408"), ("localhost", "127.0.0.1:20408"), ("[::1]", "::1"), ("[::1]:1", "127.1:1")],
)
def test_a_coordinator_has_one_name(tmp_path, one, other):
    racks = [rack_with(tmp_path, f'backend="labgrid"\ncoordinator="{name}"\nplace="far"') for name in (one, other)]
    assert len({identity(rack.board("a"), rack) for rack in racks}) == 1


@pytest.mark.parametrize(
    ("coordinator", "address"),
    [
        ("Lab", "lab:20408"),
        ("lab:1", "lab:1"),
        ("[::1]", "[::1]:20408"),
        ("::1", "[::1]:20408"),
        ("[::1]:9", "[::1]:9"),
    ],
)
def test_the_address_of_a_coordinator(coordinator, address):
    assert coordinator_address(SimpleNamespace(coordinator=coordinator)) == address


def test_boards_of_a_lab_with_the_same_tags_are_different_ones(tmp_path):
    path = tmp_path / "boards.toml"
    path.write_text('[boards.a]\nbackend="labgrid"\ncoordinator="lab.example"\ntags={chip="esp32"}\ncount=2\n')
    rack = load_rack(path)
    assert len({identity(spec, rack) for spec in rack.boards.values()}) == 2


# -- the names themselves


def rack_with(folder, entry, name="boards.toml"):
    path = folder / name
    path.write_text(f"[boards.a]\n{entry}\n")
    return load_rack(path)


@pytest.mark.parametrize(
    ("port", "name"),
    [
        ("com7", "device:COM7"),
        ("rfc2217://Localhost:4000?logging=debug", "tcp:127.0.0.1:4000"),
        ("socket://lab:4000/", "tcp:lab:4000"),
        ("alt:///dev/ttyUSB7?class=VTIMESerial", "device:/dev/ttyUSB7"),
        ("spy://socket://lab:4000?file=x", "tcp:lab:4000"),
        ("hwgrep://0403:6001/x?n=1", "url:hwgrep:0403:6001/x"),
        ("loop://", "url:loop:"),
    ],
)
def test_the_one_name_of_a_port(port, name):
    assert canonical_port(port) == name


def test_on_a_mac_two_nodes_are_one_device(monkeypatch):
    assert canonical_port("/dev/tty.usbmodem1") != canonical_port("/dev/cu.usbmodem1")
    monkeypatch.setattr(identities, "sys", SimpleNamespace(platform="darwin"))
    assert canonical_port("/dev/tty.usbmodem1") == canonical_port("/dev/cu.usbmodem1") == "device:/dev/cu.usbmodem1"


def test_a_device_that_hangs_on_no_usb_socket(tmp_path, monkeypatch):
    monkeypatch.setattr(identities, "_TTYS", tmp_path)
    socket = tmp_path / "devices" / "1-1:1.0"
    socket.mkdir(parents=True)
    for name, device in (("ttyS7", tmp_path / "devices"), ("ttyACM7", socket)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "device").symlink_to(device)
    assert canonical_port("/dev/ttyS7") == "device:/dev/ttyS7"
    assert canonical_port("/dev/ttyACM7") == "usb-socket:1-1:1.0"
    assert canonical_port(str(tmp_path / "elsewhere" / "ttyACM7")) == f"device:{tmp_path}/elsewhere/ttyACM7"


def test_a_device_behind_two_hubs_is_known_by_the_nearest(tmp_path, monkeypatch):
    monkeypatch.setattr(identities, "_TTYS", tmp_path)
    device = tmp_path / "devices" / "1-1:1.0" / "1-1.4:1.2" / "ttyUSB7"
    device.mkdir(parents=True)
    (tmp_path / "ttyUSB7").mkdir()
    (tmp_path / "ttyUSB7" / "device").symlink_to(device)
    assert canonical_port("/dev/ttyUSB7") == "usb-socket:1-1.4:1.2"


def test_a_virtual_board_is_known_by_its_rack_file_and_name(tmp_path):
    rack = rack_with(tmp_path, 'backend="sim"\nchip="esp32"')
    assert identity(rack.board("a"), rack) == f"sim:{os.path.realpath(rack.path)}:a"
    (tmp_path / "link.toml").symlink_to(rack.path)
    linked = load_rack(tmp_path / "link.toml")
    assert identity(linked.board("a"), linked) == identity(rack.board("a"), rack)


def test_a_board_of_the_built_in_rack_is_the_users(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rack = load_rack()
    assert identity(rack.board("virtual-c3"), rack) == f"sim:built-in of {user_id()}:virtual-c3"


def test_what_tells_users_apart(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 54321, raising=False)
    assert user_id() == "54321"
    monkeypatch.setattr(identities, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr("getpass.getuser", lambda: "J\u00fcrgen  D\u00f6 9")
    assert user_id() == "J-rgen-D-9"


def test_the_address_of_a_labgrid_board(tmp_path):
    place = rack_with(tmp_path, 'backend="labgrid"\ncoordinator="Lab:1234"\nplace="far"')
    assert lab_address(place.board("a")) == "lab:1234/far"
    assert identity(place.board("a"), place) == "labgrid:lab:1234/far"
    tags = rack_with(tmp_path, 'backend="labgrid"\ncoordinator="lab"\ntags={desk="left", chip="esp32"}')
    assert lab_address(tags.board("a")) == "lab:20408/chip=esp32,desk=left"
    assert identity(tags.board("a"), tags) == f"labgrid:lab:20408/chip=esp32,desk=left:{tags.path}:a"


@pytest.mark.parametrize(
    "port",
    [
        "usb:303a:1001",
        "usb:303A:1001:serial=x",
        "rfc2217://lab:4000",
        "SOCKET://lab:1",
        "socket://[::1]:65535",
        "spy://lab",
        "/dev/x",
    ],
)
def test_what_can_be_a_port(port):
    check_port(port)


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        ("usb:303a:100", "usb:VID:PID"),
        ("usb:303a:1001:serial=", "usb:VID:PID"),
        ("usb:303a", "usb:VID:PID"),
        ("rfc2217://lab", "rfc2217://HOST:PORT"),
        ("RFC2217://:4000", "rfc2217://HOST:PORT"),
        ("socket://lab:65536", "socket://HOST:PORT"),
        ("socket://lab:http", "socket://HOST:PORT"),
        ("socket://[::1", "socket://HOST:PORT"),
    ],
)
def test_what_can_be_no_port(port, expected):
    with pytest.raises(ValueError, match=f"expected {expected}"):
        check_port(port)
    with pytest.raises(PortError) as caught:
        resolve_port(SimpleNamespace(port=port, name="a"))
    assert expected in caught.value.hint


# -- what is plugged in


@pytest.fixture
def ports(monkeypatch):
    """Lets the machine see ports with these USB ids and serial numbers."""

    def plug_in(*devices):
        found = []
        for name, vid, pid, serial in devices:
            port = ListPortInfo(f"/dev/{name}")
            port.vid, port.pid, port.serial_number = vid, pid, serial
            if vid is not None:
                port.apply_usb_info()
            found.append(port)
        monkeypatch.setattr(list_ports, "comports", lambda *_: found)

    return plug_in


def found(port):
    return resolve_port(SimpleNamespace(port=port, name="a"))


def test_both_usb_ids_must_fit(ports):
    ports(("a", 0x0403, 0x6001, "1"), ("b", 0x0403, 0x6010, "1"), ("c", 0x303A, 0x6001, "1"))
    assert found("usb:0403:6001") == "/dev/a"
    assert found("usb:0403:6010") == "/dev/b"
    assert found("usb:303A:6001") == "/dev/c"


def test_a_whole_serial_number_goes_before_a_beginning(ports):
    ports(("a", 0x0403, 0x6001, "AB1"), ("b", 0x0403, 0x6001, "AB"), ("c", 0x0403, 0x6001, None))
    assert found("usb:0403:6001:serial=ab") == "/dev/b"
    assert found("usb:0403:6001:serial=ab1") == "/dev/a"
    with pytest.raises(PortError, match=r": /dev/a, /dev/b, /dev/c\n"):  # not the one without a number
        found("usb:0403:6001")


def test_what_is_plugged_in_is_said(ports):
    ports(("a", 0x0403, 0x6001, "1"), ("ttyS0", None, None, None))
    with pytest.raises(PortError) as caught:
        found("usb:303a:1001")
    assert caught.value.hint == "plugged in: usb:0403:6001:serial=1 (/dev/a)"
    ports(("ttyS0", None, None, None))
    with pytest.raises(PortError, match="no USB serial port was found"):
        found("usb:303a:1001")
