"""Selection of cases by names, groups and attributes."""

import pytest

from pytest_esp.errors import OperationError
from pytest_esp.operations.unity import Case, Menu, Selection

MENU = Menu(
    (
        Case(1, "queue keeps order", ("queue", "fast")),
        Case(2, "queue is bounded", ("queue", "timeout=30")),
        Case(3, "uart [echo]", ("uart", "fast")),
        Case(4, "uart at 2 Mbaud", ("uart", "ignore", "baud=2000000")),
        Case(5, "no tags"),
    )
)


def chosen(names=(), groups=(), attributes=None, invert=False):
    return [case.index for case in Selection.of(names, groups, attributes, invert).choose(MENU)]


def test_nothing_given_means_all():
    assert chosen() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("names", "indices"),
    [
        ("queue keeps order", [1]),
        ("queue *", [1, 2]),
        (["*order", "no ????"], [1, 5]),
        ("uart [echo]", [3]),  # brackets of a name are meant as they are
        ("uart [a-f]t*", [4]),
    ],
)
def test_names_are_patterns(names, indices):
    assert chosen(names) == indices


@pytest.mark.parametrize(
    ("groups", "indices"),
    [
        ("[queue]", [1, 2]),
        ("queue", [1, 2]),
        ("[queue][fast]", [1]),
        ("queue&fast", [1]),
        (" [queue] & [fast] ", [1]),
        ("![queue]", [3, 4, 5]),
        ("!queue", [3, 4, 5]),
        ("[fast]![queue]", [3]),
        ("fast & !queue", [3]),
        ("![queue]![uart]", [5]),
        (["[queue][fast]", "![fast][uart]"], [1, 4]),
        ("[timeout=30]", [2]),
    ],
)
def test_groups_are_expressions_of_tags(groups, indices):
    assert chosen(groups=groups) == indices


def test_attributes_are_values_of_tags():
    assert chosen(attributes={"timeout": "30"}) == [2]
    assert chosen(attributes={"baud": 2000000}) == [4]


def test_all_that_is_given_must_hold():
    assert chosen("*order", "[queue]") == [1]
    assert chosen("queue*", "[fast]", invert=True) == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"names": "queue keep order"}, ["names=('queue keep order',)", "nearest names: queue keeps order"]),
        ({"groups": "[spi]"}, ["groups=('[spi]',)", "its tags are [queue] [fast] [timeout=30] [uart]"]),
        ({"groups": "[queue]", "attributes": {"baud": "1"}}, ["groups=('[queue]',), attributes={'baud': '1'}"]),
        ({"names": "*", "invert": True}, ["none of the app's 5 test cases", "not (names=('*',))"]),
    ],
)
def test_selecting_nothing_is_an_error_that_says_what_there_is(arguments, words):
    with pytest.raises(OperationError) as caught:
        chosen(**arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("expression", ["", "  ", "[", "[]", "!", "[a]]", "[a][", "a&&b", "&", "[a]!"])
def test_a_wrong_expression_is_an_error_before_any_board_is_touched(expression):
    with pytest.raises(OperationError, match="tag expression"):
        Selection(groups=(expression,))
