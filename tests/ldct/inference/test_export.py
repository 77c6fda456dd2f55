"""One file that denoises without the run: torch.export's and ONNX, the same as the run to 1 HU."""

import re

import numpy as np
import pydicom
import pytest
import torch
from conftest import ROOT, run_command
from made import make_run
from phantom import images, write_slice

from ldct.inference.denoiser import Denoiser
from ldct.inference.export import Exported, export, open_model
from shards.common.command import InputError

CPU = torch.device("cpu")


def run_onnx(path, hu):
    """What onnxruntime makes of HU (B, H, W), as a scanner stores it."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="no onnxruntime here: pip install -e .[onnx]")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"hu": hu[:, None].astype(np.float32)})
    return np.clip(np.rint(output[:, 0]), -1024, 32767)


REDCNN, UNET = {"name": "redcnn"}, {"name": "unet", "depth": 3}


@pytest.mark.parametrize(
    ("network", "attention"),
    [(REDCNN, "none"), (REDCNN, "channel"), (REDCNN, "both"), (UNET, "none"), (UNET, "spatial"), (UNET, "both")],
)
def test_an_exported_model_takes_any_size_and_is_the_same_within_one_hu(tmp_path, tiny_shards, network, attention):
    run = make_run(tmp_path / "0-run", tiny_shards, scale=0.3, attention=attention, **network)
    model = Denoiser(run, CPU)
    export(model, tmp_path / "model.pt2")
    export(model, tmp_path / "model.onnx")
    loaded = open_model(tmp_path / "model.pt2", CPU)
    assert (loaded.name, loaded.about) == (model.name, model.about)
    everything = images("L001", "quarter", 3, size=192)
    for count, rows, columns in ((1, 192, 192), (3, 128, 96), (2, 101, 158), (1, 64, 56)):
        low = np.ascontiguousarray(everything[:count, -rows:, -columns:])
        expected = model(low).astype(int)
        assert np.abs(loaded(low) - expected).max() <= 1, (rows, columns)
        assert np.abs(run_onnx(tmp_path / "model.onnx", low) - expected).max() <= 1, (rows, columns)
        assert np.abs(expected - low).max() > 5  # the model does something
    with pytest.raises(InputError, match="exported for slices of 56 x 56 pixels or more, found 64 x 55; use the run"):
        loaded(low[0, :, :55])


def test_the_batch_of_a_pt2_is_open(tmp_path, tiny_shards):
    model = Denoiser(make_run(tmp_path / "0-run", tiny_shards, scale=0.3, attention="both"), CPU)
    export(model, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module(check_guards=False)
    low = torch.from_numpy(images("L001", "quarter", 3, size=96)).float()[:, None]
    with torch.no_grad():
        together, alone = program(low), torch.cat([program(image[None]) for image in low])
    torch.testing.assert_close(together, alone, atol=0.01, rtol=0)


def test_bf16_stays_bf16(tmp_path, tiny_shards):
    model = Denoiser(make_run(tmp_path / "0-run", tiny_shards, scale=0.3, attention="both"), CPU)
    low = images("L001", "quarter", 1, size=96)[0]
    fp32 = model(low)
    model.precision = "bf16"
    export(model, tmp_path / "model.pt2")
    bf16 = open_model(tmp_path / "model.pt2", CPU)(low).astype(int)
    assert np.abs(bf16 - model(low)).max() <= 1 and (bf16 != fp32).any()


def test_a_file_that_is_no_model_is_one_line(tmp_path):
    (tmp_path / "x.pt2").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match=r"x.pt2 is no model written by launch/denoise.py --export"):
        open_model(tmp_path / "x.pt2", CPU)


def test_without_onnx_one_line_says_what_to_install(tmp_path, tiny_shards):
    """In a process of its own: torch keeps what an export before has imported."""
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "onnxscript.py").write_text("raise ImportError('no such package')")
    run, file = make_run(tmp_path / "0-run", tiny_shards), tmp_path / "model.onnx"
    path = f"{tmp_path / 'first'}:{ROOT}"
    done = run_command("launch/denoise.py", "--run", run, "--export", file, check=False, PYTHONPATH=path)
    assert done.returncode == 2
    wanted = "error: ONNX needs more packages (no such package): pip install -e .[onnx] -c constraints.txt\n"
    assert done.stderr == wanted
    assert not file.exists()


def test_the_example_of_the_docs_denoises_with_onnxruntime_alone(tmp_path, tiny_shards, monkeypatch):
    pytest.importorskip("onnxruntime", reason="no onnxruntime here: pip install -e .[onnx]")
    model = Denoiser(make_run(tmp_path / "0-run", tiny_shards, scale=0.3), CPU)
    export(model, tmp_path / "model.onnx")
    hu = images("L001", "quarter", 2, size=96)
    for number, image in enumerate(hu, 1):
        write_slice(tmp_path / "in" / f"{number}.dcm", image, number, number)
    text = (ROOT / "docs" / "denoise.md").read_text()
    code = re.search(r"```python\n(.+?)```", text, re.DOTALL)[1]
    assert len(code.splitlines()) <= 20 and "torch" not in code
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/denoise.md", "exec"), {})
    for number, image in enumerate(hu, 1):
        written = pydicom.dcmread(tmp_path / "out" / f"{number}.dcm")
        assert np.abs(written.pixel_array + written.RescaleIntercept - model(image)).max() <= 1
        assert written.ImageType[0] == "DERIVED"


def test_an_exported_model_runs_on_another_kind_of_device(tiny_shards, tmp_path):
    """Its graph checks the device it was made on, and moving the weights leaves the checks; here to the device meta."""
    run = make_run(tmp_path / "0-run", tiny_shards)
    export(Denoiser(run, CPU), tmp_path / "model.pt2")
    program = Exported(tmp_path / "model.pt2", torch.device("meta")).program
    checks = [node for node in program.graph.nodes if "assert_tensor_metadata" in str(node.target)]
    assert {str(node.kwargs["device"]) for node in checks} == {"meta"}
    assert program(torch.zeros(1, 1, 128, 130, device="meta")).device.type == "meta"
