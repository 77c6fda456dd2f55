"""Whether what runs here gives the right values: on either device, interrupted, over ranks, exported."""

import contextlib
import gc
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ldct import config as configuration
from ldct.benchmarks import common
from ldct.benchmarks.accept.isolation import PRELOADED, Figure, LeftOut, Setting, at_most, holds
from ldct.config import Config
from ldct.data.patches import open_store
from ldct.data.slices import Slices
from ldct.inference.denoiser import Denoiser, through
from ldct.inference.export import Exported, export
from ldct.metrics import registry
from ldct.metrics.names import TRAIN_LOSS, validation
from ldct.models.whole_slice import denoise
from ldct.runs import checkpoint
from ldct.runs import folder as runs
from ldct.training import placement
from ldct.training.ranks import Ranks
from ldct.training.signals import STOPPED, Latch
from ldct.training.step import Training
from ldct.training.trainer import set_numerics, train
from shards.common.command import InputError, first_line

CPU, BOTH = torch.device("cpu"), "model.attention=both"

STEPS = 20
"""Of what is compared step by step."""

LOSS_LIMIT = {"fp32": 0.01, "bf16": 0.05}
"""Largest relative difference of a step's loss between two devices, over STEPS steps. Rounding grows from step to step,
since Adam divides by gradients that are nearly zero at first."""

HU_LIMIT = {"fp32": 0.05, "bf16": 0.5}
"""Largest RMSE in HU between a slice denoised on two devices, and between bf16 and fp32."""


def configure(setting: Setting, network: str, *settings: str) -> Config:
    """The default recipe for ``network``, narrow, with ``settings`` (section.field=value)."""
    small = {"redcnn": (4, 3), "unet": (4, 2)} if setting.small else {"redcnn": (32, 5), "unet": (16, 4)}
    channels, depth = small[network]
    fixed = [f"data.shards={setting.shards}", f"model.name={network}", f"model.channels={channels}"]
    fixed += [f"model.depth={depth}", f"train.global_batch={8 if setting.small else 16}", "optim.warmup=2"]
    fixed += [f"train.steps={8 if setting.small else 12}", "train.log_every=4", "val.every=8", "val.slices=1"]
    fixed += ["track.wandb=disabled"]
    return configuration.parse([f"--{one}" for one in [*fixed, *settings]])


def start(config: Config, device: torch.device | None = None) -> Training:
    """A training before its first step, where it would compute by itself or on ``device``."""
    set_numerics(config)
    ranks = Ranks(config.train.timeout_s)
    ranks.device = device or ranks.device
    return Training(config, ranks)


def losses(training: Training, steps: int, watched: int = -1) -> list[float]:
    """Losses of the next ``steps`` steps, one of them with attention statistics."""
    store = open_store(training.patches, training.config.data.store, training.ranks.device)
    numbers = range(training.step, training.step + steps)
    results = (training.train_step(store.fetch(training.sampler[n]), watch=n == watched) for n in numbers)
    return [result.loss.item() for result in results]


def apart(a: Sequence[float], b: Sequence[float]) -> float:
    """Largest relative difference; NaN if any value is."""
    return float(np.max(np.abs(np.array(a) - np.array(b)) / np.maximum(np.abs(b), 1e-12)))


def denoised(training: Training, low: np.ndarray) -> np.ndarray:
    """HU of slices (B, H, W) through a training's network, in its precision."""
    config, device = training.config, training.ranks.device
    images = torch.from_numpy(low).to(device).float()[:, None]
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
        network = partial(denoise, training.model, patch=training.patches.patch)
        return through(network, images, config.data.normalization)[:, 0].float().cpu().numpy()


def no_waits(setting: Setting) -> Iterator[Figure]:
    """Steps under CUDA's own check for calls in which the host waits for the device."""
    setting.needs_gpu()
    kinds: dict[str, tuple[str, ...]] = {
        "RED-CNN": ("redcnn",),
        "RED-CNN, attention": ("redcnn", BOTH),
        "U-Net": ("unet",),
        "U-Net, attention, batch norm": ("unet", BOTH, "model.norm=batch"),
        "RED-CNN, in two parts": ("redcnn", "train.accumulate=2"),
    }
    for name, settings in kinds.items():
        for where in ("device", "mmap"):
            training = start(configure(setting, *settings, f"data.store={where}"))
            store = open_store(training.patches, where, training.ranks.device)
            for number in range(3):  # kernels are chosen, Sobel's are copied, the optimizer's state is made
                training.train_step(store.fetch(training.sampler[number]), watch=True)
            batches = [store.fetch(training.sampler[number]) for number in range(3, 7)]
            yield holds(f"{name}, {where} store: no wait in a step", not (said := waits(training, batches)), said)


def cpu_beside_gpu(setting: Setting) -> Iterator[Figure]:
    """The same steps on both devices, and a slice through the network they gave."""
    setting.needs_gpu()
    low = Slices(setting.shards, "val", 1)[0][1][:1]
    for network, precision in (("redcnn", "fp32"), ("unet", "fp32"), ("redcnn", "bf16"), ("unet", "bf16")):
        config = configure(setting, network, BOTH, f"train.precision={precision}")
        gpu, cpu = start(config), start(config, CPU)
        name = f"{network}, attention, {precision}"
        difference = apart(losses(gpu, STEPS), losses(cpu, STEPS))
        yield at_most(f"{name}: loss over {STEPS} steps, relative", difference, LOSS_LIMIT[precision])
        cpu.model.load_state_dict(gpu.model.state_dict())
        error = rmse(denoised(gpu, low), denoised(cpu, low))
        yield at_most(f"{name}: a slice, GPU from CPU", error, HU_LIMIT[precision], "HU RMSE")


def recorded_step(setting: Setting) -> Iterator[Figure]:
    """Steps recorded as a CUDA graph beside plain ones; one of them is watched, which is made plainly."""
    setting.needs_gpu()
    exact = "train.deterministic=true"
    kinds: dict[str, tuple[float, tuple[str, ...]]] = {
        "RED-CNN": (1e-3, ("redcnn", exact)),
        "U-Net": (1e-3, ("unet", exact)),
        "RED-CNN, batch norm, in two parts": (1e-3, ("redcnn", exact, "model.norm=batch", "train.accumulate=2")),
        "RED-CNN, attention": (LOSS_LIMIT["bf16"], ("redcnn", BOTH)),  # which cannot be recorded if exact
    }
    for name, (limit, settings) in kinds.items():
        plain, recorded = (
            start(configure(setting, *settings, f"train.cuda_graph={graph}")) for graph in ("false", "true")
        )
        curves = [losses(training, STEPS, watched=10) for training in (plain, recorded)]
        made = recorded.recorded is not None and recorded.recorded.graph is not None
        yield holds(f"{name}: is recorded", made, "given up; the log says why")
        yield at_most(f"{name}: loss over {STEPS} steps, relative", apart(*curves), limit)
        weights = [
            torch.cat([value.float().flatten() for value in t.model.state_dict().values()]) for t in (plain, recorded)
        ]
        distance = float((weights[0] - weights[1]).norm() / weights[1].norm())
        yield at_most(f"{name}: weights after them, relative", distance, limit)
        if made:
            batch = open_store(recorded.patches, "device", recorded.ranks.device).fetch(recorded.sampler[0])
            yield holds(f"{name}: no wait in a step", not (said := waits(recorded, [batch])), said)


def waits(training: Training, batches: Sequence[torch.Tensor]) -> str:
    """Where a step waits for the GPU: CUDA's error of the first that does, empty if none does. The last is watched."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number, batch in enumerate(batches, 1):
            training.train_step(batch, watch=number == len(batches) > 1)
    except RuntimeError as error:
        return first_line(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


def rmse(a: np.ndarray, b: np.ndarray) -> float:
    """Root of the mean squared difference."""
    return float(np.sqrt(np.mean((a.astype(float) - b) ** 2)))


def exact_resume(setting: Setting) -> Iterator[Figure]:
    """A run stopped by a signal and continued by another process ends as the undisturbed one, byte for byte.

    Each in a process of its own, and this one keeps off the GPU: in EXCLUSIVE_PROCESS mode it lets in one at a time.
    """
    recipes: dict[str, tuple[str, ...]] = {"RED-CNN, attention, bf16": ("redcnn", BOTH)}
    if not setting.small:
        recipes["U-Net, batch norm, in two parts"] = ("unet", "model.norm=batch", "train.accumulate=2")
    for number, (name, settings) in enumerate(recipes.items()):
        straight, parted = (setting.scratch / f"{part}-{number}" for part in ("straight", "parted"))
        whole, part = (
            configure(setting, *settings, "train.deterministic=true", f"run_dir={run}") for run in (straight, parted)
        )
        (status,) = at_once(setting, [(train_alone, whole)])
        yield holds(f"{name}: trains", status == 0, f"status {status}")
        (status,) = at_once(setting, [(train_until, part, 5)])
        yield holds(f"{name}: a signal stops it with a checkpoint", status == STOPPED, f"status {status}")
        (status,) = at_once(setting, [(train_alone, part)])
        yield holds(f"{name}: another process goes on to the end", status == 0, f"status {status}")
        yield holds(f"{name}: the same bytes", not (wrong := unlike(parted, straight)), ", ".join(wrong))


def train_alone(config: Config) -> None:
    """Train to the end, in a process of its own."""
    sys.exit(STOPPED if train(config, Latch()) else 0)


def train_until(config: Config, step: int) -> None:
    """Train until a signal comes behind optimizer step ``step``, in a process of its own."""
    with signal_after(step):
        train_alone(config)


def at_once(setting: Setting, works: Sequence[tuple[Any, ...]]) -> list[int]:
    """Exit statuses of ``works``, each a function and its arguments, each in a process of its own."""
    context: Any = multiprocessing.get_context(setting.method)
    context.set_forkserver_preload(PRELOADED)
    processes = [context.Process(target=work, args=arguments) for work, *arguments in works]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


@contextlib.contextmanager
def signal_after(step: int) -> Iterator[None]:
    """Within the block, this process gets a SIGTERM after optimizer step ``step``."""
    plain = Training.train_step

    def stepped(self: Training, *args: Any, **kwargs: Any) -> Any:
        result = plain(self, *args, **kwargs)
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    Training.train_step = stepped  # type: ignore[method-assign]
    try:
        yield
    finally:
        Training.train_step = plain  # type: ignore[method-assign]


def unlike(run: Path, other: Path) -> list[str]:
    """What of two finished runs is not the same: names of checkpoints, or the metrics."""
    last = checkpoint.steps(other / "checkpoints")[0].name
    files = [(folder / "checkpoints" / last, checkpoint.best_path(folder)) for folder in (run, other)]
    wrong = [a.name for a, b in zip(*files, strict=True) if not a.is_file() or a.read_bytes() != b.read_bytes()]
    metrics = [
        [{key: value for key, value in line.items() if key not in runs.VARYING} for line in runs.read_metrics(folder)]
        for folder in (run, other)
    ]
    return wrong + ["metrics"] * (metrics[0] != metrics[1])


def world_of_one(setting: Setting) -> Iterator[Figure]:
    """DDP over the backend that gradients go over, as one rank: nccl on a GPU, gloo on a CPU."""
    backend = "nccl" if setting.gpu else "gloo"
    config = configure(setting, "redcnn", "train.precision=fp32", "train.deterministic=true")
    steps = 6
    alone = losses(start(config), steps)
    dist.init_process_group(
        backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=config.train.timeout_s)
    )
    training = start(config)
    training.parallel = training.ranks.wrapped(training.model, training.patches.patch)
    yield at_most(f"DDP over {backend}: loss over {steps} steps, relative", apart(losses(training, steps), alone), 1e-4)
    if setting.gpu:
        yield Figure("nccl", ".".join(map(str, torch.cuda.nccl.version())))
        store = open_store(training.patches, "device", training.ranks.device)
        said = waits(training, [store.fetch(training.sampler[0])])
        yield holds("no wait in a step with DDP", not said, said)
        dist.distributed_c10d._abort_process_group()
        yield holds("nccl can be aborted, as after the loss of a rank", True)


def two_ranks(setting: Setting) -> Iterator[Figure]:
    """Two ranks of the training command's own loop over gloo, on one device, beside one rank."""
    if common.compute_mode() == "Exclusive_Process":
        raise LeftOut("the GPU is in EXCLUSIVE_PROCESS mode, which lets no second process use it")
    fixed = ("train.precision=fp32", "train.deterministic=true")
    one = setting.scratch / "one"
    train(configure(setting, "redcnn", *fixed, f"run_dir={one}"), Latch())
    for name, settings in {"DDP": [], **({"recorded": ["train.cuda_graph=true"]} if setting.gpu else {})}.items():
        two = setting.scratch / name
        config = configure(setting, "redcnn", *fixed, *settings, f"run_dir={two}")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        statuses = at_once(setting, [(rank_over_gloo, config, rank, port) for rank in range(2)])
        yield holds(f"{name}: both ranks end well", statuses == [0, 0], f"statuses {statuses}")
        for metric in (TRAIN_LOSS, validation(registry.ranking(config.val.protocol))):
            curves = [[line[metric] for line in runs.read_metrics(run) if metric in line] for run in (two, one)]
            yield at_most(f"{name}: {metric}, two ranks from one, relative", apart(*curves), LOSS_LIMIT["fp32"])
    if setting.gpu:
        yield refused(configure(setting, "redcnn", f"run_dir={setting.scratch / 'refused'}"), setting.scratch)


def rank_over_gloo(config: Config, rank: int, port: int) -> None:
    """A rank of two whose gradients go over gloo also on a GPU, which nccl lets no two ranks share; in its process."""
    os.environ |= {"RANK": f"{rank}", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    plain = dist.init_process_group
    dist.init_process_group = lambda backend, **others: plain("gloo", **others)
    placement.check_gpus = lambda names: None
    train(config, Latch())


def refused(config: Config, scratch: Path) -> Figure:
    """Two ranks of the real command on one GPU, the first of those that this process sees."""
    file = scratch / "refused.yaml"
    file.write_text(configuration.to_yaml(config))
    command = f"{sys.executable} -m torch.distributed.run --standalone --nproc_per_node=2 launch/train.py".split()
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    one = {**os.environ, "CUDA_VISIBLE_DEVICES": first}
    done = subprocess.run([*command, f"--config={file}"], capture_output=True, text=True, cwd=common.ROOT, env=one)
    print(done.stderr)
    said = re.search(r"error: ranks 0, 1 have one GPU", done.stderr)
    return holds("two nccl ranks on one GPU are refused in one line", said is not None, f"status {done.returncode}")


def exported(setting: Setting) -> Iterator[Figure]:
    """A network as one file, made and opened on either device, beside the run itself."""
    run = setting.scratch / "run"
    settings = [] if setting.small else [BOTH]  # with gates torch.export takes its time
    settings += ["model.init_output=same", "train.precision=fp32", "train.steps=2", "val.every=1", f"run_dir={run}"]
    train(configure(setting, "redcnn", *settings), Latch())
    low = Slices(setting.shards, "val", 1)[0][1][0]
    devices = {"CPU": CPU} | ({"GPU": torch.device("cuda")} if setting.gpu else {})
    expected = Denoiser(run, CPU)(low).astype(int)
    yield holds("the network changes the slice", bool((expected != low).any()))
    for name, device in devices.items():
        denoiser = Denoiser(run, device)
        if device is not CPU:
            yield farthest("the run itself on the GPU", denoiser(low), expected)
        export(denoiser, setting.scratch / f"{name}.pt2")
        for other, opened_on in devices.items():
            output = Exported(setting.scratch / f"{name}.pt2", opened_on)(low)
            yield farthest(f"exported from the {name}, used on the {other}", output, expected)


def farthest(name: str, output: np.ndarray, expected: np.ndarray) -> Figure:
    """Whole HU that differ by more than rounding may."""
    return at_most(name, float(np.abs(output.astype(int) - expected).max()), 1, "HU at most")


def out_of_memory(setting: Setting) -> Iterator[Figure]:
    """A step that does not fit ends in advice, and the advice in a step that fits."""
    setting.needs_gpu()
    total = torch.cuda.get_device_properties(0).total_memory
    limit = 2**30  # one slice of a validation fits, a step of 1024 patches does not
    torch.cuda.set_per_process_memory_fraction(limit / total)
    yield Figure("memory left to the step", limit / 2**20, "MB")
    parts, tried = 1, [1]
    for _ in range(8):
        settings = ["model.channels=96", "model.depth=5", "train.global_batch=1024", f"train.accumulate={parts}"]
        settings += [f"run_dir={setting.scratch / str(parts)}", "train.steps=2", "data.store=mmap", "optim.ema=0"]
        said = memory_error(configure(setting, "redcnn", *settings, "val.every=1000"))
        gc.collect()
        torch.cuda.empty_cache()
        if not said:
            break
        advice = re.search(r"--train\.accumulate=(\d+)", said)
        if not advice:
            raise InputError(f"no advice in: {said}")
        parts = int(advice[1])
        tried.append(parts)
    yield holds("a step that does not fit says what to do", len(tried) > 1, "it fits at once")
    yield holds("the advice leads to a step that fits", not said, said)
    yield Figure("parts tried", ", ".join(map(str, tried)))


def memory_error(config: Config) -> str:
    """The line with which training ends for want of memory; empty if it does not."""
    try:
        train(config, Latch())
    except InputError as error:
        return str(error)
    return ""
