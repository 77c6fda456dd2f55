"""What a job sets up before it trains."""

import pytest

from slurm import job


@pytest.fixture
def port(monkeypatch):
    """The port at which the ranks of a run meet, in an environment."""

    class Environment:
        rank = 0

        def export(self, **kwargs):
            return self

    def port(**environment):
        for name in ("SLURM_JOB_ID", "SUBMITIT_LOCAL_JOB_ID", "SUBMITIT_EXECUTOR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {**environment, "MASTER_PORT": "0"}.items():
            monkeypatch.setenv(name, value)
        job.export_environment()
        return int(job.os.environ["MASTER_PORT"])

    monkeypatch.setattr(job, "TorchDistributedEnvironment", Environment)
    return port


def test_ports_follow_from_what_is_unique(port):
    tasks = [port(SUBMITIT_EXECUTOR="slurm", SLURM_JOB_ID=str(number)) for number in range(7001, 7009)]
    assert len(set(tasks)) == 8 and set(tasks) <= set(job.PORTS)
    # inside one allocation, as an sbatch script that calls the launcher with the local executor has it
    inside = {"SUBMITIT_EXECUTOR": "local", "SLURM_JOB_ID": "7001"}
    assert len({port(**inside, SUBMITIT_LOCAL_JOB_ID=str(number)) for number in range(500, 508)}) == 8
