"""Cluster files, and what SLURM is asked for."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from shards.common.command import InputError
from slurm import cluster
from slurm.cluster import from_dict, load, sbatch_text

LOGS, CODE = Path("/runs/s/logs/1"), Path("/runs/s/code/abc")


def script(runs=8, **fields):
    return sbatch_text(from_dict(fields), LOGS, "s", "note", CODE, runs).splitlines()


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "clusters").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_files_are_valid(path):
    load(path)


def test_every_key_of_a_gpu_cluster_reaches_sbatch():
    lines = script(
        partition="gpu", account="me", qos="long", constraint="a100", exclude="n1", nodes=2, tasks_per_node=4,
        cpus_per_task=8, gpus_per_node=4, mem_gb=64, time_min=240, signal_lead_s=180, array_parallelism=3,
        modules=["cuda/12"], setup=["source venv/bin/activate"], python="apptainer exec i.sif python",
        srun_args=["--mpi=none"], interface="ib0", sbatch={"reservation": "r"},
    )  # fmt: skip
    wanted = ["array=0-7%3", "partition=gpu", "account=me", "qos=long", "constraint=a100", "exclude=n1", "nodes=2"]
    wanted += ["ntasks-per-node=4", "cpus-per-task=8", "gpus-per-node=4", "mem=65536M", "time=240"]
    wanted += ["signal=USR2@180", "reservation=r", "requeue", "comment=note", "job-name=s"]
    assert {f"#SBATCH --{line}" for line in wanted} <= set(lines)
    setup = lines[lines.index("# setup") + 1 :]
    assert [line for line in setup if line.startswith("{ ")] == ["{ module load cuda/12", "{ source venv/bin/activate"]
    assert not [line for line in lines if "wckey" in line]
    assert "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK" in setup
    assert "export PYTHONPATH=/runs/s/code/abc${PYTHONPATH:+:$PYTHONPATH}" in setup
    assert "export PYTHONSAFEPATH=1" in setup
    assert {"export GLOO_SOCKET_IFNAME=ib0", "export NCCL_SOCKET_IFNAME=ib0"} <= set(setup)
    (srun,) = [line for line in lines if line.startswith("srun ")]
    assert "--kill-on-bad-exit=0 --wait=45 --mpi=none" in srun
    assert "apptainer exec i.sif python -u -m submitit.core._submit /runs/s/logs/1" in srun


def test_the_script_names_the_python_that_runs_the_job():
    (srun,) = [line for line in script() if line.startswith("srun ")]
    assert f" {sys.executable} -u -m submitit.core._submit " in srun


def test_a_key_without_a_value_is_not_given():
    assert from_dict({"nodes": None, "account": None}) == from_dict({})


def test_an_option_without_a_value_is_left_out():
    lines = script(sbatch={"mail-type": None, "wckey": "lab"})
    assert "#SBATCH --wckey=lab" in lines and not [line for line in lines if "mail" in line]


@pytest.mark.parametrize(
    ("gres", "count"),
    [("gpu", 1), ("gpu:4", 4), ("gpu:a100:4", 4), ("gpu:a100", 1), ("gpu:h100:2,nvme:1", 2), ("nvme:1", 0),
     ("gpu:a100:1,gpu:v100:2", 3), ("gres:gpu:2", 2)],
)  # fmt: skip
def test_gpus_in_slurms_words(gres, count):
    assert cluster.gpus_of(gres) == count


def test_a_setup_line_that_fails_ends_the_job_with_that_line():
    lines = [cluster.or_end(line) for line in ("export A=1", "[ $A = 1 ] && B='x y'", "(exit 3)")]
    done = subprocess.run(["bash", "-c", "\n".join([*lines, "echo not reached"])], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "setup line failed: (exit 3), exit status 3\n"
    done = subprocess.run(["bash", "-c", "\n".join([*lines[:2], "echo $A$B"])], capture_output=True, text=True)
    assert done.stdout == "1x y\n"


def test_gres_takes_the_place_of_gpus_per_node():
    lines = script(gres="gpu:a100:4", gpus_per_node=4, tasks_per_node=4)
    assert "#SBATCH --gres=gpu:a100:4" in lines
    assert not [line for line in lines if "gpus-per-node" in line]


def test_all_runs_at_once_unless_the_file_says_less():
    assert "#SBATCH --array=0-299%300" in script(runs=300)
    assert "#SBATCH --array=0-299%8" in script(runs=300, array_parallelism=8)


def test_one_run_is_no_array():
    assert not [line for line in script(runs=1) if "--array" in line]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ([1], "expected a mapping"),
        ({"partiton": "gpu"}, "unknown key 'partiton'; there are: executor, nodes, "),
        ({"executor": "pbs"}, "\"executor\": Expected one of 'slurm', 'local'. Got value: pbs"),
        ({"nodes": "two"}, '"nodes": Expected int. Got value: two'),
        ({"nodes": True}, '"nodes": Expected int. Got value: True'),
        ({"setup": "source a"}, '"setup": Expected list. Got value: source a'),
        ({"setup": [1]}, '"setup": Expected str. Got value: 1'),
        ({"account": 1234}, '"account": Expected one of str, null. Got value: 1234'),
        ({"nodes": 0}, "nodes: expected at least 1"),
        ({"array_parallelism": 0}, "array_parallelism: expected at least 1"),
        ({"gpus_per_node": 4}, "tasks_per_node: expected 4, one rank for each of gpus_per_node, found 1"),
        ({"gpus_per_node": 2, "tasks_per_node": 8}, "tasks_per_node: expected 2"),
        ({"gres": "gpu:4"}, "tasks_per_node: expected 4, one rank for each GPU of gres gpu:4, found 1"),
        ({"gres": "gpu:a100:2,nvme:1"}, "tasks_per_node: expected 2"),
        ({"sbatch": {"time": "1:00"}}, "sbatch.time: this system depends on it; use time_min instead"),
        ({"sbatch": {"--job_name": "x"}}, "sbatch.--job_name: this system depends on it; use the sweep's name"),
        ({"sbatch": {"signal": None}}, "sbatch.signal: this system depends on it; use signal_lead_s"),
        ({"time_min": 2}, "leaves no time to train"),
        ({"executor": "local", "partition": "gpu"}, "partition: only the slurm executor knows it"),
        ({"executor": "local", "nodes": 2}, "nodes: the local executor has this one machine"),
    ],
)
def test_what_cannot_be_is_one_line(fields, says):
    with pytest.raises(InputError) as caught:
        from_dict(fields)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_local_runs_share_the_cores(monkeypatch):
    monkeypatch.setattr(cluster, "cores", lambda: 8)
    assert cluster.local_parallelism(from_dict({"executor": "local", "cpus_per_task": 2})) == 4
    assert cluster.local_parallelism(from_dict({"executor": "local", "cpus_per_task": 16})) == 1
    assert cluster.local_parallelism(from_dict({"executor": "local", "array_parallelism": 3})) == 3
