"""A network is one file: what the configuration, the registry and the benchmarks know of it, they know from there."""

import subprocess
import sys

import pytest
from conftest import ROOT

from ldct.config import from_dict, networks
from shards.common.command import InputError

NETWORK = '''
"""One convolution, for a test."""

from torch import nn

from ldct.models.network import Network, Stage, register

PUBLISHED = {"label": "Single", "channels": 3, "depth": 1, "kernel": 3, "parameters": 58, "source": "nowhere"}


@register
class Single(Network):
    """A convolution, and one to the output."""

    def __init__(self, model):
        super().__init__()
        self.stages, self.multiple = [Stage(model.channels, 0, 1)], 1
        self.encoder = nn.ModuleList([nn.Conv2d(1, model.channels, model.kernel, padding="same")])
        self.output = nn.Conv2d(model.channels, 1, model.kernel, padding="same")
        self.gates = nn.ModuleDict()

    def receptive_field(self):
        return 5

    def forward(self, x):
        return x + self.output(self.encoder[0](x))
'''

USE = """
from ldct.config import from_dict
from ldct import models
config = from_dict({"model": {"name": "single"}}).model
seen = models.describe(config)
print(models.names(), config.channels, type(models.create(config)).__name__, seen.parameters, seen.stages)
"""


def test_adding_a_network_is_one_file(tmp_path):
    """In a copy of the code."""
    subprocess.run(["cp", "-r", ROOT / "ldct", ROOT / "shards", tmp_path], check=True)
    (tmp_path / "ldct" / "models" / "single.py").write_text(NETWORK)
    done = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, env={"PYTHONPATH": "."}, capture_output=True)
    assert done.stdout.decode().strip() == "['redcnn', 'single', 'unet'] 3 Single 58 1", done.stderr


def test_a_configuration_knows_the_networks_without_torch():
    code = "import sys; from ldct.config import from_dict; from_dict({'model': {'name': 'unet'}}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "ldct.config.networks" in done.stdout.split() and "torch" not in done.stdout.split()


def test_another_name_is_one_line_with_those_there_are():
    with pytest.raises(InputError, match=f"model.name: expected one of {', '.join(networks())}, found 'vgg'"):
        from_dict({"model": {"name": "vgg"}})
