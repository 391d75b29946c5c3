"""A simulated chip: ROM loader, stub flasher, flash, eFuses and boot, behind one wire."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Literal

from pytest_esp.errors import BackendError
from pytest_esp.formats.mac import made_up_mac, parse_mac
from pytest_esp.formats.nor_flash import SECTOR, NorFlash
from pytest_esp.sim import crypt
from pytest_esp.sim.app import SilentApp, SimApp
from pytest_esp.sim.boot import BootResult, boot
from pytest_esp.sim.boot_log import download_banner
from pytest_esp.sim.bus import Bus
from pytest_esp.sim.efuse import Efuses
from pytest_esp.sim.loader import Loader, RomLoader, StubLoader
from pytest_esp.sim.model import ChipModel
from pytest_esp.sim.usb import ENUMERATION, UsbKind, UsbPort
from pytest_esp.wire.loop import Timer, call_later
from pytest_esp.wire.wire import Wire, rom_console_baudrate

Mode = Literal["bootloader", "stub", "app", "ram-app", "locked", "held", "off"]
"""``locked``: download mode was requested, but is disabled by an eFuse."""
OnClose = Literal["bootloader", "app", "keep"]

_BAUDRATE_TOLERANCE = 0.04  # half a bit in a frame of ten bits, shared by both ends
_LOADING = 0.15  # seconds from the ROM's last line to what follows at another baud rate
_LEAVING = 0.05  # seconds from a loader's last answer to the ROM's first line at another baud rate
_BOOT_LOOP_PERIOD = 1.0  # seconds until the watchdog resets a chip without a bootable image
# Noise, as received at the wrong baud rate. No byte of it is a frame's end or text.
_NOISE = bytes(0x80 | (byte ^ 0x5A) & 0x3F for byte in range(256))
# The address of the pointer in the ESP32-S3's ROM data that esptool changes to start its stub with secure boot.
_S3_ROM_READ_POINTER = 0x3FCEF688


class SimChip:
    """A chip that responds like a real one on its UART, but does not run machine code.

    It is a state machine without a thread: its response is on the wire when the received bytes have been handled. All
    methods except the constructor require the wire's lock, which `wire.HostSide` holds.

    Args:
        chip: a name from ``esptool.CHIP_LIST``.
        flash: its flash; None for a blank flash of *flash_size* bytes in memory.
        efuse_file: the file for the eFuses, in the format of espefuse's emulator; None for memory.
        mac: base MAC address, ``"7C:DF:A1:00:00:01"``; None for that of the eFuse file, or one derived from *name*.
        revision: major * 100 + minor; None for that of the eFuse file, or a current one.
        rollback: whether its bootloader was built with app rollback; ESP-IDF's default is not to.
        secure_download: whether to act as if ENABLE_SECURITY_DOWNLOAD were burned.
        app: the class that replaces the app after the bootloader has called ``app_main``.
        usb: the kind of its port.
        console_baud: the baud rate of the bootloader and the app; None for that of *app*.
        rise_time: see `AutoResetCircuit`; use 0 for hosts in the same process.
        reads_strap_late: see `is_strict` of `AutoResetCircuit`.
        on_close: the state after a host without reset lines has closed its port while a loader runs: the ROM loader,
            the app, or unchanged. With ``bootloader``, this also applies to a program in RAM and a failed boot, unless
            the host has just started that: the next host should see its output.
        name: the MAC address is derived from it if none is given.
        wire: the wire to connect to; None for a new one.

    Raises:
        BackendError: for an unknown chip, a port that it does not have, an invalid MAC address, files that cannot be
            used, or an eFuse file of a chip with another MAC address or revision than requested.
    """

    def __init__(
        self,
        chip: str,
        *,
        flash: NorFlash | None = None,
        flash_size: int = 4 * 1024 * 1024,
        efuse_file: Path | None = None,
        mac: str | None = None,
        revision: int | None = None,
        rollback: bool = False,
        secure_download: bool = False,
        app: type[SimApp] | None = None,
        usb: UsbKind = "bridge",
        console_baud: int | None = None,
        rise_time: float = 0.0,
        reads_strap_late: bool = False,
        on_close: OnClose = "bootloader",
        name: str | None = None,
        wire: Wire | None = None,
    ) -> None:
        self.chip = chip
        self.model = ChipModel(chip)
        self.usb = UsbPort(self.model, usb)
        self.mac_bytes = parse_mac(mac) if mac else made_up_mac(name or chip)
        self.revision = self.model.default_revision if revision is None else revision
        self.efuses = (
            Efuses(self.model, self.mac_bytes, self.revision, efuse_file, lambda: self._uart_clock_mhz)
            if self.model.has_efuses
            else None
        )
        if self.efuses is not None and self.efuses.was_stored:
            self._take_stored_identity(self.efuses, mac, revision)
        if secure_download:
            self._burn_secure_download()
        self.flash = flash or NorFlash(flash_size)
        self.wire = wire or Wire(self.usb.fifo_size)
        self.wire.device = self
        self.baudrate = self._rom_baudrate
        self._host_baudrate: int | None = None
        self._speed_is_settled = False
        self._left_the_loader = False
        self.flash_is_attached = False
        self.bus = Bus(
            self.model,
            self.flash,
            self.efuses,
            self._fixed_registers(),
            self._watchdog,
            lambda: self.model.uart_clock_divider(self._uart_clock_mhz, self.baudrate),
            lambda: self.flash_is_attached,
        )
        self._rollback = rollback
        self._on_close = on_close
        self._app_class: type[SimApp] = app or SilentApp
        self._console_baudrate = console_baud or self._app_class.console_baud
        self._app: SimApp | None = None
        self._loader: Loader | None = None
        self._reboot: Timer | None = None
        self._loading: Timer | None = None
        self.mode: Mode = "off"
        self.last_boot: BootResult | None = None
        self._slow_hosts = rise_time
        self._circuit = self.usb.logic(
            self.hold,
            self._reset_by_lines,
            lambda: self.is_in_loader,
            rise_time,
            self.wire.lock,
            is_strict=reads_strap_late,
        )
        self._reset_reason = "POWERON"

    @property
    def mac(self) -> str:
        """The base MAC address, e.g. ``7c:df:a1:00:00:01``."""
        return self.mac_bytes.hex(":")

    @property
    def is_in_loader(self) -> bool:
        """Whether the ROM's loader or the stub is running."""
        return self._loader is not None

    @property
    def secure_download(self) -> bool:
        """Whether the ROM is in secure download mode."""
        return self.efuses is not None and bool(self.efuses.field("ENABLE_SECURITY_DOWNLOAD"))

    # -- starting and stopping

    def hold(self) -> None:
        """Hold the chip in reset: it neither sends nor receives."""
        if self._reboot is not None:
            self._reboot.cancel()
            self._reboot = None
        if self._loading is not None:
            self._loading.cancel()
            self._loading = None
        self._stop_app()
        self._loader = None
        self.mode = "held"

    def reset(self, bootloader: bool) -> None:
        """Restart the chip into the ROM's loader or from flash."""
        with self.wire.lock:
            self._circuit.cancel()
            software_ends = self._app is not None or (self.is_in_loader and not bootloader)
            self.hold()
            self.baudrate = self._rom_baudrate
            self._speed_is_settled = False
            self.flash_is_attached = self.model.flash_is_attached_by_rom
            reason, self._reset_reason = self._reset_reason, "POWERON"
            if self.usb.vanishes(reason, software_ends=software_ends):
                self.wire.vanish("the chip was reset", ENUMERATION)
            if bootloader:
                self._start_loader(reason)
            else:
                self._boot(reason)

    def power_off(self) -> None:
        """Switch the chip off: RAM is lost, and it does not respond."""
        with self.wire.lock:
            self.hold()
            self.bus.clear()
            self.mode = "off"

    def close(self) -> None:
        """Stop the chip and write flash and eFuses to their files. Closing twice has no effect."""
        self.power_off()
        self.flash.close()
        if self.efuses is not None:
            self.efuses.save()

    def _start_loader(self, reason: str) -> None:
        if self._download_mode_is_disabled():
            self.mode = "locked"
            return
        if self.usb.carries_boot_log and not self._rom_is_muted():
            self.transmit(download_banner(self.model, reason))
        self._loader = RomLoader(self)
        self.mode = "bootloader"

    def _download_mode_is_disabled(self) -> bool:
        if self.efuses is None:
            return False
        if self.model.is_esp32:  # older ROMs do not support the eFuse (ESP32 ECO V3 user guide)
            return self.revision >= 300 and bool(self.efuses.field("UART_DOWNLOAD_DIS"))
        return bool(self.efuses.field("DIS_DOWNLOAD_MODE"))

    def _rom_is_muted(self) -> bool:
        """Whether eFuses keep the ROM from printing; the ESP32 and the ESP8266 have none for that."""
        return self.efuses is not None and not self.model.is_esp32 and self.efuses.field("UART_PRINT_CONTROL") == 3

    def _boot(self, reason: str) -> None:
        result = boot(
            self.model,
            self.flash,
            reason,
            self.revision,
            read=self._flash_as_the_cpu_sees_it,
            write=self._write_as_the_cpu,
            rom_is_muted=self._rom_is_muted(),
            secure_boot=self.efuses.secure_boot() if self.efuses is not None else None,
            rollback=self._rollback,
        )
        self.last_boot = result
        self.mode = "app"
        log = result.log if self.usb.carries_boot_log else b""
        if self._console_baudrate == self.baudrate or self._host_baudrate is None or not self.usb.is_uart:
            self.transmit(log)
            self._start_or_fail(result)
            return
        self.transmit(log[: result.rom_size])

        def load() -> None:
            with self.wire.lock:
                if self._loading is timer:
                    if result.started or log[result.rom_size :]:
                        self.baudrate = self._console_baudrate  # bootloader and app set it, as they were built
                    self.transmit(log[result.rom_size :])
                    self._start_or_fail(result)

        self._loading = timer = call_later(_LOADING, load)

    def _start_or_fail(self, result: BootResult) -> None:
        if result.started:
            self._start_app(self._app_class, result)
        elif result.resets_itself:
            self._reset_later(_BOOT_LOOP_PERIOD, "RTC_SW_SYS_RST")
        elif not self.model.is_8266:  # whose ROM stops here
            self._reset_later(_BOOT_LOOP_PERIOD, "TG0WDT_SYS_RST" if not self.model.is_esp32 else "RTCWDT_RTC_RST")

    def _start_app(self, app_class: type[SimApp], result: BootResult | None) -> None:
        self._app = app_class(self.transmit, self.restart, result)
        self._app.start()

    def _stop_app(self) -> None:
        app, self._app = self._app, None
        if app is not None:
            app.stop()

    def restart(self, reason: str = "RTC_SW_CPU_RST") -> None:
        """Restart from flash, as after ``esp_restart``, a panic or a brownout; the boot log shows *reason*."""
        self._reset_reason = reason
        self.reset(bootloader=False)

    def _reset_by_lines(self, bootloader: bool) -> None:
        self._reset_reason = self.usb.line_reset_reason
        self.reset(bootloader=bootloader)

    def _watchdog(self, delay: float) -> None:
        """Reset after *delay* seconds: by then the loader has answered the write that armed the watchdog.

        A host that is too slow for the boot strap is also too slow to lock the watchdog's registers in this time.
        """
        self._reset_later(min(max(delay, 0.01), 5.0) + self._slow_hosts, "RTCWDT_RTC_RST")

    def _reset_later(self, delay: float, reason: str) -> None:
        def bite() -> None:
            with self.wire.lock:
                if self._reboot is timer:
                    self._left_the_loader |= self._loader is not None
                    self._reset_reason = reason
                    self.reset(bootloader=self._download_boot_is_forced())

        if self._reboot is not None:
            self._reboot.cancel()
        self._reboot = timer = call_later(delay, bite)

    def _download_boot_is_forced(self) -> bool:
        rom = self.model.rom
        register = getattr(rom, "RTC_CNTL_OPTION1_REG", None)
        mask = getattr(rom, "RTC_CNTL_FORCE_DOWNLOAD_BOOT_MASK", 0)
        return register is not None and bool(self.bus.read(register) & mask)

    # -- the wire (`wire.Device`)

    def receive(self, data: bytes) -> None:
        """Receive bytes from a host. If its baud rate differs from the chip's, they are noise."""
        if not self._speeds_fit():
            if self._speed_is_settled or not isinstance(self._loader, RomLoader):
                return
            # The ROM measures the host's baud rate on the first SYNC after a reset.
            self.baudrate = self._host_baudrate or self._rom_baudrate
        if self._loader is not None:
            self._loader.receive(data)
        elif self._app is not None:
            self._app.receive(data)

    def set_lines(self, dtr: bool, rts: bool) -> None:
        """Handle a change of the host's control lines."""
        self._circuit.set_lines(dtr, rts)

    def set_baudrate(self, baudrate: int) -> None:
        """Handle a change of the host's baud rate."""
        self._host_baudrate = baudrate

    def host_left(self, control_lines: bool) -> None:
        """Apply `on_close` after a host without control lines has disconnected."""
        self._host_baudrate = None
        started_it, self._left_the_loader = self._left_the_loader, False
        if control_lines or self._on_close == "keep":
            return
        if self._loader is not None:
            self.reset(bootloader=self._on_close == "bootloader")
        elif self._on_close == "bootloader" and not started_it and self._runs_nothing_from_flash():
            self.reset(bootloader=True)

    def transmit(self, data: bytes) -> None:
        """Send bytes to the hosts. A host at another baud rate receives noise."""
        self.wire.ask_baudrates()
        self.wire.transmit(data if self._speeds_fit() else data.translate(_NOISE))

    @property
    def _rom_baudrate(self) -> int:
        return rom_console_baudrate(self.chip, self.model.crystal_mhz)

    @property
    def _uart_clock_mhz(self) -> int:
        return self.model.uart_clock_mhz(stub=self.mode == "stub")

    def _speeds_fit(self) -> bool:
        host = self._host_baudrate
        return host is None or not self.usb.is_uart or abs(host - self.baudrate) <= self.baudrate * _BAUDRATE_TOLERANCE

    def _runs_nothing_from_flash(self) -> bool:
        return self.mode == "ram-app" or (self.mode == "app" and self._app is None)

    # -- for the loaders

    def autobaud(self) -> None:
        """Measure the host's baud rate, as the ROM does at the first SYNC."""
        if not self._speed_is_settled and self._host_baudrate:
            self.baudrate = self._host_baudrate
        self._speed_is_settled = True

    def set_uart_baudrate(self, baudrate: int) -> None:
        """Change the UART's baud rate."""
        self.baudrate = self.model.rom_baudrate(baudrate) if isinstance(self._loader, RomLoader) else baudrate

    def reboot(self) -> None:
        """Restart by a command of the host: into the loader, whose boot strap stays latched; an ESP8266 from flash."""
        if self.model.is_8266:
            return self.leave_loader()
        self._reset_reason = "RTC_SW_SYS_RST"
        self.reset(bootloader=True)

    def leave_loader(self) -> None:
        """Restart from flash, by a command of the host."""
        if self._host_baudrate not in (None, self._rom_baudrate):
            self._reset_later(_LEAVING, "RTC_SW_SYS_RST")
            return
        self._left_the_loader = True
        self._reset_reason = "RTC_SW_SYS_RST"
        self.reset(bootloader=False)

    def run_ram(self, entry: int) -> None:
        """Jump to *entry*: esptool's stub flasher, or another program in RAM."""
        if entry in self.model.stub_entries:
            self._start_stub()
            return
        self._loader = None
        self._left_the_loader = True
        self.mode = "ram-app"
        self._start_app(self._app_class, None)

    def start_hijacked_stub(self) -> bool:
        """Start the stub if the ROM's pointer to its flash read function was changed (ESP32-S3 with secure boot)."""
        if self.chip != "esp32s3" or self.bus.read(_S3_ROM_READ_POINTER) not in self.model.stub_entries:
            return False
        self._start_stub()
        return True

    def _start_stub(self) -> None:
        self._loader = StubLoader(self)
        self.flash_is_attached = True
        self.mode = "stub"
        self.transmit(b"\xc0OHAI\xc0")

    def security_info(self) -> bytes:
        """Return the response to GET_SECURITY_INFO, from the eFuses (see ``ESPLoader.get_security_info``)."""
        field = self.efuses.field if self.efuses else _no_field
        flags = 0
        for bit, names in enumerate(_SECURITY_FLAGS):
            flags |= any(field(name) for name in names) << bit
        purposes = [field(f"KEY_PURPOSE_{key}") & 0xFF for key in range(6)] + [_SEVENTH_PURPOSE]
        info = struct.pack("<IB7B", flags, field("SPI_BOOT_CRYPT_CNT"), *purposes)
        if self.model.security_info_size == 20:
            info += struct.pack("<II", self.model.image_chip_id or 0, self.model.rom_api_version)
        return info

    # -- flash encryption

    @property
    def flash_is_encrypted(self) -> bool:
        """Whether the chip decrypts flash contents: the counter has an odd number of bits set."""
        if self.efuses is None:
            return False
        counter = "FLASH_CRYPT_CNT" if self.model.is_esp32 else "SPI_BOOT_CRYPT_CNT"
        return bool(self.efuses.field(counter).bit_count() & 1)

    def encrypt(self, address: int, data: bytes) -> bytes:
        """Encrypt *data* for *address* (both multiples of 16) with the key in the eFuses."""
        return self._crypt(address, data, decrypt=False)

    def _flash_as_the_cpu_sees_it(self, address: int, size: int) -> bytes:
        if not self.flash_is_encrypted:
            return self.flash.read(address, size)
        start = address // crypt.BLOCK * crypt.BLOCK
        stored = self.flash.read(start, -(-(address + size - start) // crypt.BLOCK) * crypt.BLOCK)
        plain = self._crypt(start, stored, decrypt=True)
        return plain[address - start : address - start + size]

    def _write_as_the_cpu(self, address: int, data: bytes) -> None:
        self.flash.erase(address, SECTOR)
        self.flash.program(address, self.encrypt(address, data) if self.flash_is_encrypted else data)

    def _crypt(self, address: int, data: bytes, *, decrypt: bool) -> bytes:
        if self.efuses is None:
            return data
        key = self.efuses.encryption_key()
        if self.model.is_esp32:
            return crypt.esp32(key, address, data, self.efuses.field("FLASH_CRYPT_CONFIG"), decrypt=decrypt)
        return crypt.xts(key, address, data, decrypt=decrypt)

    # -- inside

    def _take_stored_identity(self, efuses: Efuses, mac: str | None, revision: int | None) -> None:
        """Use MAC address and revision from the eFuse file: burned values cannot be changed."""
        if mac is not None and efuses.mac != self.mac_bytes:
            raise BackendError(
                f"the eFuse file has the MAC address {efuses.mac.hex(':')}, not {self.mac}",
                hint="remove `mac`, or use another eFuse file",
            )
        if revision is not None and efuses.revision != revision:
            raise BackendError(
                f"the eFuse file has the revision {efuses.revision}, not {revision}",
                hint="remove `revision`, or use another eFuse file",
            )
        self.mac_bytes, self.revision = efuses.mac, efuses.revision

    def _burn_secure_download(self) -> None:
        if self.efuses is None or not self.efuses.has_field("ENABLE_SECURITY_DOWNLOAD"):
            raise BackendError(
                f"the {self.model.name} has no secure download mode",
                hint="use an ESP32-S2 or a newer chip",
            )
        self.efuses.preset("ENABLE_SECURITY_DOWNLOAD", 1)

    def _fixed_registers(self) -> dict[int, int]:
        fixed = self.model.registers(self.revision)
        if self.model.is_8266:
            mac = self.mac_bytes
            rom = self.model.rom
            fixed[rom.ESP_OTP_MAC0] = mac[5] << 24
            fixed[rom.ESP_OTP_MAC1] = mac[3] << 8 | mac[4]
            fixed[rom.ESP_OTP_MAC3] = int.from_bytes(mac[:3], "big")
            fixed[0x3FF00058] = 0x8000  # bit 79, with the MAC in words 0, 1, 3: an ESP8266EX
        return fixed


_SEVENTH_PURPOSE = 12  # the ROM's value for a seventh key block, which does not exist, on a new chip

# Bits of the flags word by the eFuses that set them; the names depend on the chip.
_SECURITY_FLAGS = (
    ("SECURE_BOOT_EN",),
    ("SECURE_BOOT_AGGRESSIVE_REVOKE",),
    ("ENABLE_SECURITY_DOWNLOAD",),
    ("SECURE_BOOT_KEY_REVOKE0",),
    ("SECURE_BOOT_KEY_REVOKE1",),
    ("SECURE_BOOT_KEY_REVOKE2",),
    ("SOFT_DIS_JTAG",),
    ("HARD_DIS_JTAG", "DIS_PAD_JTAG"),
    ("DIS_USB", "DIS_USB_OTG"),
    ("DIS_DOWNLOAD_DCACHE",),
    ("DIS_DOWNLOAD_ICACHE",),
)


def _no_field(_name: str) -> int:
    return 0
