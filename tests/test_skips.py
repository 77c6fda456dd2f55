"""Where LDCT_REQUIRE_ALL is set, as .ci/run does, a test that is skipped has failed."""

import subprocess
import sys

import pytest
from conftest import REQUIRE_ALL, ROOT

CASES = """
import pytest

@pytest.fixture
def tool():
    pytest.skip("no such tool here")

def test_tool(tool): ...

@pytest.mark.skipif(True, reason="no such user")
def test_user(): ...

def test_gpu():
    pytest.skip("no CUDA device")

@pytest.mark.xfail(reason="known")
def test_known():
    assert False
"""

REASONS = {"no such tool here", "no such user", "no CUDA device", "No module named 'no_such_package'"}


@pytest.mark.parametrize(
    ("switch", "says"), [({}, "4 skipped, 1 xfailed"), ({REQUIRE_ALL: "1"}, "1 skipped, 1 xfailed, 3 errors")]
)
def test_a_skip_is_a_failure_that_names_its_reason(switch, says, tmp_path):
    (tmp_path / "test_cases.py").write_text(CASES)
    (tmp_path / "test_module.py").write_text("import pytest\npytest.importorskip('no_such_package')")
    argv = [sys.executable, "-m", "pytest", "-rs", "--continue-on-collection-errors", "-p", "no:cacheprovider"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **switch}
    done = subprocess.run([*argv, "-p", "conftest"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert says in done.stdout
    assert {reason for reason in REASONS if reason in done.stdout} == REASONS


def test_ci_sets_the_switch():
    assert f"export {REQUIRE_ALL}=1" in (ROOT / ".ci" / "run").read_text()
