"""Answers have a bounded size, say what was cut, and a resource has the whole of them."""

import json

import pytest

from mcp_bridge.bounds import Archive, bounded, size_of

LINES = [[number / 10, f"I ({number}) app: line {number}"] for number in range(20000)]


def test_a_short_answer_is_not_changed():
    answer = {"success": True, "lines": LINES[:10]}
    assert bounded(answer, 20, Archive()) == (answer, None)


@pytest.mark.parametrize(
    "answer",
    [
        {"success": True, "output": "x" * 100_000 + "\u00e9\n\\" * 50_000},
        {"success": True, "port": "c3", "lines": LINES, "matched": None},
        {"success": True, "a": "x" * 100_000, "b": "y" * 100_000, "c": "short"},
        {"success": True, "sections": {name: {"data": {"rows": LINES}} for name in "abcdef"}},
        {"success": True, "table": {f"key{number}": number for number in range(20_000)}},
        {"success": True, "rows": [{"text": "z" * 50_000}] * 20},
    ],
    ids=["text", "list", "two texts", "nested", "many keys", "large items"],
)
@pytest.mark.parametrize("kilobytes", [5, 20, 100])
def test_a_long_answer_is_cut(answer, kilobytes):
    archive = Archive()
    shown, uri = bounded(answer, kilobytes, archive)
    assert kilobytes * 1024 * 0.4 < size_of(shown) <= kilobytes * 1024
    assert shown["success"] is True
    assert shown["cut"]["fields"]
    assert shown["cut"]["bytes"] == size_of(answer)
    assert shown["cut"]["whole_answer"] == uri
    assert json.loads(archive.read(int(uri.rpartition("/")[2]))) == answer


def test_both_ends_of_a_list_are_kept():
    shown, _ = bounded({"lines": LINES}, 20, Archive())
    assert shown["lines"][0] == LINES[0]
    assert shown["lines"][-1] == LINES[-1]
    assert shown["cut"]["fields"] == {"lines": f"{len(shown['lines'])} of 20000 items"}


def test_old_answers_make_room(monkeypatch):
    monkeypatch.setattr("mcp_bridge.bounds._MOST_KEPT", 1000)
    archive = Archive()
    uris = [archive.keep({"text": "x" * 600}) for _ in range(3)]
    assert [archive.read(number) is not None for number in (1, 2, 3)] == [False, False, True]
    assert uris[2] == "esp://answers/3"


# -- in a server


def test_a_long_answer_of_a_tool(server):
    calls = {"port": "c3", "efuse_name": "", "detailed": True}
    short = server.try_call("esp_efuse_read", calls | {"answer_kb": 4}, 20)
    answer = short.structured_content
    assert len(short.content[0].text.encode()) <= 4096
    assert json.loads(short.content[0].text) == answer
    assert str(short.content[1].uri) == answer["cut"]["whole_answer"]
    whole = server.read(answer["cut"]["whole_answer"])
    assert whole == server.call("esp_efuse_read", **calls, answer_kb=100)
    assert len(whole["efuses"]) > len(answer["efuses"])
    assert "is not kept" in server.read("esp://answers/99")["error"]


def test_the_text_of_an_answer_has_the_limit_too(server):
    answer = server.try_call("esp_product_search", {}, 20)
    assert answer.structured_content["cut"]
    assert 19 * 1024 < len(answer.content[0].text.encode()) <= 20 * 1024


def test_only_tools_with_long_answers_show_the_limit_but_all_have_it(server):
    tools = server.list_tools()
    assert "answer_kb" in tools["esp_serial_monitor"].input_schema["properties"]
    assert "answer_kb" not in tools["esp_detect_chip"].input_schema["properties"]
    assert server.call("esp_detect_chip", port="c3", answer_kb=1)["success"]
    assert "answer_kb" in server.call("esp_detect_chip", port="c3", answer_kb=0)["error"]


def test_nothing_is_said_twice(server):
    run = server.call("esp_run_firmware", port="c3", wait_seconds=0.2)
    assert "lines" not in run
    report = server.call("esp_diagnostic_report", port="c3", duration=0.2)
    assert "markdown" not in report
    assert report["sections"]


def test_efuses_are_compact(server):
    compact = server.call("esp_efuse_read", port="c3")
    assert size_of(compact) < 2000
    detailed = server.call("esp_efuse_read", port="c3", detailed=True)
    assert compact["efuses"].items() < detailed["efuses"].items()
    assert compact["zero"] == len(detailed["efuses"]) - len(compact["efuses"])
    assert compact["efuses"]["MAC"]
    assert "SECURE_BOOT_EN" not in compact["efuses"]
    assert detailed["efuses"]["SECURE_BOOT_EN"] == "0"
    assert "SECURE_BOOT_EN" in detailed["raw_output"]


def test_a_burnt_efuse_is_shown(server):
    arguments = {"port": "c3", "efuse_name": "DIS_PAD_JTAG", "value": "1"}
    token = server.call("esp_efuse_burn", **arguments)["confirm"]
    assert server.call("esp_efuse_burn", **arguments, confirm=token)["success"]
    assert server.call("esp_efuse_read", port="c3")["efuses"]["DIS_PAD_JTAG"] == "1"


@pytest.mark.parametrize("size", ["16MB", 4097, "0x100000000"])
def test_a_read_that_cannot_be_answered_is_refused_before_it_begins(server, size):
    answer = server.call("esp_flash_read", port="c3", address=0, size=size)
    assert "too many for an answer" in answer["error"]
    assert "output_file" in answer["hint"]
    assert server.held() == []  # the board was not used
