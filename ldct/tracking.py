"""Weights & Biases, beside the training and never in its way.

A process of its own follows the run folder and mirrors it: metrics.jsonl line by line, pictures of eval/, the final
state. wandb's service dies of the SIGTERM that SLURM sends to every process, its calls then raise, and a slow or
unreachable server blocks; none of that reaches the training, whose record is metrics.jsonl. What was not sent is sent
by the run's next part, or by hand: ``python -m ldct.tracking RUN``.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ldct import config as configuration
from ldct import run as runs
from ldct.config import Config

POLL_S = 1.0
END_S = {"finished": 60.0, "failed": 10.0, "stopped": 3.0}
"""Seconds the training waits for the mirror at its end. A stopped run must be gone before SLURM kills it."""


class Tracker:
    """The mirror as seen from the training: started, looked at now and then, waited for at the end."""

    def __init__(self, run: Path, config: Config) -> None:
        self.run, self.warned = run, False
        self.process: subprocess.Popen[bytes] | None = None
        if config.track.wandb == "off":
            return
        command = [sys.executable, "-m", "ldct.tracking", str(run)]
        try:
            (run / "wandb").mkdir(exist_ok=True)
            with open(run / "wandb" / "mirror.log", "ab") as log:
                self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        except OSError as error:
            self._warn(str(error))

    def look(self) -> None:
        """Say so, once, if the mirror has ended before the run."""
        if self.process is not None and self.process.poll() is not None:
            self._warn(f"its process ended with status {self.process.returncode}")

    def close(self, state: str) -> None:
        """Wait for the mirror to send the rest, for as long as ``state`` allows."""
        if self.process is None or self.warned:
            return
        try:
            if self.process.wait(END_S[state]):
                self._warn(f"its process ended with status {self.process.returncode}")
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            if state != "stopped":  # the run's next part sends the rest
                self._warn(f"it did not finish within {END_S[state]:.0f} s")

    def _warn(self, why: str) -> None:
        if not self.warned:
            self.warned = True
            log = self.run / "wandb" / "mirror.log"
            again = f"python -m ldct.tracking {self.run}"
            print(f"warning: W&B: {why} (see {log}); metrics.jsonl is whole; send it with: {again}", file=sys.stderr)


class Mirror:
    """One wandb run that repeats a run folder, and remembers in wandb/sent.json how far it came."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, runs.read_config(folder)
        self.mark = folder / "wandb" / "sent.json"
        self.sent: dict[str, Any] = {"step": -1, "keys": [], "pictures": {}}
        if self.mark.is_file():
            self.sent = json.loads(self.mark.read_text())
        self.wandb = self._open()

    def _open(self) -> Any:
        import wandb  # 1.5 s, and only this process needs it

        track, flat = self.config.track, configuration.to_dict(self.config)
        run = wandb.init(
            project=track.project,
            entity=track.entity or None,
            id=self.folder.name,
            name=self.folder.name,
            group=self.folder.parent.name,
            job_type="train",
            tags=[self.config.model.name, f"attention-{self.config.model.attention}", *track.tags],
            config={key: value for key, value in flat.items() if key != "track"},
            dir=str(self.folder),
            mode="online" if track.wandb == "online" else "offline",
            resume="allow",  # without it the second part of a run would start again at step 0
            settings=wandb.Settings(x_stats_pid=os.getppid(), console="off"),
        )
        run.define_metric("*", step_metric="step")
        for key, goal in (("psnr", "max"), ("ssim", "max"), ("rmse", "min")):
            name = f"val/{self.config.val.protocol}/{key}"
            run.define_metric(name, step_metric="step", summary=f"{goal},last")
        return run

    def send(self) -> None:
        """Send the lines and pictures that are new."""
        for line in runs.read_metrics(self.folder):
            if line["step"] >= self.sent["step"] and self._new(line):
                self.wandb.log(line)
        self._pictures()
        self.mark.write_text(json.dumps(self.sent))

    def _new(self, line: dict[str, Any]) -> bool:
        """Whether the line was not sent yet; several lines may share a step, each with other keys."""
        if line["step"] > self.sent["step"]:
            self.sent["step"], self.sent["keys"] = line["step"], []
        keys = sorted(line)
        if keys in self.sent["keys"]:
            return False
        self.sent["keys"].append(keys)
        return True

    def _pictures(self) -> None:
        import wandb

        for path in sorted((self.folder / "eval").glob("**/*.png")):
            name, changed = str(path.relative_to(self.folder / "eval").with_suffix("")), path.stat().st_mtime
            if self.sent["pictures"].get(name) != changed:
                self.wandb.log({"step": max(0, self.sent["step"]), f"pictures/{name}": wandb.Image(str(path))})
                self.sent["pictures"][name] = changed

    def close(self, status: runs.Status) -> None:
        """End the wandb run: with the run's summary if it finished, as failed if it failed."""
        self.wandb.summary.update({"state": status.state, "train_s": status.train_s, "flags": status.flags})
        self.wandb.finish(exit_code=1 if status.state == "failed" else 0)


def follow(folder: Path) -> None:
    """Mirror ``folder`` until its run ends or the training process is gone."""
    parent = os.getppid()
    mirror = Mirror(folder)
    while True:
        status, alone = runs.read_status(folder), os.getppid() != parent
        mirror.send()
        if status.state != "running" or alone:
            break
        time.sleep(POLL_S)
    mirror.close(status)


def main() -> None:
    """Mirror the run folder named on the command line."""
    # a signal sent to the whole job must not cut the mirror off from what the training will still say
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    follow(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
