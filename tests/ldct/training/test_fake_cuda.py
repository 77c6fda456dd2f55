"""What a step does on a GPU, seen without one: on fake CUDA tensors, with a device, a shape and a type, but no values.

Shows tensors left on another device, waits of the host, and how many operations a step starts; not values, not the
kernels' own errors, not memory.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

FAKE = ROOT / "tests" / "fakecuda"

LAUNCHES = {"redcnn": 133, "redcnn, both": 388, "unet": 257, "unet, both": 512}
"""Operations of a step that start kernels, as ATen counts them. More of them is a slower step at small batches: change
these figures only with what makes them change."""


@pytest.fixture(scope="module")
def seen(tiny_shards, tmp_path_factory):
    """What tests/fakecuda/steps.py saw, by case; in a process of its own, since the guard changes torch for good."""
    if torch.version.cuda:
        pytest.skip("this build of torch has the CUDA that the guard stands for; see launch/bench.py accept")
    if shutil.which("g++") is None:
        pytest.skip("no g++ here to compile tests/fakecuda/guard.cpp with")
    folder = Path(torch.__file__).parent
    guard = tmp_path_factory.mktemp("fakecuda") / "guard.so"
    libraries = [f"-L{folder / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{folder / 'lib'}"]
    compiler = ["g++", "-shared", "-fPIC", "-std=c++20", f"-I{folder / 'include'}", FAKE / "guard.cpp", "-o", guard]
    subprocess.run([*compiler, *libraries], check=True)
    done = subprocess.run(
        [sys.executable, FAKE / "steps.py", guard, tiny_shards],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_everything_is_on_the_gpu(seen):
    cases = {name: case["devices"] for name, case in seen.items() if "devices" in case}
    assert len(cases) == 12 and cases == {name: ["cuda"] for name in cases}


def test_a_step_never_waits_for_the_device(seen):
    """Nor does one that collects attention statistics, once it has their kernels."""
    waits = {name: case["waits"] for name, case in seen.items() if "launches" in case}
    assert len(waits) == 10 and waits == {name: [] for name in waits}


def test_a_step_starts_as_many_operations_as_it_did(seen):
    assert {name: seen[name]["launches"] for name in LAUNCHES} == LAUNCHES


def test_faults_are_noticed(seen):
    assert seen["fault: codes on the CPU"] == {"error": "FakeTensorDeviceMismatchError"}
    assert seen["fault: the host waits"] == {"error": "DataDependentOutputException"}
