"""The command that runs a real SLURM on one machine."""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
from slurm_bed import DEVCLUSTER, devcluster, free_ports, until

from slurm import squeue


def test_up_twice_status_and_env(cluster):
    assert "already up" in devcluster("up").stdout
    shown = devcluster("status").stdout
    assert shown.count("runs\n") == 20  # 4 daemons, 16 nodes
    assert devcluster("env").stdout == f"export SLURM_CONF={cluster}/etc/slurm.conf\n"


def test_it_listens_on_loopback_only(cluster):
    port = int(os.environ["DEVCLUSTER_PORT"])
    listening = []
    for table in ("tcp", "tcp6"):
        with open(f"/proc/net/{table}") as file:
            rows = [line.split() for line in file.readlines()[1:]]
        listening += [row[1].split(":") for row in rows if row[3] == "0A"]
    ours = {(address, int(number, 16)) for address, number in listening if port <= int(number, 16) < port + 18}
    assert {address for address, _ in ours} == {"0100007F"}
    assert {number for _, number in ours} == set(range(port, port + 18))


def test_jobs_run_on_named_nodes_with_their_gpus(cluster):
    done = devcluster("exec", "srun", "-N2", "-n2", "--gpus-per-node=1", "-w", "n[3-4]", "bash", "-c",
                      "echo $(hostname) $CUDA_VISIBLE_DEVICES")  # fmt: skip
    assert sorted(done.stdout.split("\n")[:2]) == ["n3 0", "n4 0"]


def test_accounting_knows_how_a_job_ended(cluster):
    sent = devcluster("exec", "sbatch", "--parsable", "--wait", "-o", "/dev/null", "--wrap", "exit 3", check=False)
    job = sent.stdout.strip()
    assert until("accounting", lambda: squeue.ended([job]).get(job), 30) == "FAILED"
    assert job not in squeue.live()


def test_wrong_node_is_named(cluster):
    done = devcluster("crash", "n99", check=False)
    assert done.returncode == 2
    assert "node 'n99' does not run; nodes are n1, n2," in done.stderr


def refused(**environment):
    done = devcluster("up", check=False, **environment)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="up needs root")
def test_clear_errors(tmp_path):
    assert "at most 80 characters" in refused(DEVCLUSTER_DIR="/tmp/" + "x" * 90)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").touch()
    assert "expected a new or empty folder, found thesis.txt" in refused(DEVCLUSTER_DIR=str(tmp_path / "work"))
    assert (tmp_path / "work" / "thesis.txt").exists()
    said = refused(DEVCLUSTER_DIR=str(tmp_path / "dc"), PATH=str(tmp_path))
    if not os.path.exists("/usr/sbin/munged"):
        assert "not installed: munged, slurmctld" in said
    else:  # SLURM's daemons are in /usr/sbin, which is always looked into
        assert "not installed: sbatch, srun, scontrol" in said
    assert "slurm/devcluster install" in said


def test_a_taken_port_is_named(cluster, tmp_path):
    with socket.socket() as taken:
        port = free_ports(8)
        taken.bind(("127.0.0.1", port + 1))
        taken.listen()
        said = refused(DEVCLUSTER_DIR=str(tmp_path / "dc"), DEVCLUSTER_PORT=str(port), DEVCLUSTER_NODES="4")
    assert f"port {port + 1} is taken" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_only_root_may_start_it(tmp_path):
    folder = Path(tempfile.mkdtemp(prefix="devcluster-of-nobody-"))  # pytest's own folders are root's alone
    try:
        folder.chmod(0o755)
        for path in (DEVCLUSTER, DEVCLUSTER.with_name("devcluster_setup.py")):
            shutil.copy(path, folder)
        command = ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/env", "python3", folder / "devcluster", "up"]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    finally:
        shutil.rmtree(folder)
    assert done.returncode == 2, done.stderr
    assert "up needs root" in done.stderr
