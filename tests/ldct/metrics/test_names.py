"""Names of metrics: what they are, and that no other module spells one."""

import ast
import re

import pytest
from conftest import ROOT

from ldct.metrics import names

FILES = [path for folder in ("ldct", "launch", "slurm", "shards") for path in sorted((ROOT / folder).rglob("*.py"))]
SPELLED = re.compile(
    r"^(train/(loss|lr|grad_norm)|val/|attention/|pictures/|spectra/|eval/$)|/(psnr|ssim|rmse)$|low_dose/"
)


def test_the_names_that_runs_of_earlier_versions_have():
    psnr = names.metric("abd400", "psnr")
    assert (psnr, names.split_metric(psnr)) == ("abd400/psnr", ("abd400", "psnr"))
    assert names.validation(psnr) == "val/abd400/psnr"
    assert names.low_dose_validation(psnr) == "val/low_dose/abd400/psnr"
    assert names.evaluation("test", psnr) == "eval/test/abd400/psnr"
    assert names.baseline_evaluation("test", "low dose", psnr) == "eval/test/low_dose/abd400/psnr"
    assert names.baseline_evaluation("test", "non-local means", psnr) == "eval/test/non_local_means/abd400/psnr"
    assert names.attention(2, "channel_sd") == "attention/2/channel_sd"
    assert names.picture("features") == "pictures/features"
    assert names.spectrum("test", "non-local means") == "spectra/test/non_local_means"


@pytest.mark.parametrize("name", ["attention/12/channel_over_0.9", "val/attention/12/channel_over_0.9"])
def test_a_name_of_attention_is_taken_apart(name):
    assert names.split_attention(name) == (12, "channel_over_0.9")
    assert names.split_attention("val/abd400/psnr") is None


def test_no_other_module_spells_a_name():
    spelled = {f"{path.relative_to(ROOT)}:{line}: {text}" for path in FILES for line, text in literals(path)}
    homes = ("ldct/metrics/names.py", "ldct/metrics/registry.py")
    assert {where for where in spelled if not where.startswith(homes)} == set()
    assert any(where.startswith("ldct/metrics/names.py") for where in spelled)  # the pattern finds them


def literals(path):
    """Names of metrics among a module's strings and parts of f-strings, but for docstrings."""
    tree = ast.parse(path.read_text())
    comments = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and id(node) not in comments else None
        if isinstance(text, str) and SPELLED.search(text):
            yield node.lineno, text
