import numpy as np
import pytest
import torch
import torch.distributed as dist

from ldct.metrics import averages, protocols
from ldct.metrics.averages import PatientMean
from ldct.metrics.slice_pair import SlicePair
from shards.common.command import InputError

PATIENTS = ["A", "A", "B", "B", "B"]
CHOSEN = [protocols.get("abd400"), protocols.get("ldctbench"), None]


def slices(seed=0):
    rng = np.random.default_rng(seed)
    full = [np.rint(rng.normal(60, 10, (64, 64))) for _ in PATIENTS]
    return [SlicePair(image + np.rint(rng.normal(0, 5 + i, image.shape)), image) for i, image in enumerate(full)]


def floats(tensors):
    return {name: tensor.item() for name, tensor in tensors.items()}


def test_each_patient_counts_once():
    mean = PatientMean(["x"], PATIENTS)
    for number, value in enumerate([1.0, 2.0, 10.0, 20.0, 30.0]):
        mean.update({"x": value}, number)
    assert mean.compute()["x"].item() == (1.5 + 20) / 2


def test_a_call_gives_the_slices_values_and_compute_the_means():
    metrics = averages.collection(CHOSEN, PATIENTS)
    values = [metrics(pair, number) for number, pair in enumerate(slices())]
    np.testing.assert_equal(floats(values[2]), floats(averages.collection(CHOSEN)(slices()[2])))
    for name, mean in metrics.compute().items():
        each = [value[name].item() for value in values]
        np.testing.assert_equal(mean.item(), np.mean([np.mean(each[:2]), np.mean(each[2:])]))


def test_an_identity_keeps_its_metrics_apart():
    """torchmetrics would join metrics whose first values are equal, as these are under two protocols."""
    same, other = np.full((64, 64), 50.0), np.full((64, 64), 300.0)
    metrics = averages.collection(CHOSEN[:2], ["A", "A"])
    metrics.update(SlicePair(same, same), 0)
    metrics.update(SlicePair(other, same), 1)
    means = floats(metrics.compute())
    assert (means["abd400/rmse"], means["ldctbench/rmse"]) == ((240 - 50) / 2, (250 - 50) / 2)


def test_a_slice_without_a_value_is_left_out_and_a_broken_output_is_not():
    flat, air = slices()[0], SlicePair(np.full((64, 64), -1000.0), np.full((64, 64), -1001.0))
    metrics = averages.collection(CHOSEN, ["A", "A"])
    metrics.update(flat, 0)
    metrics.update(air, 1)
    means = metrics.compute()
    assert means["texture/high_band"] == averages.collection(CHOSEN)(flat)["texture/high_band"]
    assert means["abd400/rmse"].isfinite()
    metrics.update(SlicePair(np.full((64, 64), np.nan), air.full), 1)
    assert metrics.compute()["abd400/rmse"].isnan()


def test_a_protocol_that_does_not_fit_is_one_line():
    with pytest.raises(InputError, match=r"protocol document55 does not fit.*at least 55 x 55"):
        averages.collection([protocols.get("document55")]).update(SlicePair(np.zeros((40, 40)), np.zeros((40, 40))))


def worker(rank, world_size, folder):
    """A rank that measures its share of the slices, and writes the means that it gets."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    group = dist.new_group(backend="gloo")
    metrics = averages.collection(CHOSEN, PATIENTS, process_group=group)
    for number, pair in enumerate(slices()):
        if number % world_size == rank:
            metrics.update(pair, number)
    torch.save(floats(metrics.compute()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_any_number_of_ranks_gives_the_same_bits(tmp_path):
    alone = averages.collection(CHOSEN, PATIENTS)
    for number, pair in enumerate(slices()):
        alone.update(pair, number)
    expected = floats(alone.compute())
    torch.multiprocessing.spawn(worker, (2, str(tmp_path)), nprocs=2)
    for rank in range(2):
        np.testing.assert_equal(torch.load(tmp_path / f"{rank}.pt"), expected)
