"""Which GPUs the runs on this machine get. No GPU is needed to say so."""

import pytest

from shards.common.command import InputError
from slurm.cluster import from_dict
from slurm.local import gpus_here, slots


def test_runs_get_the_gpus_that_the_launcher_has(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5")
    assert gpus_here() == [2, 3, 5]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus_here() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1234")
    with pytest.raises(InputError, match="expected numbers, as in 0,1, found 'GPU-1234'"):
        gpus_here()


def test_there_are_no_more_slots_than_gpus():
    asked = {"executor": "local", "array_parallelism": 4}
    assert slots(from_dict(asked), []) == 4
    assert slots(from_dict({**asked, "gpus_per_node": 2, "tasks_per_node": 2}), [2, 3, 5]) == 1
    assert slots(from_dict({**asked, "gpus_per_node": 1}), [2, 3, 5]) == 3
    with pytest.raises(InputError, match="expected at most the 1 GPUs that this machine shows, found 2; lower it"):
        slots(from_dict({**asked, "gpus_per_node": 2, "tasks_per_node": 2}), [4])
