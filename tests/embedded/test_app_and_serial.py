"""`app` and `dut.serial`: facts of the build, and what is done to the board."""


def test_facts_of_the_build(c3):
    c3.script("""
        from pathlib import Path

        def test_app(app, dut, test_case_name):
            assert dut.app is app
            assert Path(app.binary_path).samefile("build_esp32c3_default")
            assert app.target == "esp32c3" and app.is_riscv32 and not app.is_xtensa
            assert [hex(one.offset) for one in app.flash_files][:2] == ["0x0", "0x8000"]
            assert all(Path(one.file_path).is_file() and not one.encrypted for one in app.flash_files)
            assert app.partition_table["nvs"]["type"] == "data"
            assert app.partition_table["nvs"]["size"] % 4096 == 0
            assert Path(app.elf_file).suffix == ".elf" and Path(app.bin_file).name == "pytest_esp_test.bin"
            assert app.flash_args["flash_files"] and app.flash_settings["encrypt"] is False
            assert "0x8000" in app.write_flash_args
            assert app.sdkconfig.get("ANYTHING") is None
            assert Path(dut.logfile).is_file() and Path(dut.logdir).is_dir()
            assert dut.test_case_name == test_case_name == "test_app"

        @pytest.mark.parametrize("target", ["esp32c3"], indirect=True)
        def test_target(app): ...
    """)
    c3.run("--target", "esp32c3").assert_outcomes(passed=2)


def test_a_build_that_is_not_there(suite):
    suite.sim("esp32c3")
    suite.script("def test_app(dut): ...")
    result = suite.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*FirmwareError: * has no build for this test*"])


def test_resets_erasing_and_reading(c3):
    c3.script("""
        @pytest.mark.parametrize("target", ["esp32c3"], indirect=True)
        def test_app(dut):
            dut.expect("test firmware")
            dut.serial.hard_reset()
            dut.expect("test firmware")
            table = dut.app.partition_table
            assert len(dut.serial.dump_flash(partition="nvs")) == table["nvs"]["size"]
            dut.serial.erase_partition("nvs")
            assert set(dut.serial.dump_flash(partition="nvs")) == {0xFF}
            head = dut.serial.dump_flash(address="0x8000", size="0x10")
            assert head.startswith(b"\\xaa\\x50")
            dut.serial.dump_flash(address=0x8000, size=16, output="head.bin")
            assert open("head.bin", "rb").read() == head
            with pytest.raises(ValueError, match="no partition 'none'"):
                dut.serial.erase_partition("none")
            dut.expect("test firmware")
            dut.serial.erase_flash()
            dut.expect("invalid header: 0xffffffff", timeout=5)
            dut.serial.flash()
            dut.expect("Press ENTER")
            dut.serial.stop_redirect_thread()
            dut.write("echo raw")
            assert b"raw" in dut.serial.proc.read(5)
            dut.serial.start_redirect_thread()
    """)
    c3.run().assert_outcomes(passed=1)


def test_erasing_before_the_test_and_running_what_is_there(c3):
    c3.script("""
        @pytest.mark.parametrize("skip_autoflash", ["y"], indirect=True)
        def test_nothing_is_flashed(dut):
            dut.expect("invalid header: 0xffffffff")

        def test_written(dut):
            from pytest_esp import Esp

            Esp(dut.link).flash.write(bytes(4096), dut.app.partition_table["nvs"]["offset"])
            assert set(dut.serial.dump_flash(partition="nvs")) == {0, 0xFF}

        @pytest.mark.parametrize("erase_nvs", ["y"], indirect=True)
        def test_nvs_is_erased(dut):
            assert set(dut.serial.dump_flash(partition="nvs")) == {0xFF}

        def test_written_again(dut):
            test_written(dut)

        @pytest.mark.parametrize("erase_all", ["yes"], indirect=True)
        def test_all_is_erased(dut):
            dut.expect("Press ENTER")
            assert set(dut.serial.dump_flash(partition="nvs")) == {0xFF}
    """)
    c3.run().assert_outcomes(passed=5)


def test_the_console_s_baud_rate(c3):
    c3.script("""
        @pytest.mark.parametrize("baud", ["74880"], indirect=True)
        def test_given(dut):
            assert dut.serial.baud == 74880

        def test_default(dut):
            assert dut.serial.baud == 115200
    """)
    c3.run().assert_outcomes(passed=2)
