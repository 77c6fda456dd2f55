"""The same training, whatever interrupts it: interrupted runs end like the undisturbed one, bit for bit."""

import os
import resource
import signal
import subprocess

import pytest
import torch
from conftest import tiny_flags
from disturbed import after_step, start
from same_run import assert_same, lines

from ldct import models
from ldct.config import parse
from ldct.data.patches import Patches
from ldct.data.sampler import Sampler
from ldct.runs import checkpoint
from ldct.runs.folder import read_status
from ldct.training.signals import CAUGHT, Latch
from ldct.training.step import NotFinite, Training
from ldct.training.trainer import Trainer, train
from ldct.training.validation import Validation
from shards.common.command import InputError

EPOCH = 11
"""Steps of 8 pairs in an epoch of the tiny shards, rounded down: interruptions before, at and after the border."""


def add_dropout(patch):
    """Make networks draw random numbers in every step."""
    plain = models.create

    def create(model):
        network = plain(model)
        network.relu = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Dropout(0.2))
        return network

    patch.setattr(models, "create", create)


@pytest.fixture(autouse=True)
def dropout(monkeypatch):
    add_dropout(monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(tiny_shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        add_dropout(patch)
        assert start(tiny_shards, folder) is None
    return folder


def raise_error():
    raise ZeroDivisionError("broken on purpose")


@pytest.mark.parametrize("step", [1, 3, 7, EPOCH, 12, 14, 19])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2], ids=["TERM", "USR2"])
def test_a_signal_loses_no_step(tiny_shards, tmp_path, undisturbed, monkeypatch, step, number):
    after_step(monkeypatch, step, lambda: os.kill(os.getpid(), number))
    assert start(tiny_shards, tmp_path) is number
    status = read_status(tmp_path)
    assert (status.state, status.step) == ("stopped", step)
    assert checkpoint.newest(tmp_path / "checkpoints")["step"] == step
    assert start(tiny_shards, tmp_path) is None
    assert read_status(tmp_path).attempt == 2
    assert_same(tmp_path, undisturbed)


@pytest.mark.parametrize("step", [2, 9, 16])
def test_an_error_costs_the_steps_since_the_last_checkpoint(tiny_shards, tmp_path, undisturbed, monkeypatch, step):
    after_step(monkeypatch, step, raise_error)
    with pytest.raises(ZeroDivisionError):
        start(tiny_shards, tmp_path, train__save_every_s=1e-9)
    status = read_status(tmp_path)
    assert (status.state, status.error) == ("failed", "ZeroDivisionError: broken on purpose")
    assert start(tiny_shards, tmp_path) is None
    assert_same(tmp_path, undisturbed)


def test_checkpoints_at_chosen_steps_are_made_and_kept(tiny_shards, tmp_path, undisturbed):
    assert start(tiny_shards, tmp_path, train__keep_every_steps=6) is None
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*.pt"))
    assert names == [checkpoint.step_name(step) for step in (6, 12, 18, 20)]
    status = read_status(tmp_path)
    assert 0 < status.saving_s < status.train_s and 0 < status.validating_s < status.train_s
    (tmp_path / "checkpoints" / names[2]).unlink()
    assert checkpoint.read(tmp_path / "checkpoints" / names[0])["step"] == 6


def test_a_checkpoint_that_is_kept_is_written_once(tiny_shards, tmp_path, monkeypatch):
    written, save = [], checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *content: written.append(content[1]) or save(*content))
    assert start(tiny_shards, tmp_path, train__keep_every_steps=10) is None
    assert [name for name in written if name != checkpoint.BEST] == ["step-00000010.pt", "step-00000020.pt"]


def test_an_error_before_any_checkpoint_starts_anew(tiny_shards, tmp_path, undisturbed, monkeypatch):
    after_step(monkeypatch, 8, raise_error)
    with pytest.raises(ZeroDivisionError):
        start(tiny_shards, tmp_path)
    assert checkpoint.steps(tmp_path / "checkpoints") == []
    assert start(tiny_shards, tmp_path) is None
    assert_same(tmp_path, undisturbed)


def test_many_interruptions(tiny_shards, tmp_path, undisturbed, monkeypatch):
    for step in (1, 2, 6, 8, 13):
        after_step(monkeypatch, step, lambda: os.kill(os.getpid(), signal.SIGUSR2))
        assert start(tiny_shards, tmp_path) is signal.SIGUSR2
    assert start(tiny_shards, tmp_path) is None
    assert read_status(tmp_path).attempt == 6
    assert_same(tmp_path, undisturbed)


@pytest.mark.parametrize(
    "changes",
    [
        {"optim__schedule": "plateau", "optim__plateau_patience": 1, "val__every": 2},
        {"train__precision": "bf16", "optim__ema": 0, "optim__clip_norm": 0.001},
        {"model__norm": "batch", "model__attention": "both", "train__accumulate": 2},
        {"model__name": "unet", "model__depth": 2, "optim__name": "adam", "loss__name": "l1", "data__store": "device"},
    ],
    ids=["plateau", "bf16-clipped-no-average", "batch-norm-attention-accumulated", "unet-adam-l1-on-device"],
)
def test_other_recipes_go_on_as_exactly(tiny_shards, tmp_path, monkeypatch, changes):
    assert start(tiny_shards, tmp_path / "undisturbed", **changes) is None
    for step in (3, 13):
        after_step(monkeypatch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert start(tiny_shards, tmp_path / "run", **changes) is signal.SIGTERM
    assert start(tiny_shards, tmp_path / "run", **changes) is None
    assert_same(tmp_path / "run", tmp_path / "undisturbed")


def test_a_second_signal_does_not_break_the_save(tiny_shards, tmp_path, undisturbed, monkeypatch):
    write = torch.save

    def interrupted(*args):
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGTERM):
            os.kill(os.getpid(), number)
        write(*args)

    def signal_and_more():
        os.kill(os.getpid(), signal.SIGUSR2)
        monkeypatch.setattr(torch, "save", interrupted)

    after_step(monkeypatch, 5, signal_and_more)
    assert start(tiny_shards, tmp_path) is signal.SIGUSR2
    assert checkpoint.newest(tmp_path / "checkpoints")["step"] == 5
    monkeypatch.setattr(torch, "save", write)
    assert start(tiny_shards, tmp_path) is None
    assert_same(tmp_path, undisturbed)


def test_a_signal_during_validation_stops_between_its_slices(tiny_shards, tmp_path, undisturbed, monkeypatch):
    measure = Validation._measure

    def signalled(self, model, number):
        if self.config.run_dir == str(tmp_path) and read_status(tmp_path).attempt == 1 and number == 0:
            seen.append(number)
            if len(seen) == 2:  # in the validation behind step 7; the first one is that before step 1
                os.kill(os.getpid(), signal.SIGTERM)
        return measure(self, model, number)

    seen = []
    monkeypatch.setattr(Validation, "_measure", signalled)
    assert start(tiny_shards, tmp_path) is signal.SIGTERM
    assert read_status(tmp_path).step == 7
    assert "val/abd400/psnr" not in lines(tmp_path)[-1]
    assert start(tiny_shards, tmp_path) is None
    assert_same(tmp_path, undisturbed)


def test_a_signal_before_the_first_step(tiny_shards, tmp_path, undisturbed):
    latch = Latch()
    os.kill(os.getpid(), signal.SIGUSR2)
    assert train(parse(tiny_flags(tiny_shards, tmp_path)), latch) is signal.SIGUSR2
    assert checkpoint.newest(tmp_path / "checkpoints")["step"] == 0
    assert start(tiny_shards, tmp_path) is None
    assert_same(tmp_path, undisturbed)


def test_a_signal_after_the_last_step_changes_nothing(tiny_shards, tmp_path, undisturbed, monkeypatch):
    save = Trainer._save

    def signalled(self):
        for number in CAUGHT:
            os.kill(os.getpid(), number)
        save(self)

    monkeypatch.setattr(Trainer, "_save", signalled)
    assert start(tiny_shards, tmp_path) is None
    assert_same(tmp_path, undisturbed)


def test_a_finished_run_is_left_alone(tiny_shards, undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()}
    assert start(tiny_shards, undisturbed) is None
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()} == before


def test_more_steps_go_on_from_a_finished_run(tiny_shards, tmp_path):
    assert start(tiny_shards, tmp_path, train__steps=6) is None
    assert start(tiny_shards, tmp_path, train__steps=9) is None
    assert read_status(tmp_path).step == 9 and [line["step"] for line in lines(tmp_path)] == [0, 3, 6, 6, 7, 9, 9]


def test_a_broken_newest_checkpoint_costs_only_what_came_after_the_one_before(
    tiny_shards, tmp_path, undisturbed, monkeypatch, capsys
):
    for step in (4, 10):
        after_step(monkeypatch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        start(tiny_shards, tmp_path)
    path = tmp_path / "checkpoints" / checkpoint.step_name(10)
    path.write_bytes(path.read_bytes()[:-100])
    assert start(tiny_shards, tmp_path) is None
    assert "is broken" in capsys.readouterr().err
    assert_same(tmp_path, undisturbed)


def test_another_configuration_in_the_same_folder_is_refused_and_touches_nothing(tiny_shards, undisturbed):
    before = {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"train\.seed was 0, now 1; change it back or use another --run_dir"):
        start(tiny_shards, undisturbed, train__seed=1)
    assert {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()} == before


def test_a_full_disk_stops_the_run_with_one_line_and_a_whole_checkpoint(
    tiny_shards, tmp_path, undisturbed, monkeypatch
):
    after_step(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    start(tiny_shards, tmp_path)
    size = (tmp_path / "checkpoints" / checkpoint.step_name(4)).stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    after_step(monkeypatch, 6, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, hard)))
    try:
        with pytest.raises(InputError, match=r"step-00000005\.pt is whole; make room and run again"):
            start(tiny_shards, tmp_path, train__save_every_s=0.001)
            pytest.fail("the run did not notice")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_status(tmp_path).error.startswith("InputError: cannot write")
    assert start(tiny_shards, tmp_path) is None
    assert_same(tmp_path, undisturbed)


def test_a_disk_without_room_for_anything_is_one_line(tiny_shards, tmp_path):
    """Not even the status can be written; the earlier checkpoint stays whole and the run goes on when there is room."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be made here: {mounted.stderr.decode().strip()}")
    try:
        filler = tmp_path / "filler"
        with pytest.MonkeyPatch.context() as patch:
            after_step(patch, 4, lambda: fill(filler))
            with pytest.raises(InputError, match=r"No space left on device.*make room and run again"):
                start(tiny_shards, tmp_path / "run", train__save_every_s=1e-9, train__log_every=1)
        assert checkpoint.newest(tmp_path / "run" / "checkpoints")["step"] == 3
        filler.unlink()
        assert start(tiny_shards, tmp_path / "run", train__log_every=1) is None
        assert [line["step"] for line in lines(tmp_path / "run") if "train/loss" in line] == list(range(1, 21))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def fill(path):
    """Leave no room on the disk of ``path``."""
    with pytest.raises(OSError), open(path, "wb", buffering=0) as file:
        while True:
            file.write(bytes(512))


def poison(monkeypatch, step, times=1):
    """Make the loss of ``times`` steps from ``step`` on NaN."""
    backward = Training._backward

    def poisoned(self, pairs, network):
        if step <= self.step < step + times:
            pairs = pairs * float("nan")
        return backward(self, pairs, network)

    monkeypatch.setattr(Training, "_backward", poisoned)


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoints(tiny_shards, tmp_path, monkeypatch):
    poison(monkeypatch, 10)
    with pytest.raises(NotFinite) as error:
        start(tiny_shards, tmp_path, train__save_every_s=0.001)
    message = str(error.value)
    run = parse(tiny_flags(tiny_shards, tmp_path))
    patches = Patches(tiny_shards, run.data)
    first = Sampler(patches.shard, 0, 2, 8)[10][0]
    assert message.startswith(f"loss not finite at step 10, rank 0, patches {patches.name(first)}, ")
    assert checkpoint.newest(tmp_path / "checkpoints")["step"] == 10  # ten steps done, all of them good
    assert all(weight.isfinite().all() for weight in checkpoint.newest(tmp_path / "checkpoints")["model"].values())
    assert read_status(tmp_path).state == "failed"


def test_tolerated_steps_are_left_out_and_one_more_stops(tiny_shards, tmp_path, monkeypatch, capsys):
    poison(monkeypatch, 10, times=2)
    assert start(tiny_shards, tmp_path / "a", train__skip_nonfinite=2) is None
    assert capsys.readouterr().err.count("gradient not finite, step left out") == 2
    assert checkpoint.newest(tmp_path / "a" / "checkpoints")["skipped"] == 2
    with pytest.raises(NotFinite, match="step 11"):
        start(tiny_shards, tmp_path / "b", train__skip_nonfinite=1)


def test_accumulated_parts_give_the_gradient_of_the_whole(tiny_shards, tmp_path):
    for name, parts in (("one", 1), ("four", 4)):
        start(tiny_shards, tmp_path / name, train__accumulate=parts, train__steps=6)
    one, four = ([line.get("train/loss") for line in lines(tmp_path / name)] for name in ("one", "four"))
    assert [x for x in one if x] == pytest.approx([x for x in four if x], rel=0.05)  # dropout draws other masks
