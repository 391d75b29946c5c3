"""What an ELF knows of an address, for real apps and for what compilers make with other options."""

import contextlib
import hashlib
import itertools
import random
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from pytest_esp.errors import FirmwareError
from pytest_esp.link.symbols import Location, Symbols, demangle

BUILD = Path(__file__).parents[1] / "firmware" / "build"
C3 = BUILD / "esp32c3" / "pytest_esp_test.elf"
ESP32 = BUILD / "esp32" / "pytest_esp_test.elf"
GCC = shutil.which("riscv64-unknown-elf-gcc")


def addresses(symbols):
    """Every fourth address of the app's code."""
    return [
        address
        for begin, end in ((0x40080000, 0x40084000), (0x40380000, 0x40384000))
        for address in range(begin, end, 4)
        if symbols.is_code(address)
    ]


@pytest.mark.parametrize(("elf", "architecture"), [(C3, "riscv"), (ESP32, "xtensa")])
def test_architecture_and_hash(elf, architecture):
    symbols = Symbols(elf)
    assert symbols.architecture == architecture
    assert symbols.app_elf_sha256 == hashlib.sha256(elf.read_bytes()).hexdigest()
    assert symbols.matches(symbols.app_elf_sha256[:9].upper())
    assert not symbols.matches("0123456789")


def test_the_hash_is_the_one_in_the_apps_image(firmware_folder):
    for app in ("panic_esp32c3", "coredump_uart_esp32"):
        image = (firmware_folder / app / "hello_world.bin").read_bytes()
        in_descriptor = image[0x20 + 144 : 0x20 + 176]  # app_elf_sha256 of esp_app_desc_t, first in the first segment
        assert Symbols.of(firmware_folder / app / "hello_world.elf").app_elf_sha256 == in_descriptor.hex()


@pytest.mark.parametrize(
    ("app", "address", "expected"),
    [
        ("panic_esp32c3", 0x42005440, Location("app_main", "/COMPONENT_MAIN_DIR/hello_world_main.c", 17)),
        ("panic_esp32c3", 0x403804E2, Location("heap_caps_malloc", "/COMPONENT_HEAP_DIR/heap_caps.c", 83)),
        ("panic_esp32c3", 0x40000010, None),  # in ROM
        ("panic_esp32c3", 0x00000000, None),
        ("coredump_uart_esp32", 0x400D316E, Location("main_task", "/COMPONENT_FREERTOS_DIR/app_startup.c", 199)),
    ],
)
def test_addresses_of_real_apps(firmware_folder, app, address, expected):
    assert Symbols.of(firmware_folder / app / "hello_world.elf").locate(address) == expected


def test_of_several_names_for_a_function_the_sources_is_shown(firmware_folder):
    (function,) = Symbols.of(firmware_folder / "coredump_uart_esp32" / "hello_world.elf").inlined(0x400D4B2A)
    assert function.function == "core_dump_sha_finish"  # not its alias, esp_core_dump_checksum_finish


def test_every_function_of_a_real_app_has_lines(firmware_folder):
    """Although the linker leaves holes in .debug_aranges for the functions that it discarded."""
    symbols = Symbols.of(firmware_folder / "panic_esp32c3" / "hello_world.elf")
    code = [address for address in range(0x42000020, 0x4200C000, 2) if symbols.is_code(address)]
    assert sum(symbols.locate(address).line is None for address in code) < len(code) / 50


def test_the_first_lookup_is_fast_and_thousands_more_are(firmware_folder):
    begun = time.process_time()
    symbols = Symbols(firmware_folder / "panic_esp32c3" / "hello_world.elf")
    assert symbols.locate(0x42005440).function == "app_main"
    assert time.process_time() - begun < 1.0
    begun = time.process_time()
    for address in range(0x42005000, 0x42007000):
        symbols.locate(address)
    assert time.process_time() - begun < 2.0


def test_an_elf_is_parsed_again_only_when_it_has_changed(tmp_path):
    elf = tmp_path / "app.elf"
    shutil.copy(C3, elf)
    first = Symbols.of(elf)
    assert Symbols.of(tmp_path / "." / "app.elf") is first
    elf.write_bytes(ESP32.read_bytes())
    assert Symbols.of(elf).architecture == "xtensa"


def test_threads_may_look_up_at_the_same_time():
    expected = {address: Symbols(C3).inlined(address) for address in addresses(Symbols(C3))[::40]}
    shared = Symbols(C3)
    wrong = []

    def look_up(seed):
        order = random.Random(seed).sample(sorted(expected), len(expected))
        wrong.extend(address for address in order if shared.inlined(address) != expected[address])

    threads = [threading.Thread(target=look_up, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert expected
    assert wrong == []


def test_a_missing_elf(tmp_path):
    with pytest.raises(FirmwareError, match="cannot be read: No such file"):
        Symbols.of(tmp_path / "app.elf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:40], "is damaged"),
        (lambda data: data[:3000], "is damaged"),
        (lambda data: b"\xe9" + data[1:], "is not a 32-bit ELF file"),
        (lambda data: data[:4] + b"\x02" + data[5:], "is not a 32-bit ELF file"),
        (lambda data: data[:18] + b"\x28\0" + data[20:], "for another processor"),
        (lambda data: b"", "is not a 32-bit ELF file"),
    ],
)
def test_a_file_that_is_no_elf_of_a_chip(tmp_path, change, message):
    elf = tmp_path / "app.elf"
    elf.write_bytes(change(C3.read_bytes()))
    with pytest.raises(FirmwareError, match=message):
        Symbols(elf)


@pytest.mark.parametrize("seed", range(60))
def test_damage_anywhere_is_an_error_or_nothing(tmp_path, seed):
    damaged = bytearray(C3.read_bytes())
    where = random.Random(seed)
    for _ in range(where.choice([1, 10, 200])):
        damaged[where.randrange(len(damaged))] = where.randrange(256)
    elf = tmp_path / "app.elf"
    elf.write_bytes(damaged)
    registers = {"MEPC": 0x40380548, "RA": 0x40380552, "SP": 0x3FC8A0F0}
    with contextlib.suppress(FirmwareError):
        symbols = Symbols(elf)
        for address in (0x40380548, 0x40380CA0, 0x40380134):
            symbols.inlined(address)
        symbols.unwind(registers, dict.fromkeys(range(0x3FC8A0F0, 0x3FC8A4F0, 4), 0x403806DE))


SOURCE = """
static inline __attribute__((always_inline)) void store(int *p) { *(volatile int *)p = 1; }

__attribute__((noinline)) int inner(int *p)
{
    store(p);
    __asm__ volatile("" ::: "memory", "ra", "s1", "s2");
    return *p;
}

__attribute__((noinline)) int unused(int *p) { return inner(p) + 1; }

__attribute__((noinline)) int outer(int *p)
{
    return inner(p) + 1;
}

void _start(void)
{
    outer(0);
    for (;;) { }
}
"""


@pytest.fixture(
    params=[
        "-gdwarf-4",
        "-gdwarf-5",
        "-gdwarf-4 -ffunction-sections -Wl,--gc-sections",
        "-gdwarf-5 -ffunction-sections -Wl,--gc-sections",
        "-gdwarf-4 -fasynchronous-unwind-tables",
        "-gdwarf-5 -fasynchronous-unwind-tables -fomit-frame-pointer",
        "-gdwarf-5 -ffunction-sections without-aranges",
        "-gdwarf-4 -ffunction-sections -Wl,--gc-sections without-aranges",
    ]
)
def compiled(request, tmp_path):
    if GCC is None:
        pytest.skip("riscv64-unknown-elf-gcc is not installed")
    options = request.param.split()
    strip = "without-aranges" in options and options.pop()
    (tmp_path / "app.c").write_text(SOURCE)
    command = [
        GCC,
        "-march=rv32imc",
        "-mabi=ilp32",
        "-nostdlib",
        "-Og",
        "-Ttext=0x42000000",
        *options,
        "app.c",
        "-o",
        "app.elf",
    ]
    subprocess.run(command, cwd=tmp_path, check=True)
    if strip:
        objcopy = Path(GCC).with_name("riscv64-unknown-elf-objcopy")
        subprocess.run([objcopy, "--remove-section", ".debug_aranges", "app.elf"], cwd=tmp_path, check=True)
    return Symbols(tmp_path / "app.elf")


def place_of_the_store(symbols):
    return next(at for at in range(0x42000000, 0x42000100, 2) if len(symbols.inlined(at)) == 2)


def test_lines_and_inlined_calls_of_any_compiler(compiled):
    store, inner = compiled.inlined(place_of_the_store(compiled))
    assert (store.function, store.line, Path(store.file).name) == ("store", 2, "app.c")
    assert (inner.function, inner.line, Path(inner.file).name) == ("inner", 6, "app.c")


def test_stacks_of_any_compiler(compiled):
    """The call frame information finds the one word in the stack where `inner` saved its return address."""
    at = place_of_the_store(compiled)
    in_outer, in_start = after_line(compiled, 15), after_line(compiled, 20)
    saved_at = set()
    for first, second in itertools.combinations(range(0x3FC80000, 0x3FC80080, 4), 2):
        stack = dict.fromkeys(range(0x3FC80000, 0x3FC80100, 4), 0) | {first: in_outer, second: in_start}
        frames = compiled.unwind({"MEPC": at, "SP": 0x3FC80000}, stack)
        if [pc for pc, _ in frames] == [at, in_outer, in_start]:
            saved_at.add((first, second))
    assert len(saved_at) == 1


def after_line(symbols, line):
    """An address that may be the return address of a call in *line*."""
    code = [at for at in range(0x42000002, 0x42000100, 2) if symbols.is_code(at - 1)]
    return next(at for at in code if symbols.locate(at - 1).line == line)


def address_in(elf, function):
    """Return an address behind the first instruction of a function."""
    with elf.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        return table.get_symbol_by_name(function)[0]["st_value"] + 4


def test_a_jump_to_nowhere_is_blamed_on_the_caller():
    symbols = Symbols(C3)
    registers = {"MEPC": 0x00000000, "RA": address_in(C3, "pass_null"), "SP": 0x3FC8A0F0}
    (nowhere, _), (caller, _), *_ = symbols.unwind(registers, {})
    assert symbols.locate(nowhere) is None
    assert symbols.locate(caller - 1).function == "pass_null"


def test_a_stack_that_says_nothing_ends_the_frames():
    symbols = Symbols(C3)
    assert symbols.unwind({"MEPC": 0x40380548, "SP": 0x3FC8A0F0}, {}) == ((0x40380548, 0x3FC8A0F0),)
    assert symbols.unwind({}, {}) == ((0, 0),)


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("app_main", "app_main"),
        ("_Z4loopv", "loop"),
        ("_Z8loopTaskPv", "loopTask"),
        ("_ZN7Display5beginEv", "Display::begin"),
        ("_ZNK7Display5widthEv", "Display::width"),
        ("_ZN2io7DisplayC2Ei", "io::Display::Display"),
        ("_ZN2io7DisplayD0Ev", "io::Display::~Display"),
        ("_ZN12_GLOBAL__N_15countEv", "(anonymous namespace)::count"),
        ("_ZL6helperi", "helper"),
        ("_ZSt9terminatev", "_ZSt9terminatev"),
        ("_Z3maxIiET_S0_S0_", "_Z3maxIiET_S0_S0_"),
        ("_ZN3fooIiE3barEv", "_ZN3fooIiE3barEv"),
        ("_Z", "_Z"),
        ("_ZN", "_ZN"),
        ("_ZN99xE", "_ZN99xE"),
    ],
)
def test_cxx_names(symbol, name):
    assert demangle(symbol) == name
