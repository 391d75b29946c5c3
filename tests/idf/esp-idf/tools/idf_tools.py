"""Stands in for the installer of ESP-IDF: the options and lines of the real one, and tools that know their version."""

import argparse
import json
import os
import sys
import time
from pathlib import Path

TOOLS = Path(os.environ["IDF_TOOLS_PATH"])
LISTED = {tool["name"]: tool for tool in json.loads(Path(__file__).with_name("tools.json").read_text())["tools"]}


def install_one(name, version):
    tool = LISTED[name]
    folder = TOOLS / "tools" / name / version
    if folder.exists():
        print(f"Skipping {name}@{version} (already installed)")
        return
    print(f"Installing {name}@{version}")
    archive = TOOLS / "dist" / f"{name}-{version}.tar.xz.tmp"
    archive.parent.mkdir(parents=True, exist_ok=True)
    print(f"Downloading https://example.com/{name}")
    print(f"Destination: {archive}", flush=True)
    if "network" in os.environ.get("FAKE_IDF_FAILS", ""):
        sys.exit("ERROR: Failed to download, and retry count has expired")
    size = next(item["any"]["size"] for item in tool["versions"] if item["name"] == version)
    archive.write_bytes(bytes(size // 2))
    time.sleep(float(os.environ.get("FAKE_IDF_SLOW", "0.3")))
    archive.write_bytes(bytes(size))
    programs = folder.joinpath(*tool["export_paths"][0])
    programs.mkdir(parents=True)
    if tool["version_cmd"][0]:
        program = programs / tool["version_cmd"][0]
        program.write_text(f"#!/bin/sh\necho 'gcc (crosstool-NG {version}) version {version}'\n")
        program.chmod(0o755)


def noted_targets():
    try:
        return json.loads((TOOLS / "idf-env.json").read_text())["idfInstalled"]["this"]["targets"]
    except FileNotFoundError:
        return []


def note_targets(targets):
    every = {target for tool in LISTED.values() for target in tool["supported_targets"]} - {"all"}
    record = {"version": "5.5", "path": os.environ["IDF_PATH"], "features": ["core"]}
    record["targets"] = sorted({*noted_targets(), *(targets or every)})
    TOOLS.mkdir(parents=True, exist_ok=True)
    (TOOLS / "idf-env.json").write_text(json.dumps({"idfInstalled": {"this": record}}))


def install(names, targets):
    if names == ["required"]:
        note_targets(targets)
        names = [
            name
            for name, tool in LISTED.items()
            if tool["install"] == "always" and (not targets or {"all", *targets} & set(tool["supported_targets"]))
        ]
    print(f"Installing tools: {', '.join(names)}")
    for name in names:
        tool, _, version = name.partition("@")
        install_one(tool, version or LISTED[tool]["versions"][0]["name"])


def python_env():
    folder = TOOLS / "python_env" / f"idf5.5_py{sys.version_info[0]}.{sys.version_info[1]}_env" / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "python").exists():
        (folder / "python").symlink_to(sys.executable)


def export():
    paths = []
    for name, tool in LISTED.items():
        folder = TOOLS / "tools" / name / tool["versions"][0]["name"]
        if folder.is_dir():
            paths.append(str(folder.joinpath(*tool["export_paths"][0])))
        elif tool["install"] == "always" and {"all", *noted_targets()} & set(tool["supported_targets"]):
            sys.exit(f"ERROR: tool {name} has no installed versions. Please run 'idf_tools.py install' to install it.")
    print(f"ESP_IDF_VERSION=5.5\nPATH={os.pathsep.join(paths)}:$PATH")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--non-interactive", action="store_true")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("install")
    one.add_argument("names", nargs="*")
    one.add_argument("--targets", default="")
    commands.add_parser("install-python-env")
    commands.add_parser("export").add_argument("--format", choices=["shell", "key-value"])
    given = parser.parse_args()
    if given.command == "install":
        install(given.names, [target for target in given.targets.split(",") if target])
    elif given.command == "install-python-env":
        python_env()
    else:
        export()


main()
