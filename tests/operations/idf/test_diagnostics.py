"""Messages of compilers, the linker, CMake and idf.py, as records."""

import pytest

from pytest_esp.operations.idf.diagnostics import Diagnostic, findings, step_of

LD = "/opt/tools/riscv32-esp-elf/bin/../lib/gcc/riscv32-esp-elf/14.2.0/../../../../bin/ld"


def only(line):
    found = findings([line])
    (item,) = found.errors + found.warnings
    return item


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/p/main/a.c:7:5: error: bad", Diagnostic("error", "compiler", "bad", "/p/main/a.c", 7, 5)),
        ("../main/a.hpp:7: fatal error: no", Diagnostic("error", "compiler", "no", "../main/a.hpp", 7)),
        ("/p/a.c:1:2: warning: odd [-Wodd]", Diagnostic("warning", "compiler", "odd [-Wodd]", "/p/a.c", 1, 2)),
        ("/p/a.S:3: error: unknown opcode", Diagnostic("error", "compiler", "unknown opcode", "/p/a.S", 3)),
        (
            f"{LD}: /p/main/a.c:12: undefined reference to `f'",
            Diagnostic("error", "linker", "undefined reference to `f'", "/p/main/a.c", 12),
        ),
        (
            "/p/main/a.c:(.text.app_main+0x8): undefined reference to `f'",
            Diagnostic("error", "linker", "undefined reference to `f'", "/p/main/a.c"),
        ),
        (f"{LD}: cannot find -lx", Diagnostic("error", "linker", "cannot find -lx")),
        (f"{LD}: warning: x has RWX", Diagnostic("warning", "linker", "x has RWX")),
        ("ninja: error: 'x', needed by 'y'", Diagnostic("error", "ninja", "'x', needed by 'y'")),
        ("CMake Error: no generator", Diagnostic("error", "cmake", "no generator")),
    ],
)
def test_one_line(line, expected):
    assert only(line) == expected


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[3/8] Building C object a.c.obj",
        "/p/main/a.c: In function 'app_main':",
        f"{LD}: esp-idf/main/libmain.a(a.c.obj): in function `app_main':",
        "   7 |     error: not a message;",
        "/p/a.c:7:5: note: declared here",
        "collect2: error: ld returned 1 exit status",
        "-- Found Git: /usr/bin/git",
        "build/bootloader ld: done",
    ],
)
def test_lines_that_are_none(line):
    found = findings([line])
    assert found.errors == found.warnings == ()


def test_a_message_of_cmake_follows_indented():
    lines = ["CMake Error at /p/a.cmake:3 (message):", "  The component", "", "  led is missing", "", "", "Call Stack:"]
    (error,) = findings(lines).errors
    assert error.message.startswith("The component")
    assert (error.file, error.line) == ("/p/a.cmake", 3)


def test_each_is_there_once_and_hints_are_kept():
    line = "/p/a.c:1:2: warning: odd"
    found = findings([line, line, "HINT: look there", "HINT: look there"])
    assert (len(found.warnings), found.warning_count, found.hints) == (1, 1, ("look there",))


def test_very_many_are_counted():
    found = findings([f"/p/a.c:{number}:1: warning: odd" for number in range(1, 251)])
    assert (len(found.warnings), found.warning_count) == (100, 250)


def test_steps_of_ninja():
    assert step_of("[12/345] Building C object") == (12, 345)
    assert step_of("-- [1/2]") is None
