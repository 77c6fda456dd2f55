"""The demo's chain of commands on a tiny full-dose series: run, and run again."""

import json

import pytest
from conftest import run_command
from phantom import write_series

from ldct.runs.folder import find_runs, read_status

SWEEP = """
name: tiny
program: launch/train.py
method: grid
parameters:
  model.name: {values: [redcnn, unet]}
  model.channels: {value: 4}
  model.depth: {value: 2}
  train.steps: {value: 6}
  train.global_batch: {value: 4}
  val.every: {value: 3}
  track.wandb: {value: disabled}
"""


def chain(folder):
    """Every command of `make demo` behind the download; their outputs."""
    sweep = folder / "sweep.yaml"
    sweep.write_text(SWEEP)
    shards, runs = folder / "shards", folder / "runs"
    cluster = ["--cluster", "configs/clusters/local.yaml", "--runs", runs, "--set", f"data.shards={shards}"]
    commands = [
        ["shards/simulate.py", folder / "full", folder / "pairs", "--dose", "0.25", "--i0", "1e5", "--seed", "0"],
        ["shards/build.py", folder / "pairs", shards, "--split", "slabs", "--stride", "24"],
        ["launch/sweep.py", sweep, *cluster],
        ["launch/evaluate.py", runs, "--shards", shards, "--protocol", "abd400"],
        ["launch/compare.py", runs, "--output", folder / "report.html"],
    ]
    return [run_command(*command, timeout=240).stdout for command in commands]


def files(folder):
    """When each file that took work was last changed."""
    kept = [p for name in ("pairs", "shards", "runs") for p in (folder / name).rglob("*") if p.is_file()]
    return {path: path.stat().st_mtime_ns for path in kept if path.name not in ("lock", ".lock")}


@pytest.mark.timeout(600)
def test_the_chain_runs_and_a_second_time_finds_all_done(tmp_path):
    write_series(tmp_path / "full", "P1", "full", 12)
    outputs = chain(tmp_path)
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    assert manifest["split"]["by"] == "slab" and "not by patient" in manifest["split"]["note"]
    assert "not by patient" in outputs[-1] and outputs[-1].splitlines()[-1] == str(tmp_path / "report.html")
    states = [read_status(run).state for run in find_runs([tmp_path / "runs"])]
    assert states == ["finished", "finished"]
    before = files(tmp_path)
    again = chain(tmp_path)
    changed = [path for path, when in files(tmp_path).items() if before.get(path) != when]
    assert changed == []
    assert again[-1].splitlines()[1:-1] == outputs[-1].splitlines()[1:-1]
