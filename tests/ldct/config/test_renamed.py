"""Names that version 0.1 had: refused where a person writes them, read where the program wrote them."""

import pytest
import yaml
from conftest import ROOT, run_command

from ldct import config as configuration
from ldct.config import from_dict, hash8, load, parse, renamed
from shards.common.command import InputError

SCHEME = "data.scheme is now called data.normalization; its value 'seed' is now 'hu500'"
PLACES = "model.attention_places is now called model.attention_stages"
SEED = "data.normalization: the value 'seed' is now called 'hu500'"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"data": {"scheme": "seed"}}, SCHEME),
        ({"model": {"attention_places": [1]}}, PLACES),
        ({"data": {"normalization": "seed"}}, SEED),
    ],
)
def test_what_a_person_wrote_is_refused_with_the_new_name(tmp_path, values, says):
    """As nested fields, as a file, as a file on the command line, as flags."""
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    ((section, ((name, value),)),) = ((section, fields.items()) for section, fields in values.items())
    attempts = [
        lambda: from_dict(values),
        lambda: load(path),
        lambda: parse([f"--config={path}"]),
        lambda: parse([f"--{section}.{name}={value}"]),
        lambda: parse([f"--{section}.{name}", str(value)]),
    ]
    for attempt in attempts:
        with pytest.raises(InputError) as error:
            attempt()
        assert str(error.value).removeprefix(f"{path}: ") == says


def test_every_old_name_of_a_file_is_told_at_once_with_the_file(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump({"data": {"scheme": "seed"}, "model": {"attention_places": [1], "name": "unet"}}))
    for attempt in (lambda: load(path), lambda: parse([f"--config={path}"])):
        with pytest.raises(InputError) as error:
            attempt()
        assert str(error.value) == f"{path}: {SCHEME}; {PLACES}"


def test_what_the_program_wrote_is_read_under_the_new_names_and_a_note_says_so_once(capsys):
    old = {"data": {"scheme": "seed", "min_body": 0.5}, "model": {"attention_places": [1]}, "run_dir": "r", "val": None}
    new = {"data": {"normalization": "hu500", "min_body": 0.5}, "model": {"attention_stages": [1]}, "run_dir": "r"}
    assert renamed.updated(old, "a file") == renamed.updated(old, "a file") == new | {"val": None}
    assert old["data"]["scheme"] == "seed"  # the caller's own fields stay as they are
    assert renamed.updated(new, "new") == new
    names = "data.scheme as data.normalization, model.attention_places as model.attention_stages, seed as hu500"
    assert capsys.readouterr().err == f"note: a file is of version 0.1: read {names}\n"


def test_every_old_name_has_its_advice():
    values = {"data": {"scheme": "seed", "normalization": "seed"}, "model": {"attention_places": [1]}, "val": 3}
    assert renamed.old_names(values) == [SCHEME, PLACES, SEED]
    assert renamed.old_names({"data": {"normalization": "redcnn"}, "model": {"attention_stages": [1]}}) == []


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("unrecognized arguments: --data.scheme=seed", SCHEME),
        ("unrecognized arguments: --model.attention_places=[1]", PLACES),
        ("\"data.normalization\": Expected one of 'hu1000'. Got value: seed", SEED),
        ("\"data.normalization\": Expected one of 'hu1000'. Got value: seeds", None),
        ("\"data.store\": Expected one of 'auto'. Got value: seed", None),
    ],
)
def test_the_advice_that_a_message_asks_for(message, advice):
    assert renamed.hint(message) == advice


def test_a_sweep_file_and_its_settings_are_refused_too(tiny_shards, tmp_path):
    sweep, cluster = tmp_path / "sweep.yaml", ROOT / "configs/clusters/local.yaml"
    plan = ["launch/sweep.py", sweep, "--cluster", cluster, "--dry-run", "--set", f"data.shards={tiny_shards}"]
    sweep.write_text(yaml.safe_dump({"method": "grid", "parameters": {"data.scheme": {"values": ["seed", "hu1000"]}}}))
    done = run_command(*plan, check=False)
    assert done.returncode == 2 and SCHEME in done.stderr and len(done.stderr.splitlines()) == 1
    sweep.write_text(yaml.safe_dump({"method": "grid", "parameters": {"train.seed": {"values": [0, 1]}}}))
    done = run_command(*plan, "--set", "model.attention_places=[1]", check=False)
    assert done.returncode == 2 and PLACES in done.stderr and len(done.stderr.splitlines()) == 1


def test_folders_keep_their_names():
    """hash8 of two configurations as version 0.1 computed it."""
    assert hash8(from_dict({})) == "e90496b3"
    model = {"name": "unet", "attention": "both", "attention_stages": [1, 2]}
    assert hash8(from_dict({"data": {"normalization": "hu500"}, "model": model})) == "f76795b3"
    assert set(configuration.renamed.ADDED) <= set(configuration.flat(from_dict({})))
