"""Training steps on fake CUDA tensors: python steps.py GUARD SHARDS; prints a JSON object, case -> what was seen.

GUARD is guard.cpp, compiled. It has to be loaded before torch, and what it does to torch lasts for the process's life.
"""

import ctypes
import json
import sys
import traceback

ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)

import torch  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from ldct.config import parse  # noqa: E402
from ldct.data.patches import DeviceStore  # noqa: E402
from ldct.models.whole_slice import denoise  # noqa: E402
from ldct.training import losses, optim, placement, step  # noqa: E402
from ldct.training.ranks import Ranks  # noqa: E402

CUDA = torch.device("cuda", 0)
UNCOUNTED = ("prim.", "profiler.", "aten.empty", "aten.new_empty", "aten.lift_fresh", "aten.detach")
"""Beside views: what starts no kernel."""


class Watch(TorchDispatchMode):
    """Counts operations that start kernels, and notes copies that the host waits for."""

    def __init__(self):
        super().__init__()
        self.launches, self.waits = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        returns = function._schema.returns
        view = any(value.alias_info and not value.alias_info.is_write for value in returns)
        if not view and not str(function).startswith(UNCOUNTED):
            self.launches += 1
        if function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[1] if function is torch.ops.aten.copy_.default else args[0]
            waits = not (kwargs.get("non_blocking") or args[2:] == (True,))
            if source.device != output.device and waits:
                where = [
                    f"{f.filename.rpartition('/')[2]}:{f.lineno}"
                    for f in traceback.extract_stack()
                    if "/ldct/" in f.filename
                ]
                self.waits.append(f"{source.device.type} to {output.device.type} at {where[-1] if where else '?'}")
        return output


def apply(self, function, recurse=True):
    """nn.Module._apply for fake tensors: torch's own would swap each with its copy, which a fake one does not allow."""
    for child in self.children():
        apply(child, function)
    with torch.no_grad():
        for name, weight in self._parameters.items():
            if weight is not None:
                self._parameters[name] = torch.nn.Parameter(function(weight), weight.requires_grad)
        for name, value in self._buffers.items():
            if value is not None:
                self._buffers[name] = function(value)
    return self


def training(*flags):
    return step.Training(parse([f"--data.shards={sys.argv[2]}", "--model.channels=16", *flags]), Ranks(60))


def batch(run, number):
    """A batch as the device store gives it."""
    store = object.__new__(DeviceStore)
    store.pairs = torch.empty(len(run.patches), 2, 55, 55, dtype=torch.int16, device=CUDA)
    return store.fetch(run.sampler[number])


def two_steps(*flags, watch=False, state=None):
    """Two steps; the second, when the optimizer has its state, is what is counted."""
    run = training("--train.global_batch=8", *flags)
    if state:
        run.restore(state)
    run.train_step(batch(run, 0), watch=watch)
    pairs = batch(run, 1)
    with Watch() as seen:
        result = run.train_step(pairs, watch=watch)
    places = {tensor.device.type for tensor in (result.loss, result.grad_norm, *run.model.state_dict().values())}
    return {"launches": seen.launches, "waits": seen.waits, "devices": sorted(places)}


def whole_slice(*flags, mode):
    run = training(*flags)
    with Watch() as seen, torch.autocast("cuda", torch.bfloat16):
        output = denoise(run.to_use, torch.empty(1, 1, 128, 128, device=CUDA), 55, mode)
    return {"waits": seen.waits, "devices": [output.device.type], "dtype": str(output.dtype)}


def faulty(owner, name, change):
    """A step with the function ``name`` of ``owner`` changed; the error it ends with."""
    plain = getattr(owner, name)
    setattr(owner, name, change(plain))
    try:
        two_steps()
        return {"error": "none"}
    except Exception as error:
        return {"error": type(error).__name__}
    finally:
        setattr(owner, name, plain)


def codes_on_the_cpu(augment):
    return lambda pairs, codes: augment(pairs, torch.zeros(len(pairs), dtype=torch.int64, device="cpu"))


def waiting(note):
    return lambda self, number, loss, norm: note(self, number, loss * loss.item(), norm)


def vgg16(file):
    """Weights of VGG16's shapes: convolutions by their number among its layers, inputs and filters."""
    shapes = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256)}
    weights = {f"features.{number}.weight": torch.zeros(out, into, 3, 3) for number, (into, out) in shapes.items()}
    return weights | {f"features.{number}.bias": torch.zeros(out) for number, (_, out) in shapes.items()}


both, unet = "--model.attention=both", "--model.name=unet"
cpu = training("--train.global_batch=8")
cpu.train_step(torch.zeros(8, 2, 55, 55, dtype=torch.int16))
state = cpu.state()

losses.vgg_weights = vgg16
placement.device_of = lambda local_rank: CUDA
torch.nn.Module._apply = apply
torch.cuda.amp.common.amp_definitely_not_available = lambda: False
torch.cuda.is_bf16_supported = lambda *args, **kwargs: True

with FakeTensorMode(allow_non_fake_inputs=True):
    seen = {
        "redcnn": two_steps(),
        "redcnn, both": two_steps(both),
        "unet": two_steps(unet),
        "unet, both": two_steps(unet, both),
        "redcnn, fp32": two_steps("--train.precision=fp32"),
        "unet, batch norm, accumulated": two_steps(unet, "--model.norm=batch", "--train.accumulate=2"),
        "redcnn, l1, adam, no average": two_steps("--loss.name=l1", "--optim.name=adam", "--optim.ema=0"),
        "redcnn, mse+vgg": two_steps("--loss.name=mse+vgg"),
        "redcnn, from a CPU": two_steps(state=state),
        "watched, redcnn, both": two_steps(both, watch=True),
        "slice, local": whole_slice(both, mode="local"),
        "slice, tiles": whole_slice(unet, both, mode="tiles"),
        "fault: codes on the CPU": faulty(step, "augment", codes_on_the_cpu),
        "fault: the host waits": faulty(optim.FiniteGuard, "note", waiting),
    }
print(json.dumps(seen))
