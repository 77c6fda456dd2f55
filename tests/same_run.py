"""Whether two runs are the same, byte for byte."""

from ldct.runs import checkpoint
from ldct.runs.folder import VARYING, read_config, read_metrics, read_status


def lines(folder):
    """metrics.jsonl without what is different in every run."""
    return [{k: v for k, v in line.items() if k not in VARYING} for line in read_metrics(folder)]


def assert_same(folder, undisturbed):
    """Weights, average, optimizer state and metrics are those of the undisturbed run: the files are, byte for byte."""
    assert read_status(folder).state == "finished"
    assert lines(folder) == lines(undisturbed)
    for name in (checkpoint.step_name(read_config(undisturbed).train.steps), checkpoint.BEST):
        mine, other = ((run / "checkpoints" / name).read_bytes() for run in (folder, undisturbed))
        assert mine == other, name
