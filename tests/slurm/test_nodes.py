"""Ranks on nodes with different addresses, one of which loses its power at each phase of a run.

On a real SLURM of its own, each node of which has a network of its own behind a bridge; gloo. All phases are hit side
by side, as the runs of one array.
"""

import os
import re
import shutil
import sys
import tempfile

import pytest
from conftest import ROOT
from lost_rank import PHASES
from slurm_bed import Bed, devcluster, free_ports, job_of, until

from ldct.runs.folder import read_provenance, read_status
from slurm import squeue

pytestmark = pytest.mark.timeout(400)

NETWORK = "198.18.77"
VALUES = {
    "train.steps": 6,
    "train.timeout_s": 10.0,
    "val.every": 4,
    "val.slices": 4,
    "train.seed": [*range(len(PHASES))],
}
CLUSTER = {
    "executor": "slurm",
    "nodes": 2,
    "tasks_per_node": 1,
    "time_min": 10,
    "signal_lead_s": 90,
    "srun_args": ["--wait=15"],  # of 45 s
    "python": f"{sys.executable} {ROOT}/tests/lost_rank.py",
}


@pytest.fixture(scope="module")
def networks():
    """A cluster of two nodes with an address each."""
    folder = tempfile.mkdtemp(prefix="devcluster-")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"DIR": folder, "NODES": 2, "PORT": free_ports(4), "NETWORK": NETWORK}.items():
            patch.setenv(f"DEVCLUSTER_{name}", str(value))
        done = devcluster("up", check=False)
        if done.returncode:
            shutil.rmtree(folder)
            reason = f"no nodes with addresses of their own here: {done.stderr.strip()}"
            pytest.skip(reason)  # a container may forbid it, with SLURM there all the same
        patch.setenv("SLURM_CONF", f"{folder}/etc/slurm.conf")
        patch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin:/sbin")
        yield folder
        devcluster("down")
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def lost(networks, tiny_shards, tmp_path_factory):
    """Phase -> (folder, row of the status, log of each rank) of the run in which a rank was lost there."""
    bed = Bed(tmp_path_factory.mktemp("nodes"), tiny_shards)
    bed.launch("lost", CLUSTER, VALUES)
    folders = dict(zip(PHASES, bed.folders("lost"), strict=True))
    jobs = [job_of(folder) for folder in folders.values()]
    until("the end of all", lambda: not squeue.live(jobs), 300)
    rows = bed.status("lost")
    return {phase: (folder, rows[folder.name], logs_of(folder)) for phase, folder in folders.items()}


def logs_of(folder):
    """What ranks 0 and 1 said on their standard error; srun speaks in rank 0's."""
    return [next(folder.parent.glob(f"logs/*/{job_of(folder)}_{rank}_log.err")) for rank in (0, 1)]


def test_nodes_with_addresses_of_their_own_train_together(lost):
    folder, row, _ = lost["end"]
    status = read_status(folder)
    assert (row["state"], status.world_size, status.step) == ("finished", 2, 6)
    assert {entry["host"] for entry in read_provenance(folder)} == {"n1"}


@pytest.mark.parametrize("phase", PHASES)
def test_a_rank_that_is_lost_is_named_by_the_other_and_by_the_status(lost, phase):
    _, row, logs = lost[phase]
    victim = PHASES[phase]
    node = f"n{victim + 1}"
    named = f"rank {victim} ({node}"
    died = float(re.search(r"lost at (\S+)", logs[victim].read_text())[1])
    assert max(log.stat().st_mtime for log in logs) - died < 60
    if phase == "end":  # rank 0 has written all that there is
        assert (row["state"], row["error"], row["step"]) == ("finished", "", 6)
        return
    assert row["state"] == "failed"
    if phase == "rendezvous":  # the others cannot know it yet
        assert row["error"] == f"rank {victim} ({node}): Killed"
        return
    assert f"RankLost: {named}" in logs[1 - victim].read_text()
    assert row["error"].startswith(f"RankLost: {named}" if victim else "rank 0 (n1): Killed")
