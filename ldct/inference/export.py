"""A trained network as one file that needs no run folder and no code of ours::

torch.export.load("model.pt2").module(check_guards=False)(hu)  # float32 (B, 1, H, W)
onnxruntime.InferenceSession("model.onnx").run(None, {"hu": hu})  # the same, without torch
"""

import copy
import io
import json
import logging
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from ldct.device import full_precision
from ldct.inference.denoiser import Denoiser, finite_hu, through
from ldct.inference.pretrained import SUFFIX
from ldct.models.cbam import ChannelGate
from ldct.models.network import Network
from shards.common.atomic import atomic
from shards.common.command import InputError, first_line

OPSET = 20
"""Version of ONNX's operators: onnxruntime 1.17 and later."""

ABOUT = "about.json"
"""Of an exported file: which run it is, its precision, and the least side of a slice."""


class _Whole(nn.Module):
    """A network from HU to HU, for export."""

    def __init__(self, model: nn.Module, normalization: str) -> None:
        super().__init__()
        self.model, self.normalization = model, normalization

    def forward(self, hu: Tensor) -> Tensor:
        return through(self.model, hu, self.normalization)


class _Gate(nn.Module):
    """Channel attention over windows of one side, by torch's own pooling.

    torch.export follows it with the size left open in seconds; for the passes of ldct.models.cbam, which are
    faster to run, it solves equations for over ten minutes.
    """

    def __init__(self, gate: ChannelGate, window: int) -> None:
        super().__init__()
        self.mlp, self.sigmoid, self.window = gate.mlp, gate.sigmoid, window

    def forward(self, x: Tensor) -> Tensor:
        down, across = (self.window, 1), (1, self.window)
        squeeze, relu, excite = self.mlp
        mean = F.avg_pool2d(F.avg_pool2d(squeeze(x), down, stride=1), across, stride=1)  # as in ChannelGate
        most = F.max_pool2d(F.max_pool2d(x, down, stride=1), across, stride=1)
        before = (self.window - 1) // 2
        after = self.window - 1 - before
        pooled = excite(relu(mean) + relu(squeeze(most)))
        return x * self.sigmoid(F.pad(pooled, (before, after, before, after), "replicate"))


def _exportable(model: Network, patch: int) -> Network:
    """A copy of ``model`` in eval mode that pools as pool_locally makes it pool."""
    model = copy.deepcopy(model).eval()
    # torch.export.load warns of weights in channels_last
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for stage, gate in model.gates.items():
        for name, part in gate.named_children():
            if isinstance(part, ChannelGate):
                gate.add_module(name, _Gate(part, model.feature_size(int(stage), patch)))
    return model


def export(denoiser: "Denoiser | Exported", path: Path) -> None:
    """Write ``denoiser`` as one file, HU to HU, float32 (B, 1, H, W), of any number and size of slices.

    ``NAME.onnx`` is ONNX, in fp32, for onnxruntime; any other name is in torch.export's format.

    Raises
    ------
    InputError
        If the file cannot be written, ONNX's packages are not installed, or ``denoiser`` is an exported model already.
    """
    if isinstance(denoiser, Exported):
        raise InputError(f"--export needs a network or a run folder; {denoiser.name} is an exported model already")
    about = {
        "name": denoiser.name,
        "about": denoiser.about,
        "precision": denoiser.precision,
        "least": denoiser.patch + 1,
    }
    program = _program(denoiser)
    content = _onnx(program, about) if path.suffix == ".onnx" else _pt2(program, about)
    try:
        with atomic(path) as file:
            file.write(content)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another folder") from None


def _program(denoiser: Denoiser) -> torch.export.ExportedProgram:
    """The network from HU to HU, its batch and both sides left open."""
    # on the CPU: the graph checks the device it was made on, and Exported moves it from there
    whole = _Whole(_exportable(denoiser.model, denoiser.patch).cpu(), denoiser.config.data.normalization)
    odd = 2 * denoiser.patch + 1, 4 * denoiser.patch + 1  # no multiple of the U-Net's, so that its padding is seen
    example = torch.zeros(2, 1, *odd)
    open_sizes = {axis: torch.export.Dim.DYNAMIC for axis in (0, 2, 3)}
    with torch.no_grad():
        return torch.export.export(whole, (example,), dynamic_shapes=(open_sizes,))


def _pt2(program: torch.export.ExportedProgram, about: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={ABOUT: json.dumps(about)})
    return buffer.getvalue()


def _onnx(program: torch.export.ExportedProgram, about: dict[str, Any]) -> bytes:
    """``program`` as ONNX; ``about`` is its metadata. It computes in fp32, whatever the run was trained in."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # that torchvision is not installed, four times
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            onnx = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=OPSET)
    except ImportError as error:
        raise InputError(f"ONNX needs more packages ({error}): pip install -e .[onnx] -c constraints.txt") from None
    assert onnx is not None
    model = onnx.model_proto
    for key, value in (about | {"precision": "fp32"}).items():
        model.metadata_props.add(key=key, value=str(value))
    return model.SerializeToString()


class Exported:
    """What ``export`` wrote, as a function like Denoiser's.

    Raises
    ------
    InputError
        If the file is missing or none of ours.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        full_precision()
        extra = {ABOUT: ""}
        if not zipfile.is_zipfile(path):  # torch would print the whole story
            raise InputError(f"{path} is no model written by launch/denoise.py --export; give that, or a run folder")
        try:
            program = torch.export.load(str(path), extra_files=extra)
            about = json.loads(extra[ABOUT])
            if device.type != "cpu":
                program = move_to_device_pass(program, device)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise InputError(f"{path} is no model written by launch/denoise.py --export: {first_line(error)}") from None
        self.name, self.about, self.precision = about["name"], about["about"], about["precision"]
        self.least, self.device = about["least"], device
        # the guards say how the example's size was rounded up to the U-Net's multiple, as if every size had to be
        self.program = program.module(check_guards=False)
        self.program.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, low: np.ndarray) -> np.ndarray:
        """Denoise slices: int16 HU, shape (H, W) or (B, H, W), in and out.

        Raises
        ------
        InputError
            If a side is no longer than a training patch: of one window torch.export makes another case.
        """
        rows, columns = low.shape[-2:]
        if min(rows, columns) < self.least:
            raise InputError(
                f"this model was exported for slices of {self.least} x {self.least} pixels or more, found "
                f"{rows} x {columns}; use the run itself"
            )
        images = torch.from_numpy(low).to(self.device).float().reshape(-1, 1, 1, rows, columns)
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            output = torch.cat([self.program(image) for image in images])
        return finite_hu(output.reshape(low.shape), self.about)


def open_model(path: Path, device: torch.device) -> Denoiser | Exported:
    """The run in the folder ``path``, the network that ships or the exported model in the file ``path``.

    Raises
    ------
    InputError
        Also for a run whose best checkpoint is its start: it gives back its input, which must not pass for denoised.
    """
    if path.is_file() and path.suffix != SUFFIX:
        return Exported(path, device)
    denoiser = Denoiser(path, device)
    if denoiser.step == 0:
        raise InputError(
            f"{path}: its best checkpoint is of step 0, before it learned anything; train it, then denoise"
        )
    return denoiser
