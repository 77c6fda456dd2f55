"""SLURM's answers, read."""

import time

import pytest

from slurm import squeue


@pytest.fixture
def zone(monkeypatch):
    """Move this process to another time zone."""

    def move(name):
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield move
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("name", "text", "seconds"),
    [
        ("UTC", "2025-01-01T00:00:00", 1735689600),
        ("Europe/Berlin", "2025-01-01T01:00:00", 1735689600),
        ("Europe/Berlin", "2025-07-01T14:00:00", 1751371200),  # summer time: two hours
        ("America/New_York", "2024-12-31T19:00:00", 1735689600),
        ("UTC", "N/A", 0),
    ],
)
def test_times_are_those_of_the_local_clock(zone, name, text, seconds):
    zone(name)
    assert squeue.unix_seconds(text) == seconds


@pytest.mark.parametrize("form", [None, "relative"])
def test_a_job_began_when_it_began(cluster, monkeypatch, form, zone):
    if form:
        monkeypatch.setenv("SLURM_TIME_FORMAT", form)
    else:
        zone("Asia/Kathmandu")
    before = time.time()
    job = squeue.ask("sbatch", "--parsable", "-o", "/dev/null", "--wrap", "sleep 30").strip()
    while squeue.live()[job].waiting:
        time.sleep(0.1)
    began = squeue.live()[job].began
    squeue.cancel([job])
    assert before - 1 <= began <= time.time()
