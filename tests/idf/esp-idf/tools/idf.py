"""Stands in for ESP-IDF's idf.py: notes how it was called, prints as Ninja and compilers do, and copies a build.

What a project makes it do: ``main/broken.c`` fails to compile, ``main/unlinked.c`` to link, ``broken.cmake`` to be
configured, and ``main/endless.c`` is never compiled to its end.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMPILE_ERRORS = """\
[3/8] Building C object esp-idf/main/CMakeFiles/__idf_main.dir/broken.c.obj
FAILED: esp-idf/main/CMakeFiles/__idf_main.dir/broken.c.obj
\x1b[1m{project}/main/broken.c: In function 'app_main':\x1b[0m
{project}/main/broken.c:7:5: error: implicit declaration of function 'blink' [-Wimplicit-function-declaration]
    7 |     blink(1);
      |     ^~~~~
{project}/main/broken.c:9:12: fatal error: led.h: No such file or directory
HINT: The header led.h is of a component that is not in the REQUIRES list
ninja: build stopped: subcommand failed."""
LINK_ERRORS = """\
[8/8] Linking CXX executable app.elf
{ld}: esp-idf/main/libmain.a(unlinked.c.obj): in function `app_main':
{project}/main/unlinked.c:12:(.text.app_main+0x8): undefined reference to `missing'
{ld}: app.elf section `.iram0.text' will not fit in region `iram0_0_seg'
collect2: error: ld returned 1 exit status"""
CMAKE_ERRORS = """\
CMake Error at {project}/broken.cmake:3 (message):
  The component led
  is not there


-- Configuring incomplete, errors occurred!"""


def say(text):
    print(text, flush=True)


def fail(template, project):
    say(template.format(project=project, ld="/opt/tools/bin/../lib/gcc/riscv32-esp-elf/14.2.0/bin/ld"))
    sys.exit(2)


def build(project, build_dir, target):
    if (project / "broken.cmake").exists():
        fail(CMAKE_ERRORS, project)
    say("[1/8] Generating memory.ld")
    say(f"{project}/main/main.c:4:9: warning: unused variable 'x' [-Wunused-variable]")
    say(f"{project}/main/main.c:4:9: warning: unused variable 'x' [-Wunused-variable]")
    say("[1/2] Building the bootloader, which is a build of its own")
    if (project / "main" / "broken.c").exists():
        fail(COMPILE_ERRORS, project)
    if (project / "main" / "endless.c").exists():
        compiler = subprocess.Popen(["sleep", "600"])
        (project / "pids").write_text(f"{os.getpid()} {compiler.pid}")
        say("[2/8] Building C object endless.c.obj")
        time.sleep(600)
    if (project / "main" / "unlinked.c").exists():
        fail(LINK_ERRORS, project)
    for step in range(2, 9):
        say(f"[{step}/8] Building C object part{step}.c.obj")
        time.sleep(0.06)
    shutil.copytree(Path(os.environ["FAKE_IDF_BUILDS"]) / target, build_dir, dirs_exist_ok=True)
    (build_dir / "project_description.json").write_text(
        json.dumps({"target": target, "app_elf": "pytest_esp_test.elf"})
    )


def main():
    given = iter(sys.argv[1:])
    project, build_dir, target = None, None, None
    actions = []
    for word in given:
        if word == "-C":
            project = Path(next(given))
        elif word == "-B":
            build_dir = Path(next(given))
        elif word == "set-target":
            target = next(given)
            actions.append(word)
        elif not word.startswith("-"):
            actions.append(word)
    with open(os.environ["FAKE_IDF_LOG"], "a") as log:
        log.write(json.dumps({"arguments": sys.argv[1:], "environment": dict(os.environ)}) + "\n")
    sdkconfig = project / "sdkconfig"
    if "fullclean" in actions or "set-target" in actions:
        shutil.rmtree(build_dir, ignore_errors=True)
    if "set-target" in actions:
        sdkconfig.write_text(f'CONFIG_IDF_TARGET="{target}"\n')
    elif not sdkconfig.exists():
        sdkconfig.write_text('CONFIG_IDF_TARGET="esp32"\n')
    say("Executing action: all (aliases: build)")
    build(project, build_dir, sdkconfig.read_text().split('"')[1])
    say("Project build complete. To flash, run: idf.py flash")


main()
