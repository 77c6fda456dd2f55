"""docs/errors.md: every line it lists is in the code, and most are provoked here, by the command that says them."""

import ast
import re
import shutil

import pytest
import yaml
from conftest import ROOT, tiny_flags
from made import make_run
from phantom import write_series

from ldct.config import parse
from ldct.training.signals import Latch
from ldct.training.step import NotFinite
from ldct.training.trainer import step_advice, train, validation_advice
from shards.common.command import InputError
from shards.common.lock import locked

LISTED = re.findall(r"^\| `(.+?)` \|", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)
SHARDS, TRAIN, SLURM, USE = "shards.build", "train", "launch.sweep", "use"


def pattern(line):
    """What a listed line matches: ``...`` is any text."""
    return ".*".join(re.escape(piece) for piece in line.split("..."))


def templates():
    """The texts of the code, as one string each, with NUL where a value goes."""
    for package in ("shards", "ldct", "slurm", "launch"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(p.value if isinstance(p, ast.Constant) else "\0" for p in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_every_listed_line_is_in_the_code():
    code = "\n".join(templates())
    pieces = {piece.strip(" ;:,()") for line in LISTED for piece in line.split("...")}
    assert {piece for piece in pieces if piece not in code} == {"unrecognized arguments"}  # argparse's own
    assert len(LISTED) >= 20


@pytest.fixture
def said(call):
    """The one line that a command ends with."""

    def run(module, *argv):
        status, _, errors = call(module, *argv)
        assert status == 2
        return errors.splitlines()[-1].removeprefix("error: ")

    return run


@pytest.fixture
def refused():
    """The one line that a training ends with."""

    def run(shards, folder, **changes):
        with pytest.raises((InputError, NotFinite)) as caught:
            train(parse(tiny_flags(shards, folder, **changes)), Latch())
        return str(caught.value)

    return run


def listed(lines):
    """That every line is listed, and each as another one; how they are listed."""
    found = [[entry for entry in LISTED if re.fullmatch(pattern(entry), line)] for line in lines]
    assert [line for line, entries in zip(lines, found, strict=True) if not entries] == []
    assert len({entries[0] for entries in found}) == len(lines)


def test_lines_of_a_build(said, tiny_shards, tmp_path):
    dicom, out = tiny_shards.parent / "dicom", tmp_path / "out"
    swapped = tmp_path / "swapped"
    for dose, other in (("full", "quarter"), ("quarter", "full")):
        shutil.copytree(dicom / "L067" / f"{dose}_1mm", swapped / "L067" / f"{other}_1mm")
    several = shutil.copytree(dicom, tmp_path / "several")
    write_series(several / "L067" / "full_3mm", "L067", "full", 4)
    apart = tmp_path / "apart"
    write_series(apart / "L067" / "full_1mm", "L067", "full", 4)
    write_series(apart / "L067" / "quarter_1mm", "L067", "quarter", 4, first_z=500.0)
    (tmp_path / "plain").mkdir()
    shutil.copy(next((dicom / "L067" / "full_1mm").iterdir()), tmp_path / "plain" / "1.dcm")
    shutil.copytree(tiny_shards, tmp_path / "built")
    (tmp_path / "simulated").mkdir()
    (tmp_path / "simulated" / "simulation.json").write_text('{"model": 0}')
    with locked(tmp_path / "busy" / ".build" / "lock", "a test"):
        busy = said(SHARDS, dicom, tmp_path / "busy")
    listed(
        [
            busy,
            said(SHARDS, tmp_path / "nowhere", out),
            said(SHARDS, dicom, dicom / "out"),
            said(SHARDS, tmp_path / "plain", out),
            said(SHARDS, several, out),
            said(SHARDS, several, out, "--series", "5mm"),
            said(SHARDS, apart, out),
            said(SHARDS, swapped, out),
            said(SHARDS, dicom / "L067", out),
            said(SHARDS, dicom, out, "--val", "L999"),
            said(SHARDS, dicom, tmp_path / "built"),
            said("shards.simulate", dicom / "L067" / "full_1mm", tmp_path / "simulated"),
        ]
    )


def test_lines_of_a_training(said, refused, tiny_shards, tmp_path):
    run = make_run(tmp_path / "run", tiny_shards)
    flags = tiny_flags(tiny_shards, tmp_path / "trained", train__steps=1, val__every=100)
    assert train(parse(flags), Latch()) is None
    other = shutil.copytree(tiny_shards, tmp_path / "rebuilt")
    with open(other / "manifest.json", "a") as file:
        file.write("\n")
    listed(
        [
            refused(tmp_path / "nowhere", tmp_path / "a"),
            said("launch.train", "--train.stepz=4"),
            said("launch.train", "--data.scheme=hu1000"),
            refused(tiny_shards, tmp_path / "c", data__min_body=1.0),
            refused(tiny_shards, tmp_path / "trained", train__steps=2, val__every=100, optim__lr=0.5),
            refused(other, tmp_path / "trained", train__steps=2, val__every=100),
            refused(tiny_shards, tmp_path / "d", optim__lr=1e38, optim__warmup=0, optim__clip_norm=0),
            step_advice(parse(flags), 1),
            validation_advice(parse(flags), patches_there=True),
            said("launch.denoise", "--run", run, "--device", "cuda:7x", tmp_path, tmp_path / "out"),
        ]
    )


def test_lines_of_a_sweep(said, tiny_shards, tmp_path, monkeypatch):
    def written(name, **content):
        (tmp_path / name).write_text(yaml.safe_dump(content))
        return tmp_path / name

    sweep = written("sweep.yaml", method="grid", parameters={"train.seed": {"values": [0]}})
    local, slurm = written("local.yaml", executor="local"), written("slurm.yaml", executor="slurm")
    data, runs = f"data.shards={tiny_shards}", ["--runs", tmp_path / "runs", "--set", "train.global_batch=8"]
    monkeypatch.setenv("PATH", str(tmp_path))
    with locked(tmp_path / "runs" / "sweep" / ".lock", "a test"):
        busy = said(SLURM, sweep, "--cluster", local, "--set", data, *runs)
    listed(
        [
            busy,
            said(SLURM, sweep, "--cluster", local, *runs),
            said(
                SLURM, sweep, "--cluster", written("3.yaml", executor="local", tasks_per_node=3), "--set", data, *runs
            ),
            said(SLURM, sweep, "--cluster", local, "--set", data, "--set", "train.seed=4"),
            said(SLURM, sweep, "--cluster", written("x.yaml", executor="slurm", gpus=4)),
            said(SLURM, sweep, "--cluster", written("y.yaml", executor="slurm", gpus_per_node=4)),
            said(SLURM, sweep, "--cluster", slurm, "--set", data, *runs),
            said(SLURM, sweep, "--cluster", local, "--set", data, "--set", "train.global_batch=4096"),
            said("launch.submit", "--cluster", local, "shards/build.py", tmp_path, tmp_path / "o", "--parts", "2"),
        ]
    )


def test_lines_of_what_uses_a_run(said, tiny_shards, tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / "runs" / name, tiny_shards, seed=ord(name))
    untrained = make_run(tmp_path / "untrained" / "0", tiny_shards)
    shutil.rmtree(untrained / "checkpoints")
    (untrained / "metrics.jsonl").unlink()
    (tmp_path / "empty").mkdir()
    dicom = write_series(tmp_path / "dicom", "L067", "quarter", 2)[0].parent
    listed(
        [
            said("launch.compare", tmp_path / "empty"),
            said("launch.evaluate", untrained, "--shards", tiny_shards),
            said("launch.compare", untrained, "-o", tmp_path / "r.html"),
            said("launch.denoise", "--model", "redcnn", tmp_path, tmp_path / "out"),
            said("launch.denoise", "--model", "redcnn-general", tmp_path / "empty", tmp_path / "out"),
            said("launch.denoise", "--model", "redcnn-general", dicom, tmp_path / "out"),
        ]
    )
