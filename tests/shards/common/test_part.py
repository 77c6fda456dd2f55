"""Shares of a command's work: together they are all of it, each item once."""

import pytest

from shards.common.command import InputError
from shards.common.part import ALL, Part, parse


def test_the_parts_are_all_of_it_and_each_item_is_in_one():
    assert ALL.of("abcde") == list("abcde")
    assert [Part(number, 3).of("abcde") for number in (1, 2, 3)] == [["a", "d"], ["b", "e"], ["c"]]
    assert parse("3/3") == Part(3, 3) and Part(3, 3).of("ab") == [] and str(parse("2/8")) == "2/8"


@pytest.mark.parametrize("text", ["0/2", "3/2", "1/0", "2", "1/2/3", "-1/2", "a/b", ""])
def test_another_text_is_one_line(text):
    with pytest.raises(InputError, match=r"^--part .*: expected I/N with I from 1 to N, e.g. 2/8$"):
        parse(text)
