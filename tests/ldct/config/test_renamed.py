"""Names that version 0.1 had: refused where a person writes them, read where the program wrote them."""

import os
import signal

import pytest
import torch
import yaml
from conftest import ROOT, run_command, tiny_flags
from made import make_run
from same_run import lines

from ldct import config as configuration
from ldct.config import from_dict, hash8, load, parse
from ldct.inference.denoiser import Denoiser
from ldct.runs import checkpoint
from ldct.runs.folder import read_config
from ldct.training.signals import CAUGHT, Latch
from ldct.training.trainer import train
from shards.common.command import InputError

SCHEME = "data.scheme is now called data.normalization; its value 'seed' is now 'hu500'"
PLACES = "model.attention_places is now called model.attention_stages"
SEED = "data.normalization: the value 'seed' is now called 'hu500'"


@pytest.fixture(autouse=True)
def handlers():
    """Put the signal handlers back that a Latch replaces."""
    before = {number: signal.getsignal(number) for number in CAUGHT}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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


def test_a_sweep_file_and_its_settings_are_refused_too(tiny_shards, tmp_path):
    sweep, cluster = tmp_path / "sweep.yaml", ROOT / "configs/clusters/local.yaml"
    plan = ["launch/sweep.py", sweep, "--cluster", cluster, "--dry-run", "--set", f"data.shards={tiny_shards}"]
    sweep.write_text(yaml.safe_dump({"method": "grid", "parameters": {"data.scheme": {"values": ["seed", "hu1000"]}}}))
    done = run_command(*plan, check=False)
    assert done.returncode == 2 and SCHEME in done.stderr and len(done.stderr.splitlines()) == 1
    sweep.write_text(yaml.safe_dump({"method": "grid", "parameters": {"train.seed": {"values": [0, 1]}}}))
    done = run_command(*plan, "--set", "model.attention_places=[1]", check=False)
    assert done.returncode == 2 and PLACES in done.stderr and len(done.stderr.splitlines()) == 1


def as_first_written(folder):
    """Rewrite the configuration in a run's files as version 0.1 named it."""

    def old(values):
        values = {section: dict(fields) if isinstance(fields, dict) else fields for section, fields in values.items()}
        normalization = values["data"].pop("normalization")
        values["data"]["scheme"] = {"hu500": "seed"}.get(normalization, normalization)
        values["model"]["attention_places"] = values["model"].pop("attention_stages")
        return values

    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(old(yaml.safe_load(config.read_text()))))
    for path in (folder / "checkpoints").iterdir():
        content = torch.load(path, weights_only=True)
        checkpoint.save(path.parent, path.name, content | {"config": old(content["config"])})


def test_a_run_of_version_0_1_is_read_with_one_note_per_file(tiny_shards, tmp_path, capsys):
    run = make_run(tmp_path / "0-run", tiny_shards, attention="channel", attention_stages=[2])
    config, weights = read_config(run), checkpoint.read_best(run)["model"]
    as_first_written(run)
    capsys.readouterr()
    assert read_config(run) == read_config(run) == config
    denoiser = Denoiser(run, torch.device("cpu"))
    assert denoiser.config.model == config.model and denoiser.config.data.normalization == "hu1000"
    assert all(torch.equal(value, weights[name]) for name, value in denoiser.model.state_dict().items())
    names = "data.scheme as data.normalization, model.attention_places as model.attention_stages"
    assert capsys.readouterr().err.splitlines() == [
        f"note: {run / 'config.yaml'} is of version 0.1: read {names}",
        f"note: {run / 'checkpoints' / checkpoint.BEST} is of version 0.1: read {names}",
    ]


def test_a_run_of_version_0_1_goes_on_as_if_it_were_of_this_one(tiny_shards, tmp_path):
    fields = {"data__normalization": "hu500", "train__steps": 6, "val__every": 3}
    weights = []
    for name in ("new", "old"):
        flags = tiny_flags(tiny_shards, tmp_path / name, **fields)
        latch = Latch()
        os.kill(os.getpid(), signal.SIGTERM)
        assert train(parse(flags), latch) is signal.SIGTERM
        if name == "old":
            as_first_written(tmp_path / name)
        assert train(read_config(tmp_path / name), Latch()) is None
        weights.append(checkpoint.newest(tmp_path / name / "checkpoints")["model"])
    new, old = weights
    assert all(torch.equal(old[key], new[key]) for key in new)
    assert lines(tmp_path / "old") == lines(tmp_path / "new")
    assert "normalization: hu500" in (tmp_path / "old" / "config.yaml").read_text()  # from here on


def test_folders_keep_their_names():
    """hash8 of two configurations as version 0.1 computed it."""
    assert hash8(from_dict({})) == "e90496b3"
    model = {"name": "unet", "attention": "both", "attention_stages": [1, 2]}
    assert hash8(from_dict({"data": {"normalization": "hu500"}, "model": model})) == "f76795b3"
    assert set(configuration.renamed.ADDED) <= set(configuration.flat(from_dict({})))
