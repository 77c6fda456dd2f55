import dataclasses

import pytest
import yaml
from conftest import run_command

from ldct import config as configuration
from ldct.config import (
    Config,
    ModelConfig,
    decisive,
    differences,
    flat,
    from_dict,
    hash8,
    load,
    parse,
    resolved,
    to_yaml,
)
from shards.common.command import InputError


def test_the_text_of_a_configuration_is_read_back_and_keeps_the_order_of_its_fields(tmp_path):
    config = from_dict({"model": {"name": "unet"}, "track": {"tags": ["a"]}, "run_dir": "r"})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load(tmp_path / "config.yaml") == config
    sections = [line.rstrip(":") for line in to_yaml(config).splitlines() if line[0] != " "]
    assert sections[:7] == ["data", "model", "loss", "optim", "train", "val", "track"]


def test_yaml_gives_the_same_configuration_back(tmp_path):
    config = parse(["--model.name=unet", "--optim.lr=3e-4", "--data.shards=somewhere", "--track.tags=[a, b]"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load(tmp_path / "config.yaml") == config
    assert config.optim.lr == 3e-4 and config.track.tags == ["a", "b"]


def test_the_command_line_wins_over_the_file(tmp_path):
    (tmp_path / "c.yaml").write_text("train: {steps: 7, seed: 3}\n")
    config = parse([f"--config={tmp_path / 'c.yaml'}", "--train.steps=9"])
    assert (config.train.steps, config.train.seed) == (9, 3)


@pytest.mark.parametrize(("model", "sizes"), [("redcnn", (96, 5, 5)), ("unet", (64, 4, 3))], ids=["redcnn", "unet"])
def test_sizes_are_the_published_ones_unless_given(model, sizes):
    config = from_dict({"model": {"name": model}}).model
    assert (config.channels, config.depth, config.kernel) == sizes
    assert resolved(ModelConfig(name=model, channels=8)).channels == 8


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"modl": {}}, "unknown section 'modl'; there are: data, model"),
        ({"model": {"nme": "unet"}}, "unknown field model.nme; model has: name, channels"),
        ({"model": {"name": "vgg"}}, "model.name: expected one of redcnn, unet, found 'vgg'"),
        ({"model": {"kernel": 4}}, "model.kernel: expected an odd number"),
        ({"train": {"steps": 0}}, "train.steps: expected at least 1, found 0"),
        ({"train": {"global_batch": 10, "accumulate": 4}}, "train.accumulate: expected a divisor"),
        ({"train": {"precision": "fp8"}}, "train.precision"),
        ({"optim": {"lr": "fast"}}, "optim.lr"),
        ({"data": {"min_body": 1.5}}, "data.min_body: expected a share between 0 and 1, found 1.5"),
        ({"train": 3}, "train: expected a mapping of fields, found 3"),
    ],
)
def test_what_cannot_be_is_one_line(values, says):
    with pytest.raises(InputError) as error:
        from_dict(values)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_the_hash_names_what_is_trained():
    default = from_dict({})
    assert hash8(default) == hash8(from_dict({"run_dir": "elsewhere", "track": {"wandb": "disabled"}}))
    assert hash8(default) != hash8(from_dict({"train": {"seed": 1}}))
    moved = from_dict({"data": {"shards": "/elsewhere"}, "train": {"save_every_s": 60.0, "steps": 7, "hang_s": 5.0}})
    assert hash8(default) == hash8(moved)
    assert hash8(default, ("train.steps",)) != hash8(moved, ("train.steps",))
    assert hash8(default) == "e90496b3"  # in version 0.1 and ever since


def test_differences_leave_out_what_may_change():
    old = from_dict({"train": {"steps": 10, "seed": 0}, "data": {"shards": "a"}})
    new = from_dict({"train": {"steps": 20, "seed": 1}, "data": {"shards": "b"}, "run_dir": "r"})
    assert differences(old, new) == {"train.seed": (0, 1)}


def test_a_run_may_change_these_fields_on_its_way_and_no_other():
    decides = {f"{section}.{field}" for section, fields in decisive(Config()).items() for field in fields}
    assert flat(Config()).keys() - decides == {
        "run_dir",
        "data.shards",
        "data.store",
        "data.stage",
        "train.steps",
        "train.save_every_s",
        "train.timeout_s",
        "train.hang_s",
        "train.keep_every_steps",
        "track.wandb",
        "track.project",
        "track.entity",
        "track.tags",
    }
    assert decides < flat(Config()).keys()
    assert flat(from_dict({"run_dir": "r"}))["run_dir"] == "r"


def test_every_field_is_documented_in_help():
    text = run_command("launch/train.py", "--help").stdout
    words = " ".join(text.split())
    for section in dataclasses.fields(Config):
        if section.name == "run_dir":
            continue
        for field in dataclasses.fields(section.default_factory):
            assert f"--{section.name}.{field.name}" in words
    assert "Smallest share of a patch's pixels above -500 HU" in words
    assert "Patches per optimizer step" in words


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--model.nme=unet"], "--model.nme"),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
        (["--run_dir=r"], "expected --data.shards"),
        (["--run_dir=r", "--data.shards=nowhere"], "expected nowhere/manifest.json, written by shards/build.py"),
    ],
)
def test_the_command_fails_with_one_line_and_status_2(argv, says):
    done = run_command("launch/train.py", *argv, check=False)
    assert done.returncode == 2 and says in done.stderr
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("model: [unclosed")
    with pytest.raises(InputError, match="not valid YAML"):
        configuration.load(path)
    path.write_text("- a list")
    with pytest.raises(InputError, match="expected a mapping of sections, found list"):
        configuration.load(path)
    path.write_text(yaml.safe_dump({"model": {"nme": 1}}))
    with pytest.raises(InputError, match=r"c\.yaml: unknown field model\.nme"):
        configuration.load(path)
