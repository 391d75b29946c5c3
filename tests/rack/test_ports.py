"""Serial ports that the system lists (a stand-in), their lasting names, and racks made of ports."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serial.tools import list_ports
from serial.tools.list_ports_common import ListPortInfo

from pytest_esp.errors import PortError, RackError
from pytest_esp.rack import ports
from pytest_esp.rack.config import load_rack
from pytest_esp.rack.holder import printable
from pytest_esp.rack.identity import canonical_port
from pytest_esp.rack.ports import expand_auto, find_ports, plugged_in, rack_of_ports
from pytest_esp.rack.rack import Rack

NONE = Rack("none", None, {})


@pytest.fixture
def plug(tmp_path, monkeypatch):
    """A function that plugs a device in; its udev links are *by_id* and *by_path*, if given."""
    devices = []
    monkeypatch.setattr(list_ports, "comports", lambda: devices)
    folders = [tmp_path / "by-id", tmp_path / "by-path"]
    for folder in folders:
        folder.mkdir()
    monkeypatch.setattr(ports, "_LINKS", tuple(map(str, folders)))

    def make(name, vid=None, pid=None, serial=None, description="a bridge", by_id=None, by_path=None):
        item = ListPortInfo(str(tmp_path / name))
        item.vid, item.pid, item.serial_number, item.description = vid, pid, serial, description
        Path(item.device).touch()
        for folder, link in zip(folders, (by_id, by_path), strict=True):
            if link:
                (folder / link).symlink_to(item.device)
        devices.append(item)
        return item.device

    return make


class TestLastingNames:
    def test_a_serial_number_makes_by_id_last(self, plug, tmp_path):
        plug("ttyACM0", 0x303A, 0x1001, "7C:DF", by_id="usb-Espressif_7C_DF-if00", by_path="pci-0-usb-0:1")
        (port,) = plugged_in()
        assert port.name == str(tmp_path / "by-id" / "usb-Espressif_7C_DF-if00")
        assert port.usb == "usb:303a:1001:serial=7C:DF"

    def test_without_udev_it_is_the_usb_name(self, plug):
        device = plug("ttyACM0", 0x303A, 0x1001, "7C:DF")
        (port,) = plugged_in()
        assert port.name == "usb:303a:1001:serial=7C:DF"
        assert canonical_port(port.name) == canonical_port(device)

    def test_without_serial_number_it_is_the_socket(self, plug, tmp_path):
        plug("ttyUSB0", 0x1A86, 0x7523, by_id="usb-1a86_USB_Serial-if00-port0", by_path="pci-0-usb-0:1")
        assert plugged_in()[0].name == str(tmp_path / "by-path" / "pci-0-usb-0:1")

    def test_without_any_of_them_it_is_the_device(self, plug):
        device = plug("ttyUSB0", 0x1A86, 0x7523)
        assert plugged_in()[0].name == device

    def test_a_name_that_two_ports_share_is_none(self, plug):
        """A bridge with two ports, and two adapters that were made with one serial number."""
        devices = [plug(f"ttyUSB{number}", 0x0403, 0x6010, "FT1") for number in range(2)]
        assert [port.name for port in plugged_in()] == devices

    @given(serial=st.text(min_size=1), description=st.text())
    def test_texts_of_devices_have_no_escapes(self, serial, description):
        item = ListPortInfo("/dev/ttyX9")
        item.vid, item.pid, item.serial_number, item.description = 0x303A, 0x1001, serial, description
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(list_ports, "comports", lambda: [item])
            (port,) = plugged_in()
            for text in (port.name, port.description, port.usb, port.serial_number):
                assert text == printable(text)
            assert canonical_port(port.name) == "device:/dev/ttyX9"


@pytest.mark.parametrize(
    ("vid", "pid", "likely"),
    [
        (0x303A, 0x1001, True),
        (0x303A, 0x4001, True),
        (0x10C4, 0xEA60, True),
        (0x10C4, 0x1234, False),
        (0x1A86, 0x55D4, True),
        (0x0403, 0x6015, True),
        (0x2341, 0x0043, False),
        (None, None, False),
    ],
)
def test_boards_are_known_by_their_usb_ids(plug, vid, pid, likely):
    plug("tty0", vid, pid)
    assert plugged_in()[0].is_likely is likely


def test_a_port_that_the_user_names_is_likely_and_listed_once(plug, tmp_path):
    device = plug("ttyS0")
    other = plug("ttyS1")
    link = tmp_path / "link"
    link.symlink_to(device)
    found = find_ports([str(link), "socket://bench:4000", "socket://bench:4000"])
    assert [(port.device, port.is_likely) for port in found] == [
        (device, True),
        (other, False),
        ("socket://bench:4000", True),
    ]
    assert [port.device for port in find_ports([str(link)], others=False)] == [device]


class TestAuto:
    def test_it_is_all_likely_ports_by_their_lasting_names(self, plug):
        plug("ttyACM0", 0x303A, 0x1001, "AA")
        plug("ttyS0")
        bridge = plug("ttyUSB0", 0x10C4, 0xEA60)
        assert expand_auto(["auto"]) == ["usb:303a:1001:serial=AA", bridge]
        assert list(rack_of_ports(NONE, ["auto"]).boards) == ["usb-303a-1001-serial-AA", "ttyUSB0"]

    def test_without_one_it_says_what_it_has_seen(self, plug):
        with pytest.raises(RackError, match="no serial port was found"):
            expand_auto(["auto"])
        device = plug("ttyS0", description="a UART")
        with pytest.raises(RackError, match=rf"found: {device} \(a UART\)"):
            expand_auto(["auto"])


class TestRacksOfPorts:
    @pytest.mark.parametrize(
        ("port", "name"),
        [
            ("/dev/ttyUSB0", "ttyUSB0"),
            ("/dev/pts/3", "pts-3"),
            ("/dev/serial/by-id/usb-Silicon_Labs_CP2102_0001-if00-port0", "usb-Silicon_Labs_CP2102_0001-if00-port0"),
            ("/tmp/link", "link"),
            ("COM7", "COM7"),
            ("rfc2217://bench:4000", "bench-4000"),
            ("socket://[::1]:4000", "1-4000"),
            ("/dev/\N{SNOWMAN}", "board"),
        ],
    )
    def test_a_board_is_named_after_its_port(self, port, name):
        (spec,) = rack_of_ports(NONE, [port]).boards.values()
        assert (spec.name, spec.backend, spec.port) == (name, "serial", port)
        assert spec.allow == {"read", "write", "erase"}

    def test_two_spellings_are_one_board_and_two_ports_two(self):
        rack = rack_of_ports(NONE, ["rfc2217://localhost:1", "socket://127.0.0.1:1", "/tmp/a/x", "/tmp/b/x"])
        assert list(rack.boards) == ["localhost-1", "x", "x-2"]

    def test_the_entry_of_a_port_holds_for_it(self, tmp_path):
        path = tmp_path / "boards.toml"
        path.write_text(
            f'[rack]\nlock_dir = "{tmp_path}"\n'
            '[boards.far]\nbackend="serial"\nchip="esp32"\nport="rfc2217://localhost:4000"\nallow=["read"]\n'
            '[boards.other]\nbackend="sim"\nchip="esp32"\n'
        )
        rack = load_rack(path, ports=["socket://127.0.0.1:4000", "/tmp/other"])
        assert [(spec.name, spec.chip, spec.allow) for spec in rack.boards.values()] == [
            ("far", "esp32", {"read"}),
            ("other-2", "auto", {"read", "write", "erase"}),
        ]
        assert (rack.path, rack.lock_dir) == (path, tmp_path)

    @pytest.mark.parametrize("port", ["rfc2217://lab:99999", "socket://[::1", "usb:303a", "/dev/tty\0"])
    def test_a_malformed_port_is_refused(self, port):
        with pytest.raises(RackError, match="not a valid port"):
            rack_of_ports(NONE, [port])
        with pytest.raises(PortError, match="not a valid port"):
            find_ports([port])

    def test_a_usb_port_that_is_not_plugged_in_says_what_is(self, plug):
        plug("ttyACM0", 0x303A, 0x1001, "A\x1b[31mA")
        with pytest.raises(RackError, match="no USB device usb:1234:5678") as caught:
            rack_of_ports(NONE, ["usb:1234:5678"])
        assert "usb:303a:1001" in str(caught.value)
        assert "\x1b" not in str(caught.value)
