"""The list of operations, from which command line and tool servers are made."""

import dataclasses
import inspect
import json
from functools import cached_property
from typing import get_args, get_type_hints

import pytest
from pydantic import TypeAdapter

from pytest_esp.errors import EspError, RefusedError
from pytest_esp.operations.esp import Esp, load_all
from pytest_esp.operations.registry import Effect
from pytest_esp.operations.results import to_dict

OPERATIONS = load_all()


def faces(esp):
    return {name: getattr(esp, name) for name, value in vars(Esp).items() if isinstance(value, cached_property)}


def test_every_operation_says_what_it_does_and_returns_a_record():
    for operation in OPERATIONS.values():
        assert operation.summary.endswith("."), operation.name
        assert dataclasses.is_dataclass(operation.result), operation.name
        assert all(parameter.annotation is not None for parameter in operation.parameters)
        kinds = {parameter.kind for parameter in inspect.signature(operation.function).parameters.values()}
        assert kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}, operation.name


def test_every_chip_is_spelled_freely():
    named = ("chip", "chip_type", "target", "targets")
    for operation in OPERATIONS.values():
        chips = {parameter.name for parameter in operation.parameters if parameter.name in named}
        assert chips == operation.chips, operation.name


def collect_records(annotation, found):
    """Add every dataclass in a type to *found*."""
    inside = get_args(annotation)
    if dataclasses.is_dataclass(annotation) and annotation not in found:
        found.add(annotation)
        inside = get_type_hints(annotation).values()
    for one in inside:
        collect_records(one, found)


def test_nothing_in_a_result_can_be_changed():
    records = set()
    for operation in OPERATIONS.values():
        collect_records(operation.result, records)
    assert len(records) > len(OPERATIONS)
    assert [record for record in records if not record.__dataclass_params__.frozen] == []


def test_every_operation_is_a_method_and_every_method_an_operation(esp_of):
    """One definition, several faces: none is forgotten on any of them."""
    methods = {
        f"{name}-{method}".replace("_", "-")
        for name, face in faces(esp_of("esp32c3")).items()
        for method in vars(type(face))
        if not method.startswith("__")
    }
    assert methods == OPERATIONS.keys()


def test_effects_are_what_the_operations_do():
    changing = {
        name: operation.effect for name, operation in OPERATIONS.items() if operation.effect not in (None, Effect.READ)
    }
    assert changing == {
        "chip-load-ram": Effect.WRITE,
        "chip-self-test": Effect.WRITE,
        "chip-recover": Effect.ERASE,
        "flash-optimize": Effect.WRITE,
        "flash-write": Effect.WRITE,
        "flash-erase": Effect.ERASE,
        "flash-restore": Effect.ERASE,
        "flash-smart-restore": Effect.ERASE,
        "efuse-burn": Effect.BURN,
        "encryption-enable": Effect.BURN,
        "security-enable-secure-boot": Effect.BURN,
        "encryption-configure": Effect.BURN,
        "partitions-write": Effect.ERASE,
        "partitions-setup-ota": Effect.ERASE,
        "ota-prepare": Effect.WRITE,
        "ota-deploy": Effect.WRITE,
        "ota-rollback": Effect.WRITE,
        "idf-build": Effect.WRITE,
        "idf-install": Effect.WRITE,
        "idf-flash-project": Effect.WRITE,
        "production-batch-program": Effect.ERASE,
        "production-factory-program": Effect.ERASE,
        "production-factory-reset": Effect.ERASE,
        "production-provision": Effect.WRITE,
        "production-write-calibration-data": Effect.BURN,
        "production-write-manufacturing-data": Effect.BURN,
        "unity-run": Effect.WRITE,
        "unity-run-all": Effect.WRITE,
    }


def test_operations_on_files_take_no_board(esp_of, tmp_path):
    """They are methods like the others, with the same names for their arguments, and touch no port."""
    merge = OPERATIONS["firmware-merge"]
    assert merge.effect is None
    assert [parameter.name for parameter in merge.parameters[:2]] == ["files", "output_file"]
    assert merge.parameters[0].description.startswith("a build folder, or files")
    (tmp_path / "a").write_bytes(b"abcd")
    esp = esp_of("esp32c3")
    made = esp.firmware.merge({0x10: tmp_path / "a"}, tmp_path / "merged.bin", chip_type="esp32c3")
    assert made == merge.function({0x10: tmp_path / "a"}, tmp_path / "merged.bin", chip_type="esp32c3", overwrite=True)
    with pytest.raises(EspError) as caught:
        esp.firmware.merge({}, tmp_path / "x.bin")
    assert (caught.value.board, caught.value.attempted) == (None, "firmware-merge")
    assert not esp.link.is_open


def test_parameters_can_be_listed():
    size, address, *rest = sorted(OPERATIONS["flash-read"].parameters, key=lambda parameter: parameter.name != "size")
    assert (size.name, size.annotation, size.required) == ("size", int | str, True)
    assert address.description == "of the first byte."
    defaults = {parameter.name: parameter.default for parameter in rest}
    assert defaults == {"output_file": None, "overwrite": False, "over": "auto"}
    assert OPERATIONS["flash-read"].takes_progress
    assert not OPERATIONS["efuse-burn"].takes_progress


def test_a_method_knows_its_signature(esp_of):
    """Arguments go through as they are, wrong ones are errors, and the docstring is the operation's."""
    esp = esp_of("esp32c3")
    assert esp.flash.read.__doc__ == OPERATIONS["flash-read"].function.__doc__
    assert inspect.isfunction(esp.flash.read)
    assert esp.flash.read(address="4KB", size="0x10").address == 4096
    with pytest.raises(TypeError, match="bytes_to_read"):
        esp.flash.read(0, bytes_to_read=4)


@pytest.mark.parametrize("effect", list(Effect))
def test_what_is_not_allowed_is_refused_before_the_port_is_opened(rack, effect):
    from pytest_esp.boards.registry import make_board
    from pytest_esp.link.link import Link

    spec = rack.board("esp32c3").model_copy(
        update={"allow": frozenset({"read", "write", "erase", "burn"} - {effect.value})}
    )
    arguments = {"flash-write": ([(0, b"x")],), "flash-erase": ("all",), "efuse-burn": ("DIS_PAD_JTAG", 1)}
    flags = {
        "flash-optimize": {"apply": True},
        "chip-recover": {"erase_app": True},
        "production-write-calibration-data": {"to_efuse": True},
        "production-write-manufacturing-data": {"to_efuse": True},
    }
    link = Link(make_board(spec, rack))
    for name, operation in OPERATIONS.items():
        if operation.takes_board and operation.effect is effect:
            given = arguments.get(name, [0] * sum(parameter.required for parameter in operation.parameters))
            with pytest.raises(RefusedError) as caught:
                operation.function(link, *given, **flags.get(name, {}))
            assert (caught.value.board, caught.value.attempted) == ("esp32c3", name)
            assert f'add "{effect.value}" to `allow` of [boards.esp32c3]' in caught.value.hint
    assert not link.is_open


def test_an_error_names_board_and_operation(esp_of):
    with pytest.raises(EspError) as caught:
        esp_of("esp32c3").flash.read("-4", 1)
    assert (caught.value.board, caught.value.attempted) == ("esp32c3", "flash-read")


def test_results_become_plain_data(esp_of, tmp_path):
    esp = esp_of("esp32c3")
    results = [
        esp.chip.identify(),
        esp.flash.write(b"abc", 0x1000),
        esp.flash.read(0x1000, 3, tmp_path / "out.bin"),
        esp.flash.verify(b"abd", 0x1000),
        esp.efuse.read_all(),
        esp.security.posture(),
    ]
    for result in results:
        assert json.loads(json.dumps(to_dict(result))) == to_dict(result)
    assert to_dict(results[2]) == {
        "address": 0x1000,
        "address_hex": "0x1000",
        "size": 3,
        "data": None,
        "output_file": str(tmp_path / "out.bin"),
    }
    assert to_dict(results[3])["regions"][0]["first_difference"] == 0x1002
    with pytest.raises(TypeError, match="is not the result"):
        to_dict("text")


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_command_line_can_give_every_argument(name):
    """Its type is one that text can be turned into."""
    for parameter in OPERATIONS[name].parameters:
        assert TypeAdapter(parameter.annotation).core_schema
