from shards.common.table import text_table


def test_numbers_stand_to_the_right_with_the_digits_they_have():
    rows = [["ours", "10.50", "a"], ["a", "9.0", "longer"]]
    assert text_table(["method", "dB", "why"], rows, left=(0, 2)) == (
        "method     dB  why\nours    10.50  a\na         9.0  longer"
    )


def test_a_head_without_rows():
    assert text_table(["run", "state"], []).split() == ["run", "state"]
