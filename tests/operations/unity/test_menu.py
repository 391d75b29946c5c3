"""Menus parsed from app output, and requested from apps that lose input."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_esp.errors import OperationError
from pytest_esp.link.console import CrashError
from pytest_esp.operations import unity
from pytest_esp.operations.unity import Case, Part
from pytest_esp.operations.unity.menu import Draft

STAGES = tuple(Part(number, f"test_stage{number}") for number in range(1, 5))
ROLES = (Part(1, "test_dev1"), Part(2, "test_dev2"))
REAL_CASES = (
    Case(1, "normal_case_pass", ("normal_case",)),
    Case(2, "normal_case_crash", ("normal_case", "timeout=10")),
    Case(3, "normal_case_stuck", ("normal_case", "timeout=10")),
    Case(4, "normal_case_pass_auto_reset", ("normal_case", "timeout=10")),
    Case(5, "multiple_stages_test", ("multi_stage", "multi_stage"), "multi_stage", STAGES),
    Case(6, "multiple_devices_test", ("multi_dev", "timeout=150", "multi_device"), "multi_device", ROLES),
)


def read(*prints):
    """Return what is known after these prints."""
    draft = Draft()
    for text in prints:
        draft.read(text)
    return draft


def cases(draft):
    return tuple(draft.cases[number] for number in sorted(draft.cases))


def passes(app):
    pass


def stage_one(app):
    app.reset()


def stage_two(app):
    pass


# -- text


@pytest.mark.parametrize("name", ["unit_test_esp32", "unit_test_esp32c3"])
def test_what_real_apps_print_is_read(recorded, name):
    draft = read(recorded(name))
    assert cases(draft) == REAL_CASES
    assert draft.is_usable
    assert draft.is_clean


def test_tags_say_what_a_case_is():
    case = Case(1, "queue", ("queue", "ignore", "leaks=100", "timeout=2.5", "reset=abort, SW_CPU_RESET", "multi_stage"))
    assert case.groups == ("queue", "ignore")
    assert case.attributes == {"leaks": "100", "timeout": "2.5", "reset": "abort, SW_CPU_RESET"}
    assert (case.timeout, case.is_ignored, case.restarts) == (2.5, True, True)
    assert case.resets == ("abort", "SW_CPU_RESET")
    assert Case(1, "plain", ("timeout=soon",)).timeout is None


def test_names_may_have_anything_in_them():
    names = [
        'says "hello" twice',
        "ends with [brackets]",
        "(7) looks like a number",
        "ümlaut",
        "tab\there",
        "a, b = c...",
    ]
    text = "".join(f'({number})\t"{name}" [t]\r\n' for number, name in enumerate(names, 1))
    draft = read(f"Here's the test menu, pick your combo:\r\n{text}\r\nEnter test for running.\r\n")
    assert [case.name for case in cases(draft)] == names
    assert all(case.tags == ("t",) for case in cases(draft))
    assert draft.is_usable


def test_cases_without_tags_are_cases(unity_app):
    draft = read(unity_app.menu_of({"first": ("", passes), "second": ("", stage_one, stage_two)}))
    stages = (Part(1, "stage_one"), Part(2, "stage_two"))
    assert cases(draft) == (Case(1, "first"), Case(2, "second", (), "multi_stage", stages))
    assert draft.is_usable


def test_the_last_menu_counts(recorded):
    old = 'Here\'s the test menu, pick your combo:\n(1)\t"old" [x]\n(2)\t"older" [y]\n\nEnter test for running.\n'
    assert cases(read(old + recorded("unit_test_esp32"))) == REAL_CASES


@pytest.mark.parametrize(
    "noise",
    ["I (123) wifi: state: run -> init (0)\r\n", "W (9) [x] y: (3) z\r\n", "\r\n", "(12) things [were] found\r\n"],
)
def test_lines_of_other_tasks_do_not_matter(recorded, noise):
    lines = recorded("unit_test_esp32c3").splitlines(keepends=True)
    header = next(number for number, line in enumerate(lines) if line.startswith("Here's"))
    for at in range(header + 1, len(lines)):
        draft = read("".join([*lines[:at], noise, *lines[at:]]))
        assert (cases(draft), draft.is_usable) == (REAL_CASES, True)


def test_noise_in_the_middle_of_a_line_is_noticed_wherever_it_falls(recorded):
    """Either the menu is read correctly, or it is known to be incomplete."""
    text = recorded("unit_test_esp32c3")
    text = text[text.rindex("Here's") :]
    noticed = 0
    for at in range(text.index("(1)"), text.index("\r\nEnter test")):
        draft = read(f"{text[:at]}I (77) wifi: got ip\r\n{text[at:]}")
        if cases(draft) != REAL_CASES:
            assert not (draft.is_usable and draft.is_clean), text[at - 20 : at]
            noticed += 1
            again = read(f"{text[:at]}I (77) wifi: got ip\r\n{text[at:]}", text)
            assert (cases(again), again.is_usable and again.is_clean) == (REAL_CASES, True)
    assert noticed > 100


def test_a_menu_cut_off_anywhere_is_not_taken_for_whole(recorded):
    text = recorded("unit_test_esp32c3")
    begin = text.rindex("Here's")
    for end in range(begin, len(text)):
        assert not read(text[begin:end]).is_usable
    assert read(text[begin:]).is_usable


@given(
    st.text(max_size=300)
    | st.lists(st.sampled_from(['(1)\t"', '" [a]', "\r\n", "\t(2)\t", "[", "]", "x"])).map("".join)
)
def test_garbage_is_no_menu(garbage):
    draft = read(garbage)
    assert not draft.is_usable
    draft.read(f'Here\'s the test menu, pick your combo:\r\n(1)\t"one" [a]\r\n\r\nEnter test for running.\r\n{garbage}')
    assert draft.cases[1].name == "one"


# -- from a board


def test_a_menu_is_whole_in_whatever_pieces_it_comes(link, program, recorded):
    text = recorded("unit_test_esp32c3").replace("\r\n", "\n")
    text = text[text.rindex("\n\nHere's") :]
    dialogue = unity.dialogue.Dialogue(link, boot_timeout=5)
    for cut in range(len(text)):
        program.prints.append([text[:cut], text[cut:]])
        assert dialogue.menu().cases == REAL_CASES
    program.prints.append(list(text))
    assert dialogue.menu().cases == REAL_CASES


def test_colours_do_not_matter(link, program):
    program.cases = {"first": ("[a]", passes)}
    coloured = '\x1b[0;32mHere\'s the test menu, pick your combo:\x1b[0m\n(1)\t"\x1b[1mfirst\x1b[0m" [a]\n'
    program.prints = [[coloured, "\nEnter \x1b[3", "1mtest for running.\x1b[0m\n"]]
    assert unity.menu(link).cases == (Case(1, "first", ("a",)),)


def test_a_long_menu_is_read_at_once(link, program):
    program.cases = {f"case number {number} of many": (f"[group{number % 7}]", passes) for number in range(2000)}
    menu = unity.menu(link)
    assert len(menu) == 2000
    assert menu.case(1234).name == "case number 1233 of many"
    assert program.heard.count("") == 1


def test_what_one_print_loses_the_next_one_brings(link, program, unity_app):
    program.cases = dict.fromkeys("abcdef", ("[t]", passes))
    whole = unity_app.menu_of(program.cases)
    program.prints = [
        [whole.replace('(2)\t"b"', '(2I (9) x: y\n)\t"b"')],
        [whole.replace('"e" [t]', '"eI (9) x: y\n" [t]')],
    ]
    assert [case.name for case in unity.menu(link)] == list("abcdef")
    assert program.heard == ["", ""]


def test_what_is_lost_twice_is_an_error(link, program, unity_app):
    program.cases = dict.fromkeys("abcdef", ("[t]", passes))
    program.prints = 2 * [[unity_app.menu_of(program.cases).replace('(2)\t"b" [t]\n', "")]]
    with pytest.raises(OperationError, match="cases 2 are missing") as caught:
        unity.menu(link)
    assert caught.value.board == "board-1"


def test_text_behind_the_tags_is_asked_for_once_more_and_then_taken(link, program):
    program.cases = {"first": ("[a] a description in prose", passes)}
    assert unity.menu(link).cases == (Case(1, "first", ("a",)),)
    assert program.heard == ["", ""]


def test_a_lost_enter_is_said_again(link, program, impatient):
    program.cases = {"first": ("[a]", passes)}
    program.lost_inputs = 2
    assert len(unity.menu(link)) == 1


def test_an_app_that_does_not_answer_is_reset(link, program, impatient):
    def hangs(app):
        while True:
            yield

    program.cases = {"hangs": ("[a]", hangs)}
    assert unity.run(link, "hangs", timeout=0.2).status == "timeout"
    link.console.write("1\n")
    assert [case.name for case in unity.menu(link)] == ["hangs"]


def test_an_app_that_crashes_meanwhile_is_reset(link, program, unity_app, impatient):
    program.cases = {"first": ("[a]", passes)}
    program.prints = [["Here's the test", unity_app.PANIC]]
    assert len(unity.menu(link)) == 1


def test_an_app_without_menu_is_an_error(links, build_of, impatient):
    (link,) = links("esp32c3", build=build_of, backend="sim", app="pytest_esp.sim.app:EchoApp")
    with pytest.raises(OperationError, match="does not offer its test menu") as caught:
        unity.menu(link, boot_timeout=0.3)
    assert "ready" in str(caught.value)


def test_an_app_that_greets_but_has_no_menu_is_an_error(link, program, impatient):
    program.lost_inputs = 1000
    with pytest.raises(OperationError, match="does not answer ENTER"):
        unity.menu(link, boot_timeout=0.5)


def test_an_app_that_crashes_at_every_boot_is_an_error_with_its_crash(link, program, unity_app):
    program.greeting = unity_app.PANIC
    with pytest.raises(OperationError, match="LoadProhibited") as caught:
        unity.menu(link, boot_timeout=2)
    assert isinstance(caught.value.__cause__, CrashError)


def test_the_app_is_started_if_the_loader_runs(simulated):
    link = simulated[0]
    with link.session.use("before the menu", stub=False) as esp:
        esp.flash_id()
    assert [case.name for case in unity.menu(link)][:2] == ["addition holds", "memory keeps a pattern"]


def test_a_case_is_found_by_number_or_name(simulated):
    menu = unity.menu(simulated[0])
    assert menu.case(3) == menu.case("3") == menu.case("one is two")
    with pytest.raises(OperationError, match="no test case 'one is too'") as caught:
        menu.case("one is too")
    assert "one is two" in caught.value.hint
