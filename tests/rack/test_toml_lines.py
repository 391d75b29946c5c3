"""The lines of keys, for errors in boards.toml."""

import tomllib
from textwrap import dedent

from hypothesis import given
from hypothesis import strategies as st

from pytest_esp.rack.toml_lines import locate_keys


def test_headers_dotted_keys_inline_tables_and_quoted_keys():
    text = '# c\n[a]\nb = 1 # x = 2\n\n["q.r".s]\n"t u".v = { w = 1, "x" = { y = 2 } }\n'
    assert locate_keys(text) == {
        ("a",): 2,
        ("a", "b"): 3,
        ("q.r",): 5,
        ("q.r", "s"): 5,
        ("q.r", "s", "t u"): 6,
        ("q.r", "s", "t u", "v"): 6,
        ("q.r", "s", "t u", "v", "w"): 6,
        ("q.r", "s", "t u", "v", "x"): 6,
        ("q.r", "s", "t u", "v", "x", "y"): 6,
    }


def test_what_looks_like_a_key_in_a_string_or_a_comment_is_none():
    text = dedent(
        r'''
        [boards.a]
        note = """
        [boards.b]
        chip = 1 \"""
        """"
        other = "[boards.c]"   # chip = 2
        list = [ # one, two = 3
            "a = 1, b = 2",   # ]
            { c = "}, d = 3" },
        ]
        'e"f' = '# g = 4'
        "h\u0069" = 5
        '''
    )
    assert set(tomllib.loads(text)["boards"]["a"]) == {"note", "other", "list", 'e"f', "hi"}
    assert locate_keys(text) == {
        ("boards",): 2,
        ("boards", "a"): 2,
        ("boards", "a", "note"): 3,
        ("boards", "a", "other"): 7,
        ("boards", "a", "list"): 8,
        ("boards", "a", "list", "c"): 10,
        ("boards", "a", 'e"f'): 12,
        ("boards", "a", "hi"): 13,
    }


def test_a_table_with_a_header_of_its_own_lies_there():
    assert locate_keys("[a.b]\nc = 1\n\n[a]\nd = 2\n")[("a",)] == 4


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5)
NOISE = st.sampled_from(["", "# x = 1", "  # [y]", "#\t'''"])
SCALARS = st.sampled_from(
    ["1", '"[a]"', "'# b = 1'", '"""\nc = 2\n[d]"""', "'''\n\"\n'''", "[1,\n 2]", "1979-05-27T07:32:00Z"]
)
TREES = st.recursive(SCALARS, lambda children: st.dictionaries(NAMES, children, min_size=1, max_size=4), max_leaves=12)


def quoted(name):
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def inline(value):
    """Return the value on one line, but for the strings and arrays at its top."""
    if isinstance(value, dict):
        return (
            "{ "
            + ", ".join(f"{quoted(key)} = {inline(child)}".replace("\n", " ") for key, child in value.items())
            + " }"
        )
    return value


class Writer:
    """Writes a tree as TOML in one of many ways, and remembers the line of every key."""

    def __init__(self, draw):
        self.draw = draw
        self.lines = []
        self.expected = {}

    def table(self, path, tree):
        with_header = {}
        for key, value in tree.items():
            if isinstance(value, dict) and self.draw(st.booleans()):
                with_header[key] = value  # after the plain keys
                continue
            self.lines.append(self.draw(NOISE))
            self.mark((*path, key), value)
            self.lines += f"{quoted(key)} = {inline(value)}".split("\n")
        for key, value in with_header.items():
            self.lines.append(self.draw(NOISE))
            self.expected[(*path, key)] = len(self.lines) + 1
            self.lines.append(f"[ {' . '.join(map(quoted, (*path, key)))} ] # [z]")
            self.table((*path, key), value)

    def mark(self, path, value):
        self.expected[path] = len(self.lines) + 1
        for key, child in value.items() if isinstance(value, dict) else ():
            self.mark((*path, key), child)


@given(st.dictionaries(NAMES, TREES, max_size=4), st.data())
def test_every_key_of_a_random_text_is_found_where_it_was_written(tree, data):
    writer = Writer(data.draw)
    writer.table((), tree)
    text = "\n".join(writer.lines)
    assert tomllib.loads(text).keys() == tree.keys()
    assert locate_keys(text) == writer.expected
