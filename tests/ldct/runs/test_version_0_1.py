"""A run that version 0.1 wrote: read with one note per file, and gone on with as if it were of this one."""

import os
import signal

import torch
import yaml
from conftest import tiny_flags
from made import make_run
from same_run import lines

from ldct.config import parse
from ldct.inference.denoiser import Denoiser
from ldct.runs import checkpoint
from ldct.runs.folder import read_config
from ldct.training.signals import Latch
from ldct.training.trainer import train


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
