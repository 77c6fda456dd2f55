"""Weights & Biases, beside the training and never in its way.

A process of its own, the mirror, follows the run folder and repeats it: metrics.jsonl line by line, pictures of eval/,
the summary, and a copy of the folder's small files. wandb's service dies of the SIGTERM that SLURM sends to every
process, its calls then raise, and a slow or unreachable server blocks; none of that reaches the training, whose record
is metrics.jsonl. What was measured of a run after its end is sent by launch/evaluate.py, and what was not sent by the
run's next part, or by hand::

    python -m ldct.runs.wandb_mirror RUN...
"""

import argparse
import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ldct import config as configuration
from ldct.config import Config
from ldct.metrics import names
from ldct.runs import folder as runs
from ldct.runs.wandb_rows import evaluated, goals, is_plotted, picture, picture_files, row, spectra, summary, told
from shards.common.atomic import write_text
from shards.common.command import InputError, command
from shards.common.lock import locked

POLL_S = 1.0
"""Seconds between two looks at the run folder."""
END_S = {"finished": 30.0, "failed": 10.0, "stopped": 3.0}
"""Seconds the training waits for the mirror at its end. A stopped run must be gone before SLURM kills it."""
TELL_S = 60.0
"""Seconds that launch/evaluate.py waits for one run's results to be sent; by then they are printed."""
EVALUATED = ("json", "csv", "npz", "png")
FILES = ("config.yaml", "metrics.jsonl", "status.json", "provenance.json", *(f"eval/*.{e}" for e in EVALUATED))
"""Of a run folder, what W&B keeps a copy of under NAME/; see ldct/runs/wandb_reader.py."""
SHIELDED = {signal.SIGTERM, signal.SIGUSR2}
"""SLURM's signals to the whole step. The mirror must still tell what the training does about them."""


class Tracker:
    """The mirror as seen from the training: started, looked at now and then, waited for at the end."""

    def __init__(self, run: Path, config: Config) -> None:
        self.run, self.mode, self.warned = run, config.track.wandb, False
        self.process: subprocess.Popen[bytes] | None = None
        if self.mode == "disabled":
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SHIELDED)  # the mirror is born with them blocked
        try:
            (run / "wandb").mkdir(exist_ok=True)
            with open(run / "wandb" / "mirror.log", "ab") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "ldct.runs.wandb_mirror", "--follow", str(run)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C at a terminal is for the training
                )
        except OSError as error:
            self._warn(str(error))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

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
            elif self.mode == "offline" and state != "stopped":
                parts = offline_parts(self.run)
                print(f"W&B: send this run with: wandb sync {shlex.join(map(str, parts))}", file=sys.stderr)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            if state != "stopped":  # the run's next part sends the rest
                self._warn(f"it did not finish within {END_S[state]:.0f} s")

    def _warn(self, why: str) -> None:
        if not self.warned:
            self.warned = True
            log = self.run / "wandb" / "mirror.log"
            again = f"python -m ldct.runs.wandb_mirror {shlex.quote(str(self.run))}"
            print(f"warning: W&B: {why} (see {log}); metrics.jsonl is whole; send it with: {again}", file=sys.stderr)


def offline_parts(run: Path) -> list[Path]:
    """Offline parts of ``run`` that ``wandb sync`` has not sent, in order; it marks those that it has."""
    parts = sorted((run / "wandb").glob("offline-run-*"))
    return [part for part in parts if not any(part.glob("*.wandb.synced"))]


class Ledger:
    """wandb/sent.jsonl: what each row of the W&B history holds, and which parts of the run ended well.

    wandb's service buffers, so what was given to it has arrived for certain only if the part ended well. A part that
    did not is sent again: online from the row the server has come to, offline from its beginning.
    """

    def __init__(self, run: Path) -> None:
        self.run, self.path = run, run / "wandb" / "sent.jsonl"
        self.new = not self.path.is_file()
        """Whether W&B was never told of this run."""
        self.rows: list[str] = []
        self.ended: list[str] = []
        """Folders of the parts that ended well."""
        certain = 0
        for entry in runs.read_lines(self.path):
            self.rows += [entry["row"]] if "row" in entry else []
            if "ended" in entry:
                certain = len(self.rows)
                self.ended.append(entry["ended"])
        self.certain = self.rows[:certain]
        """Rows in those."""

    def forget_open_parts(self) -> None:
        """Remove the offline parts that did not end well: what reached their files cannot be known."""
        for part in offline_parts(self.run):
            if part.name not in self.ended:
                shutil.rmtree(part)

    def begin(self, rows: list[str]) -> None:
        """Start a part after ``rows``, which are known to have arrived."""
        self.rows = rows
        entries = [*({"row": row} for row in rows), *({"ended": part} for part in self.ended)]
        write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in entries))

    def note(self, row: str) -> None:
        """Add the next row."""
        self.rows.append(row)
        self._append({"row": row})

    def end(self, part: str) -> None:
        """``part`` ended well."""
        self._append({"ended": part})

    def _append(self, entry: dict[str, str]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(entry) + "\n")


class Mirror:
    """One wandb run that repeats a run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config, self.ledger = folder, runs.read_config(folder), Ledger(folder)
        self.online = self.config.track.wandb == "online"
        if not self.online:
            self.ledger.forget_open_parts()
        self.wandb = self._open()
        self.part = Path(self.wandb.settings.sync_dir).name
        if self.online and self.ledger.new and self.wandb.starting_step:
            raise InputError(
                f"W&B's project {self.config.track.project} has another run called {folder.name}, with "
                f"{self.wandb.starting_step} rows; delete it there, or choose another track.project"
            )
        # offline, wandb knows nothing of the earlier parts
        self.ledger.begin(self.ledger.rows[: self.wandb.starting_step] if self.online else self.ledger.certain)
        self.sent = set(self.ledger.rows)
        self.defined: set[str] = set()
        """Names whose axis, and whether they are plotted, W&B was told."""

    def _open(self) -> Any:
        import wandb  # 1.5 s, and only this process needs it

        track, sections = self.config.track, configuration.to_dict(self.config)
        run = wandb.init(
            project=track.project,
            entity=track.entity or None,
            id=self.folder.name,
            name=self.folder.name,
            group=self.folder.parent.name,
            job_type="train",
            tags=[self.config.model.name, f"attention-{self.config.model.attention}", *track.tags],
            config={key: value for key, value in sections.items() if key not in ("track", "run_dir")},
            dir=str(self.folder),
            mode="online" if self.online else "offline",
            resume="allow",  # the parts of a run are one run, online and in wandb sync
            settings=wandb.Settings(x_stats_pid=os.getppid(), console="off"),
        )
        run.define_metric("*", step_metric="step")
        for name, goal in goals(self.config).items():
            run.define_metric(name, step_metric="step", summary=f"{goal},last")
        return run

    def send(self) -> None:
        """Send the lines and pictures that are new, and the files where a validation is."""
        validated, step = False, 0
        for number, line in enumerate(runs.read_metrics(self.folder)):
            step, key = line["step"], f"line {number}"
            if key not in self.sent:
                self._log(key, row(line))
                validated |= any(map(names.is_validation, line))
        for path in picture_files(self.folder):
            key = f"{path.relative_to(self.folder / 'eval').with_suffix('')} {path.stat().st_mtime_ns}"
            if key not in self.sent and (values := picture(path, self.folder)):
                self._log(key, {"step": step} | values)
        for path in sorted((self.folder / "eval").glob(f"*{names.NOISE_POWER}")):
            self._spectra(path, step)
        if validated:
            self._files()

    def _spectra(self, path: Path, step: int) -> None:
        """Send noise power spectra as a row for each frequency, once for each content of the file ``path``."""
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        axis, lines = spectra(path, self.folder.resolve().name)
        self.wandb.define_metric(axis, step_metric="step", summary="none", hidden=True)
        for name in lines[0].keys() - {axis}:
            self.wandb.define_metric(name, step_metric=axis, summary="none")
        self.defined.update(lines[0])
        for number, values in enumerate(lines):
            key = f"{path.stem} {digest} {number}"
            if key not in self.sent:
                self._log(key, {"step": step} | values)

    def _evaluated(self) -> dict[str, Any]:
        """What was ever evaluated: another evaluation, of other protocols, replaces the files of the one before."""
        path = self.folder / "wandb" / "evaluated.json"
        values = told(json.loads(path.read_text()) if path.is_file() else {}, evaluated(self.folder))
        write_text(path, json.dumps(values))
        return values

    def _log(self, key: str, values: dict[str, Any]) -> None:
        """Send a row, and note that it was sent."""
        for name in values.keys() - self.defined:
            self.defined.add(name)
            if not is_plotted(name):
                self.wandb.define_metric(name, step_metric="step", hidden=True)
        self.wandb.log(values)
        self.ledger.note(key)
        self.sent.add(key)

    def _files(self) -> None:
        for pattern in FILES:
            for path in sorted(self.folder.glob(pattern)):
                self.wandb.save(str(path), base_path=str(self.folder.parent), policy="now")

    def close(self, status: runs.Status) -> None:
        """End the wandb run as the run ended: finished, failed, or stopped to go on later.

        The summary is that of the whole run: wandb sync lets a part's summary replace that of the parts before it.
        """
        shown = ("state", "train_s", "patches_per_s", "world_size", "device", "flags")
        of_status = {key: getattr(status, key) for key in shown}
        trained = summary(runs.read_metrics(self.folder), goals(self.config))
        self.wandb.summary.update(trained | of_status | self._evaluated())
        for path in picture_files(self.folder):
            self.wandb.summary.update(picture(path, self.folder))
        self._files()
        if status.state == "stopped":
            self.wandb.mark_preempting()
        self.wandb.finish(exit_code=0 if status.state == "finished" else 1)
        self.ledger.end(self.part)


def alone(folder: Path, wait: bool) -> contextlib.AbstractContextManager[None]:
    """Be the only mirror of ``folder``: an earlier one may still be ending.

    Raises
    ------
    InputError
        If there is another one, and ``wait`` is false.
    """
    busy = f"{folder}: another process sends this run to W&B now"
    return locked(folder / "wandb" / "mirror.lock", busy, wait_s=-1 if wait else 0)


def follow(folder: Path) -> None:
    """Mirror ``folder`` until its run ends or the training process is gone."""
    parent = os.getppid()
    with alone(folder, wait=True):
        mirror = Mirror(folder)
        while True:
            status, orphan = runs.read_status(folder), os.getppid() != parent
            mirror.send()
            if status.state != "running" or orphan:
                break
            time.sleep(POLL_S)
        if orphan:
            signal.alarm(int(END_S["finished"]))  # nobody is left to end a mirror that hangs
        mirror.close(status)


def send(folder: Path) -> None:
    """Bring W&B up to date with ``folder`` as it stands, and end."""
    if runs.read_config(folder).track.wandb == "disabled":
        raise InputError(f"{folder}: its config.yaml says track.wandb: disabled; set it to online or offline there")
    with alone(folder, wait=False):
        mirror = Mirror(folder)
        mirror.send()
        mirror.close(runs.read_status(folder))
    if not mirror.online:
        print(f"W&B: send {folder.name} with: wandb sync {shlex.join(map(str, offline_parts(folder)))}")


def tell(folders: list[Path]) -> None:
    """Send what was measured since W&B was last told of the runs in ``folders``, each in a process of its own.

    Runs that W&B does not know are left alone, and those that go on: their own mirror sends it at their end. The first
    process that fails is the last, with one warning: where one run cannot be sent, the others cannot.
    """
    late = [folder for folder in folders if behind(folder)]
    for number, folder in enumerate(late):
        if why := _send_apart(folder):
            again = f"python -m ldct.runs.wandb_mirror {shlex.join(map(str, late[number:]))}"
            print(f"warning: W&B: {why}; send what was measured with: {again}", file=sys.stderr)
            return
    offline = [folder for folder in late if runs.read_config(folder).track.wandb == "offline"]
    if offline:  # a line for each run of a sweep would be pages
        roots = offline if len(offline) == 1 else [parent / "*" for parent in dict.fromkeys(f.parent for f in offline)]
        parts = " ".join(f"{root}/wandb/offline-run-*" for root in roots)
        print(f"W&B: send what was measured with: wandb sync {parts}", file=sys.stderr)


def _send_apart(folder: Path) -> str:
    """``send`` in a process of its own; what went wrong, or nothing."""
    log, argv = folder / "wandb" / "mirror.log", [sys.executable, "-m", "ldct.runs.wandb_mirror", str(folder)]
    try:
        with open(log, "ab") as file:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=TELL_S)
    except OSError as error:
        return str(error)
    except subprocess.TimeoutExpired:
        return f"it did not finish within {TELL_S:.0f} s (see {log})"
    return f"its process ended with status {done.returncode} (see {log})" if done.returncode else ""


def behind(folder: Path) -> bool:
    """Whether W&B knows the ended run in ``folder`` but not all that was measured of it."""
    sent = folder / "wandb" / "sent.jsonl"
    if runs.read_status(folder).state not in ("finished", "failed") or not sent.is_file():
        return False
    if runs.read_config(folder).track.wandb == "disabled":
        return False
    return any(path.stat().st_mtime_ns > sent.stat().st_mtime_ns for path in (folder / "eval").glob("*.json"))


def main() -> None:
    """Mirror one run beside its training (--follow RUN), or bring W&B up to date with the runs in folders."""
    parser = argparse.ArgumentParser(
        prog="python -m ldct.runs.wandb_mirror", description="Send to W&B what it does not have yet of trained runs."
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, or folders of runs")
    parser.add_argument("--follow", action="store_true", help="one run, from its start to its end, beside its training")
    args = parser.parse_args()
    if args.follow:
        if len(args.runs) != 1:
            parser.error("--follow: expected one run")
        follow(args.runs[0])
    else:
        for run in runs.find_runs(args.runs):
            send(run)


if __name__ == "__main__":
    command(main)
