"""A table fits its width: columns are left out, words cut, numbers never."""

import pandas as pd

from maetok_lab.workflow.printing import LONGEST_CELL, shortened, table_text


def test_columns_are_left_out_where_they_do_not_fit_and_counted():
    table = pd.DataFrame({"run": ["a", "b-long"], "step": [20, None], "kid": [0.123456, 1e-7]})
    text, left_out = table_text(table, 100)
    assert text.splitlines() == [
        "run     step     kid",
        "a         20  0.1235",
        "b-long         1e-07",
    ]
    assert left_out == 0
    text, left_out = table_text(table, 17)
    assert text.splitlines() == ["run     step", "a         20", "b-long"]
    assert left_out == 1


def test_no_line_is_longer_than_the_terminal_but_for_twelve_characters_of_a_name():
    table = pd.DataFrame({f"column {i}": ["x" * 500, "y"] for i in range(60)})
    for width in (12, 40, 80, 535):
        text, left_out = table_text(table, width)
        assert max(map(len, text.splitlines())) <= width
        assert left_out > 0
    assert len(shortened("x" * 500)) == LONGEST_CELL


def test_names_and_values_do_nothing_to_a_terminal():
    table = pd.DataFrame({"\x1b[2J": ["a\nb", "\x1b]0;title\x07"]})
    text, _ = table_text(table, 80)
    assert "\x1b" not in text
    assert text.splitlines() == [r"\x1b[2J", r"a\nb", r"\x1b]0;title\x07"]


def test_an_empty_table_has_its_names():
    assert table_text(pd.DataFrame({"a": [], "b": []}), 80) == ("a  b", 0)
