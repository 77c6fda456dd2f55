import re
import resource

import pytest
import torch

from ldct.config import from_dict, to_dict
from ldct.runs.checkpoint import (
    Broken,
    Clock,
    check_same_run,
    newest,
    read,
    read_best,
    save,
    start_from,
    step_name,
    step_of,
    steps,
)
from shards.common.command import InputError


def content(step):
    return {"step": step, "model": {"weight": torch.arange(4096, dtype=torch.float32) + step}}


def save_steps(folder, *numbers):
    for number in numbers:
        save(folder, step_name(number), content(number))


def test_the_folder_is_made_with_all_above_it(tmp_path):
    save_steps(tmp_path / "sweep" / "run" / "checkpoints", 5)
    assert [path.name for path in steps(tmp_path / "sweep" / "run" / "checkpoints")] == ["step-00000005.pt"]


def test_a_disk_that_is_full_from_the_first_says_that_nothing_is_there_yet(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(InputError) as error:
            save_steps(tmp_path, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(error.value) == (
        f"cannot write {tmp_path / step_name(1)}: File too large; there is no earlier one; make room and run again"
    )


def test_the_last_two_steps_and_the_best_are_kept(tmp_path):
    save(tmp_path, "best.pt", content(2))
    save_steps(tmp_path, 1, 2, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "step-00000002.pt", "step-00000003.pt"]
    restored = newest(tmp_path)
    assert restored["step"] == 3 and torch.equal(restored["model"]["weight"], content(3)["model"]["weight"])


def test_multiples_of_a_number_are_never_removed(tmp_path):
    for step in range(1, 10):
        save(tmp_path, step_name(step), content(step), keep_every=3)
    assert [step_of(path) for path in steps(tmp_path)] == [9, 8, 6, 3]
    save(tmp_path, step_name(10), content(10))  # what was kept before is removed when it is no longer asked for
    assert [step_of(path) for path in steps(tmp_path)] == [10, 9]


class RunsCode:
    """What pickle would call a function for."""

    def __reduce__(self):
        return print, ("this ran",)


def damage_empty(data):
    return b""


def damage_cut(data):
    return data[: len(data) // 2]


def damage_tail(data):
    return data[:-1]


def damage_tensor_bit(data):
    middle = data.index(content(3)["model"]["weight"].numpy().tobytes()) + 5000
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def damage_pickle_byte(data):
    position = data.index(b"model")
    return data[:position] + b"M" + data[position + 1 :]


def damage_other_file(data):
    return b"not a checkpoint"


DAMAGES = [damage_empty, damage_cut, damage_tail, damage_tensor_bit, damage_pickle_byte, damage_other_file]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_a_broken_file_is_passed_over_for_the_one_before(tmp_path, capsys, damage):
    save_steps(tmp_path, 2, 3)
    path = tmp_path / step_name(3)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Broken) as error:
        read(path)
    assert damage is not damage_tensor_bit or re.fullmatch(r"checksum of \S+ does not match", str(error.value))
    assert newest(tmp_path)["step"] == 2
    warning = capsys.readouterr().err
    assert f"{path} is broken" in warning and "going back to the checkpoint before it" in warning


def test_a_configuration_of_version_0_1_is_read_under_the_new_names(tmp_path, capsys):
    save(tmp_path, "best.pt", content(1) | {"config": {"data": {"scheme": "seed"}}})
    assert read(tmp_path / "best.pt")["config"] == {"data": {"normalization": "hu500"}}
    assert capsys.readouterr().err == (
        f"note: {tmp_path / 'best.pt'} is of version 0.1: read data.scheme as data.normalization, seed as hu500\n"
    )


def test_no_checkpoint_is_none_and_all_broken_too(tmp_path):
    assert newest(tmp_path / "nothing") is None
    save_steps(tmp_path, 1)
    (tmp_path / step_name(1)).write_bytes(b"")
    assert newest(tmp_path) is None


def test_a_disk_that_fills_up_leaves_the_earlier_checkpoint_whole(tmp_path):
    save_steps(tmp_path, 1)
    before = (tmp_path / step_name(1)).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))  # the kernel refuses to write further
    try:
        with pytest.raises(InputError, match=r"cannot write .*step-00000002\.pt: .*; step-00000001\.pt is whole"):
            save_steps(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == [step_name(1)]
    assert steps(tmp_path)[0].read_bytes() == before and newest(tmp_path)["step"] == 1


def test_a_checkpoint_by_the_clock_is_due_when_its_seconds_are_over(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = Clock(every_s=10)
    due = []
    for now[0] in (100.0, 109.9, 110.0, 120.0):
        due.append(clock.due())
    clock.saved()
    assert [*due, clock.due()] == [False, False, True, True, False]


def test_equal_contents_are_equal_bytes_whatever_objects_they_are_made_of(tmp_path):
    """Pickle refers back to an object that it has met, so the same text as one object and as two would differ."""
    text = "".join(["ad", "am"])
    same, other = {"a": text, "b": [text, (text, 1)]}, {"a": text, "b": ["".join(["ad", "am"]), ("".join("adam"), 1)]}
    save(tmp_path, "one.pt", same)
    save(tmp_path, "two.pt", other)
    assert (tmp_path / "one.pt").read_bytes().replace(b"one", b"two") == (tmp_path / "two.pt").read_bytes()
    assert read(tmp_path / "two.pt") == same  # lists stay lists, tuples tuples


def test_a_file_that_would_run_code_is_broken(tmp_path, capsys):
    torch.save({"step": 1, "model": RunsCode()}, tmp_path / "step-00000001.pt")
    with pytest.raises(Broken, match="Weights only load failed"):
        read(tmp_path / "step-00000001.pt")
    assert capsys.readouterr().out == ""


def test_another_configuration_or_other_shards_are_refused(tmp_path):
    old = from_dict({"train": {"seed": 0, "steps": 10}})
    earlier = {"config": to_dict(old), "manifest_sha256": "a" * 64}
    check_same_run(earlier, from_dict({"train": {"seed": 0, "steps": 99}}), "a" * 64, tmp_path)
    changed = from_dict({"train": {"seed": 1}, "model": {"name": "unet"}})
    with pytest.raises(InputError) as error:
        check_same_run(earlier, changed, "a" * 64, tmp_path)
    assert str(error.value).startswith(f"{tmp_path} belongs to another configuration: model.name was 'redcnn', now 'un")
    assert str(error.value).endswith("; train.seed was 0, now 1; change it back or use another --run_dir")
    with pytest.raises(InputError) as error:
        check_same_run(earlier, old, "b" * 64, tmp_path)
    assert str(error.value) == (
        f"{tmp_path} was trained on other shards (manifest aaaaaaaa, now bbbbbbbb); "
        "give those shards or use another --run_dir"
    )


def said(attempt, *arguments):
    with pytest.raises(InputError) as error:
        attempt(*arguments)
    return str(error.value)


def test_best_says_what_is_missing(tmp_path):
    path = tmp_path / "checkpoints" / "best.pt"
    missing = f"{tmp_path} has no checkpoint to use: expected {path}; train it first with launch/train.py"
    assert said(read_best, tmp_path) == missing
    save(path.parent, "best.pt", content(5))
    assert read_best(tmp_path)["step"] == 5
    path.write_bytes(b"PK")
    remedy = "copy it back, or train the run again in another folder"  # a finished run does not write it again
    assert said(read_best, tmp_path) == f"{path} is broken (File is not a zip file); {remedy}"


def test_a_network_starts_from_the_best_weights_of_another_run(tmp_path):
    network = torch.nn.Linear(3, 2)
    save(tmp_path / "checkpoints", "best.pt", {"step": 1, "model": {"weight": torch.ones(2, 3), "bias": torch.ones(2)}})
    start_from(network, tmp_path)
    assert torch.equal(network.weight, torch.ones(2, 3))
    other = said(start_from, torch.nn.Sequential(*[torch.nn.Linear(3, 2)] * 9), tmp_path)
    start = f"train.init_from: {tmp_path} holds another network than model describes: "
    assert other.startswith(start + 'Error(s) in loading state_dict for Sequential: Missing key(s) in state_dict: "0.w')
    assert len(other) == len(start) + 200 and "\n" not in other
