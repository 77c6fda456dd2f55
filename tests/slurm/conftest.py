"""A real SLURM for the tests that need one."""

import os
import shutil
import tempfile
import threading

import pytest
from slurm_bed import Bed, devcluster, free_ports


@pytest.fixture(scope="session")
def cluster():
    """A running devcluster of 16 nodes; SLURM_CONF points at it."""
    folder = tempfile.mkdtemp(prefix="devcluster-")  # short: unix sockets lie in it
    settings = {"DEVCLUSTER_DIR": folder, "DEVCLUSTER_NODES": "16", "DEVCLUSTER_PORT": str(free_ports(18))}
    os.environ.update(settings)
    done = devcluster("up", check=False)
    if done.returncode:
        shutil.rmtree(folder)
        pytest.skip(f"no SLURM here: {done.stderr.strip()}")
    os.environ["SLURM_CONF"] = f"{folder}/etc/slurm.conf"
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    yield folder
    devcluster("down")
    for name in (*settings, "SLURM_CONF"):
        del os.environ[name]
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def hurried(cluster):
    """The cluster, with requeued jobs started at once instead of after 120 s."""
    ended = threading.Event()

    def hurry():
        while not ended.wait(1.0):
            devcluster("hurry", check=False)  # fails while the controller is down

    thread = threading.Thread(target=hurry)
    thread.start()
    yield cluster
    ended.set()
    thread.join()


@pytest.fixture
def bed(tmp_path, tiny_shards):
    return Bed(tmp_path, tiny_shards)
