"""What is said of a value that cannot be, word for word, and what a configuration is made of."""

import datetime

import pytest

from ldct.config import from_dict, load, parse, parser
from shards.common.command import InputError


def said(attempt, *arguments):
    with pytest.raises(InputError) as error:
        attempt(*arguments)
    return str(error.value)


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--model.nme=unet", "unrecognized arguments: --model.nme=unet; --help lists every field"),
        ("--train.precision=fp8", "\"train.precision\": Expected one of 'fp32', 'bf16'. Got value: fp8"),
        ("--model.channels=many", '"model.channels": Expected one of int, null. Got value: many'),
        ("--model.attention_stages=3", '"model.attention_stages": Expected one of list[int], null. Got value: 3'),
        ("--optim.lr=fast", '"optim.lr": Expected float. Got value: fast'),
        ("--data.augment=perhaps", '"data.augment": Expected bool. Got value: perhaps'),
        ("--track.tags=5", '"track.tags": Expected list. Got value: 5'),
    ],
)
def test_a_flag_that_cannot_be(flag, says):
    assert said(parse, [flag]) == says


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"modl": {}}, "unknown section 'modl'; there are: data, model, loss, optim, train, val, track, run_dir"),
        ({"run_dir": "r", "val": {"evry": 1}}, "unknown field val.evry; val has: every, protocol, slices"),
        ({"train": None}, "train: expected a mapping of fields, found None"),
        ({"train": {"precision": "fp8"}}, "\"train.precision\": Expected one of 'fp32', 'bf16'. Got value: fp8"),
        ({"model": {"attention_stages": ["a"]}},
         "\"model.attention_stages\": Expected one of list[int], null. Got value: ['a']"),
    ],
)  # fmt: skip
def test_fields_that_cannot_be(tmp_path, values, says):
    assert said(from_dict, values) == says


def test_a_file_that_cannot_be_is_named_with_what_is_wrong(tmp_path):
    path = tmp_path / "c.yaml"
    assert said(load, path) == f"{path}: expected a configuration file: No such file or directory"
    path.write_bytes(b"run_dir: \xff")
    assert said(load, path).startswith(f"{path}: not valid YAML: 'utf-8' codec can't decode byte 0xff")
    path.write_text("model: [unclosed")
    assert said(load, path).startswith(f"{path}: not valid YAML: while parsing a flow sequence")
    path.write_text("- a list")
    assert said(load, path) == f"{path}: expected a mapping of sections, found list"
    path.write_text("val: {every: 0}")
    assert said(load, path) == f"{path}: val.every: expected at least 1 step, found 0"
    path.write_text("val: {evry: 1}")
    assert said(parse, [f"--config={path}"]) == f"{path}: unknown field val.evry; val has: every, protocol, slices"


def test_values_of_yaml_that_json_has_not_are_texts():
    config = from_dict({"track": {"project": datetime.date(2026, 1, 2)}, "run_dir": 5})
    assert (config.track.project, config.run_dir) == ("2026-01-02", "5")


def test_two_configurations_share_nothing():
    from_dict({"track": {"tags": ["a"]}}).track.tags.append("b")
    assert from_dict({"track": {"tags": ["a"]}}).track.tags == ["a"]
    assert from_dict({}).run_dir == ""


def test_help_is_flat_and_says_what_a_file_may_hold():
    text = parser(prog="here").format_help()
    assert text.startswith("usage: here [--config CONFIG] ")
    assert "YAML file with any of the fields below" in " ".join(text.split())
