"""Commands that need torch, forked from a process that has it: they are there at once, not in seconds.

That they start from nothing as well is seen in tests/e2e/test_permission.py and in the jobs of tests/slurm.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [f"launch/{name}.py" for name in ("train", "evaluate", "compare", "denoise", "findings")]
FORKS = multiprocessing.get_context("forkserver")
"""Starts processes from a server that has no threads and computes nothing."""
FORKS.set_forkserver_preload(
    ["ldct.training.trainer", "torch._dynamo", "ldct.inference.export", "ldct.evaluation.evaluate", "ldct.reports.page"]
)


class Forked(FORKS.Process):
    """``python ARGV...`` in the project's root, ARGV[0] one of its scripts, with ``environment`` and nothing else in
    it; standard output and error are appended to the files ``out`` and ``error``, which may be one."""

    def __init__(self, argv, environment, out, error, daemon=False):
        super().__init__(daemon=daemon)  # daemons may not have children
        self.argv, self.environment, self.out, self.error = [*map(str, argv)], environment, out, error
        self.start()

    def run(self):
        for number, path in ((1, self.out), (2, self.error)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1) for number in (1, 2))  # noqa: SIM115 (until the end)
        os.chdir(ROOT)
        os.environ.clear()
        os.environ.update(self.environment)
        self.prepare()
        sys.argv = self.argv
        runpy.run_path(self.argv[0], run_name="__main__")

    def prepare(self):
        """What is changed in the process before the script runs: nothing."""


def run(argv, environment, timeout):
    """As subprocess.run, of one of SCRIPTS."""
    with tempfile.TemporaryDirectory() as folder:
        out, error = Path(folder, "out"), Path(folder, "error")
        process = Forked(argv, environment, out, error)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(argv, timeout, out.read_text(), error.read_text())
        return subprocess.CompletedProcess(argv, process.exitcode, out.read_text(), error.read_text())
