"""Where LDCT_REQUIRE_ALL is set, as .ci/run does, a test that is skipped has failed."""

import subprocess
import sys

import pytest
from conftest import MAY_SKIP, REQUIRE_ALL, ROOT

CASES = """
import pytest

@pytest.fixture
def tool():
    pytest.skip("no such tool here")

def test_tool(tool): ...

@pytest.mark.skipif(True, reason="no such user")
def test_user(): ...

def test_gpu():
    pytest.skip("torch can use the GPUs here; and so on")

@pytest.mark.xfail(reason="known")
def test_known():
    assert False
"""

REASONS = {"no such tool here", "no such user", "torch can use the GPUs here", "No module named 'no_such_package'"}


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


def test_what_may_be_skipped_is_a_reason_of_some_test():
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py") if path.name != "test_skips.py")
    assert [reason for reason in MAY_SKIP if reason not in tests] == []


def test_ci_sets_the_switch():
    assert f"export {REQUIRE_ALL}=1" in (ROOT / ".ci" / "run").read_text()
