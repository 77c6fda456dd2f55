"""What a training run writes down as it goes: folder, status, metrics, heartbeat. Only rank 0 writes."""

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from ldct import config as configuration
from ldct.config import Config
from ldct.device import device_name
from ldct.runs import attempts, checkpoint
from ldct.runs import folder as runs
from ldct.runs.wandb_mirror import Tracker
from ldct.training.ranks import Ranks
from shards import manifest
from shards.common.atomic import atomic, write_text
from shards.common.command import InputError, Progress


class Recorder:
    """The run folder in the hands of its training process.

    As a context it opens the folder at its start, and writes down an error that ends it.

    Raises
    ------
    InputError
        If the folder holds a run of another configuration or other shards, or the shards are not there.
    """

    def __init__(self, config: Config, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        self.folder = Path(config.run_dir)
        self.checkpoints = self.folder / "checkpoints"
        self.manifest_sha256 = manifest.digest(Path(config.data.shards))
        self.lines: list[dict[str, Any]] = []
        """Of metrics.jsonl, those that the restored checkpoint knows (rank 0)."""
        self.restored = self._newest()
        if self.restored:
            checkpoint.check_same_run(self.restored, config, self.manifest_sha256, self.folder)
        self.attempt: attempts.Attempt | None = None
        self.status = runs.read_status(self.folder)
        self.before_s = 0.0
        self.metrics = runs.Metrics(self.folder)
        self.began = time.monotonic()
        self.paced = (self.restored["step"] if self.restored else 0, self.began)
        self.tracker: Tracker | None = None
        self.progress: Progress | None = None

    def _newest(self) -> dict[str, Any] | None:
        """The checkpoint to go on from, the same on every rank: rank 0 chooses, since on a network disk the others may
        not see its newest file yet."""
        with self.ranks.patiently():
            newest = self._choose() if self.ranks.first else None
        step = self.ranks.gather(newest["step"] if newest else None)[0]
        if self.ranks.first or step is None:
            return newest
        path = self.checkpoints / checkpoint.step_name(step)
        try:
            return checkpoint.read(path)
        except checkpoint.Broken as error:
            raise InputError(
                f"rank {self.ranks.rank} cannot read {path}, which rank 0 can: {error}; run again"
            ) from None

    def _choose(self) -> dict[str, Any] | None:
        """The newest checkpoint whose lines of metrics are known; a fenced attempt may have left one without them."""
        newest = None
        for content in checkpoint.readable(self.checkpoints):
            newest = newest or content
            lines = runs.lines_before(self.folder, content["step"], content["lines"])
            if lines is not None:
                self.lines = lines
                return content
        if newest:
            self.lines = runs.read_metrics(self.folder)[: newest["lines"]]
            print(f"warning: {self.folder}: some of the metrics before step {newest['step']} are gone", file=sys.stderr)
        return newest

    @property
    def finished(self) -> bool:
        """Whether the run has nothing left to do."""
        through = self.status.step >= self.config.train.steps or self.status.stopped_early
        return self.status.state == "finished" and bool(through and self.restored)

    def __enter__(self) -> "Recorder":
        config, ranks = self.config, self.ranks
        with ranks.patiently():
            if ranks.first:
                self.attempt = attempts.Attempt(self.folder, least=self.status.attempt + 1)
        self._restore_again()
        status = self.status
        status.attempt = self.attempt.number if self.attempt else 0
        status.best = self.restored["best"] if self.restored else {}
        status.state, status.error = "running", ""
        status.step, status.steps = self.paced[0], config.train.steps
        if not self.attempt:
            return self
        self._begin(self.attempt)
        status.world_size, status.device, status.job = ranks.world_size, device_name(ranks.device), runs.slurm_job()
        status.host, status.pid = runs.here()
        self._write_status()
        self.attempt.remove_earlier()
        self.tracker = Tracker(self.folder, config)
        self.progress = Progress(self.folder.name, config.train.steps, "steps", start=status.step)
        return self

    def _restore_again(self) -> None:
        """An attempt that was still at work may have gone on until this one took its number."""
        self.status = runs.read_status(self.folder)
        names = checkpoint.steps(self.checkpoints)
        saved = bool(names) and names[0].name != checkpoint.step_name(self.paced[0])
        if self.ranks.gather(saved)[0]:
            self.restored = self._newest()
            self.paced = (self.restored["step"] if self.restored else 0, self.began)
        self.before_s = self.status.train_s if self.restored else 0.0
        if not self.restored:
            self.status.saving_s = self.status.validating_s = 0.0

    def _begin(self, attempt: attempts.Attempt) -> None:
        """Make this attempt's files, from those of the attempts before."""
        text, path = configuration.to_yaml(self.config), self.folder / "config.yaml"
        attempt.check()
        if not path.is_file() or path.read_text() != text:
            write_text(path, text)
        runs.write_provenance(self.folder, self.manifest_sha256, attempt.number)
        best = checkpoint.best_path(self.folder)
        if self.restored and self.restored["best"] and best.is_file():
            with attempt.writing(f"checkpoints/{checkpoint.BEST}") as own, open(best, "rb") as old, atomic(own) as new:
                shutil.copyfileobj(old, new)
        with attempt.writing(runs.METRICS) as own:
            self.metrics = runs.Metrics(own.parent)
            self.metrics.begin(self.lines)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if isinstance(error, attempts.Superseded):
            return
        if error is not None and self.ranks.first:
            self.status.error = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            with contextlib.suppress(OSError, attempts.Superseded):  # must not hide what ended the run
                self.close("failed")

    def take_restored(self) -> dict[str, Any] | None:
        """The checkpoint to go on from, if there is one; once, so that it does not stay in memory."""
        restored, self.restored = self.restored, None
        return restored

    def stepped(self, step: int) -> None:
        """Count a step."""
        self.status.step = step
        if self.progress:
            self.progress.update()

    def heartbeat_due(self) -> bool:
        """Whether this rank writes the heartbeat, and the last one is HEARTBEAT_S old."""
        return self.tracker is not None and self.status.due

    def heartbeat(self) -> None:
        """Write the heartbeat, and look after the tracking."""
        if self.tracker:
            self._write_status()
            self.tracker.look()

    def pace(self, waited_s: float) -> None:
        """Take the steps per second since the last line or validation; ``waited_s`` of it went by waiting for data."""
        (step, then), now, status = self.paced, time.monotonic(), self.status
        status.rate = (status.step - step) / max(now - then, 1e-9)
        status.data_wait = waited_s / max(now - then, 1e-9)
        status.patches_per_s = status.rate * self.config.train.global_batch
        status.eta_s = (status.steps - status.step) / status.rate if status.rate else None
        self.pause()

    def pause(self) -> None:
        """Leave the time since the last step out of them."""
        self.paced = (self.status.step, time.monotonic())

    @contextlib.contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Add the seconds that the block takes to a field of the status: saving_s or validating_s."""
        began = time.monotonic()
        try:
            yield
        finally:
            setattr(self.status, name, getattr(self.status, name) + time.monotonic() - began)

    def line(self, line: dict[str, Any], note: str = "") -> None:
        """Add a line to metrics.jsonl; ``note`` stands behind the progress."""
        if self.attempt and self.progress:
            status = self.status
            times = (round(self._train_s(), 3), round(status.patches_per_s, 1), round(status.data_wait, 4))
            varying = dict(zip(runs.VARYING, (status.attempt, *times), strict=True))
            with self.attempt.writing(runs.METRICS):
                self.metrics.append({"step": status.step, **line, **varying})
            self.progress.note = note or self.progress.note

    def save(self, name: str, content: dict[str, Any]) -> None:
        """Write a checkpoint (rank 0), with what tells whose it is."""
        if not self.attempt:
            return
        whose = {
            "step": self.status.step,
            "config": configuration.decisive(self.config),
            "manifest_sha256": self.manifest_sha256,
        }
        if name == checkpoint.BEST:
            with self.attempt.writing(f"checkpoints/{name}") as own:
                checkpoint.save(own.parent, name, whose | content)
        else:
            self.attempt.check()
            checkpoint.save(self.checkpoints, name, whose | content, self.config.train.keep_every_steps)

    def close(self, state: str) -> None:
        """Write the last status, then let the tracking finish."""
        self.status.state, self.status.eta_s = state, None
        if self.attempt:
            self._write_status()
        if self.progress and self.tracker:
            self.progress.close()
            self.tracker.close(state)

    def _train_s(self) -> float:
        return self.before_s + time.monotonic() - self.began

    def _write_status(self) -> None:
        assert self.attempt
        self.status.train_s = self._train_s()
        with self.attempt.writing(runs.STATUS) as own:
            runs.write_status(own.parent, self.status)
