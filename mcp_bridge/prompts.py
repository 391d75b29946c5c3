"""Prompts: step-by-step instructions that a client can offer to its user."""

from __future__ import annotations

from typing import Any

from fastmcp import FastMCP


def add_prompts(app: FastMCP[Any]) -> None:
    """Add all prompts to *app*."""

    # Descriptions instead of docstrings: FastMCP imports a parser at every start if there are docstrings.
    @app.prompt(description="Plan a backup of a board's flash before anything is changed.")
    def esp_backup_plan(port: str, output_dir: str = "backup") -> str:
        return (
            f"Back up the board {port} before anything is changed on it.\n"
            f"1. esp_detect_chip(port={port!r}): note chip, MAC address and flash size.\n"
            f"2. esp_security_audit(port={port!r}): if flash encryption is on, say that the backup contains "
            "ciphertext, which only this chip can use.\n"
            f"3. esp_flash_backup(port={port!r}, output_dir={output_dir!r}). If it is interrupted, call it again: it "
            "resumes.\n"
            "4. Report the path of the backup and its SHA-256, and how to restore it with esp_flash_restore."
        )

    @app.prompt(description="Set up ESP-IDF for a chip, build a project for it, and run it on a board.")
    def esp_idf_setup_target(target: str = "esp32c3", project_path: str = ".", port: str = "") -> str:
        board = f"port={port!r}" if port else "port=NAME"
        return (
            f"Build the ESP-IDF project {project_path} for the {target} and run it on a board.\n"
            "1. esp_idf_env_info(): note the ESP-IDF version. If none is installed, say how to install it, and stop.\n"
            f"2. esp_idf_tools_check(target={target!r}): if a tool is missing or broken, ask the user (the download "
            f"has hundreds of megabytes), then esp_idf_tools_install(targets=[{target!r}]).\n"
            f"3. esp_idf_build_project(project_path={project_path!r}, target={target!r}): changing the target renames "
            "sdkconfig to sdkconfig.old; warn the user before. If the build fails, show the first of `errors` with "
            "file, line and hint, and fix it before the others.\n"
            f"4. esp_detect_chip({board}): its chip_type must be {target!r}.\n"
            f"5. esp_idf_flash_project(project_path={project_path!r}, {board}), then "
            f"esp_idf_monitor(project_path={project_path!r}, {board}): report whether the app starts, or its crash."
        )

    @app.prompt(description="Try firmware in a chip's RAM, without changing its flash.")
    def esp_test_in_ram(port: str, firmware: str = "") -> str:
        run = (
            f"esp_load_ram(port={port!r}, firmware={firmware!r}, until=TEXT): TEXT is what the program prints on "
            "success. It must be linked for RAM; esp_elf_to_ram_binary converts such an ELF file to an image."
            if firmware
            else f"esp_load_test_firmware(port={port!r}): the self-test of RAM, CRC, timer and UART."
        )
        return (
            f"Run firmware on the board {port} without writing to its flash.\n"
            f"1. esp_detect_chip(port={port!r}): the program must be built for this chip_type.\n"
            f"2. {run}\n"
            f"3. If there is no output, check the connection with esp_test_connection(port={port!r}).\n"
            f"4. esp_reset_chip(port={port!r}): start the app in flash again. Report what the program printed."
        )

    @app.prompt(description="Prepare a board for updates over the air, and install one.")
    def esp_ota_ready_device(port: str, firmware: str = "build", app_size: str = "") -> str:
        room = f", app_size={app_size!r}" if app_size else ""
        return (
            f"Prepare the board {port} for updates over the air.\n"
            f"1. esp_detect_chip(port={port!r}): note chip_type and flash_size. If esp_flash_analyze(port={port!r}) "
            f"finds data, offer esp_flash_backup(port={port!r}, output_dir=...) first.\n"
            f"2. esp_partition_create_ota(flash_size=FLASH_SIZE{room}, output_file='table.bin'): two slots.\n"
            "3. esp_bootloader_build(chip_type=CHIP, config={'image': BOOTLOADER, 'flash_size': FLASH_SIZE}, "
            "output_file='bootloader.bin'): `done` says what was changed.\n"
            f"4. esp_flash_firmware(port={port!r}, files=[...]): the bootloader at its `offset`, the table at its "
            f"`table_offset`, the app of {firmware} in the first slot.\n"
            f"5. esp_ota_flash_prepare(port={port!r}): `warnings` must be empty.\n"
            f"6. For an update: esp_ota_package_create(firmware_file=..., version=...), then "
            f"esp_ota_deploy(package=..., port={port!r}); `started` shows by the boot log whether it runs. "
            f"esp_ota_rollback(port={port!r}) returns to the previous app."
        )

    @app.prompt(description="Program, provision and check many boards.")
    def esp_batch_production(ports: str, firmware: str = "build") -> str:
        return (
            f"Program the boards {ports} with {firmware} for production.\n"
            "1. esp_rack_status(): all of them must be free. esp_detect_chip(port=...) for each: chip_type must match "
            "the firmware; note the MAC addresses.\n"
            "2. esp_firmware_analyze(binary_file=...): the images must be valid and fit into the flash.\n"
            "3. esp_batch_program(ports=[...], firmware=..., ...) with serial numbers and data per board. If a board "
            "fails, the others continue; read the record, and repeat the call for the failed boards only.\n"
            "4. esp_manufacturing_data_write(port=..., data=...) if the data was not part of the batch.\n"
            "5. esp_quality_control(port=...) and esp_production_test(port=..., test_suite=...) for each board.\n"
            "6. Report for each MAC address: passed, or what failed and the state of the board. Never print secrets."
        )

    @app.prompt(description="Enable secure boot and flash encryption. Irreversible on a real board.")
    def esp_secure_device(port: str, firmware: str = "build") -> str:
        return (
            f"Secure the board {port}. On a real board, burnt eFuses cannot be undone: ask before every step with "
            "apply=true, and after an error run the audit again before you continue.\n"
            f"1. esp_security_audit(port={port!r}): report posture and findings; stop if it is already secured.\n"
            f"2. The bootloader and the app of {firmware} must be signed with the user's key. The user keeps the key "
            "and a backup of it.\n"
            f"3. esp_encryption_enable(port={port!r}, key_file=..., secure_boot_key=..., firmware_path={firmware!r}, "
            "mode='development' or 'release') without apply: show the plan, eFuse by eFuse.\n"
            "4. When the user agrees, the same call with apply=true: images and signatures are checked before the "
            "first burn, and the boot is checked at the end. (esp_secure_boot_enable enables secure boot only.)\n"
            f"5. esp_efuse_burn(port={port!r}, efuse_name='DIS_PAD_JTAG' or what the findings name, value='1').\n"
            f"6. After development mode: esp_flash_encryption_configure(port={port!r}, mode='release').\n"
            f"7. esp_security_audit(port={port!r}) again: report the remaining findings."
        )
