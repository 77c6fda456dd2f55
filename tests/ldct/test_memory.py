"""Memory is kept in a process of its own: what is set there lasts for its life."""

import subprocess
import sys

CHURN = """
import resource, sys
import torch
from ldct.memory import keep_freed

if sys.argv[1] == "keep":
    keep_freed()
for turn in range(60):
    if turn == 50:  # glibc before 2.38 needs some turns until a freed piece fits
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 << 20, dtype=torch.uint8)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 10)
"""


def faults(mode):
    """Pages mapped anew for each of many tensors of 64 MB, one after the other."""
    done = subprocess.run([sys.executable, "-c", CHURN, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_freed_memory_is_used_again():
    assert faults("keep") < 16
    assert faults("give back") >= 32  # 16,384 pages of 4 kB; 32 where the system has huge pages of 2 MB
