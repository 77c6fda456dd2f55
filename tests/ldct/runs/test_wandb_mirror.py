"""Weights & Biases with its real client, against a server on loopback: what arrives, and what breaks."""

import contextlib
import signal
import subprocess
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from conftest import tiny_flags
from wandb_server import Server, finish, python

from ldct import config as configuration
from ldct.evaluation import results
from ldct.runs import folder as runs
from ldct.runs import wandb_mirror, wandb_rows
from shards.common.command import InputError

SMALL = {"model__channels": 2, "train__global_batch": 4, "val__slices": 1}


def trainer(wait_s):
    """launch/train.py, waiting for the mirror at its end ``wait_s`` instead of END_S: this machine may be busy."""
    code = f"""
        import runpy, sys
        from ldct.runs import wandb_mirror, wandb_rows
        wandb_mirror.END_S = dict.fromkeys(wandb_mirror.END_S, {wait_s})
        sys.argv[0] = "launch/train.py"
        runpy.run_path(sys.argv[0], run_name="__main__")
    """
    return ["-c", textwrap.dedent(code)]


def until(condition, process):
    """Wait until ``condition``, which must come while ``process`` lives."""
    end = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "waited for 200 s"
        time.sleep(0.01)


def rows_sent(folder):
    with contextlib.suppress(FileNotFoundError):
        return (folder / "wandb" / "sent.jsonl").read_text().count('"row"')
    return 0


def hold(process, folder, attempt):
    """Stop the training in its middle, once it wrote a new line and the mirror has sent all."""
    until(lambda: runs.read_status(folder).attempt == attempt, process)
    kept = len(runs.read_metrics(folder))
    until(lambda: len(runs.read_metrics(folder)) > kept, process)
    process.send_signal(signal.SIGSTOP)
    until(lambda: rows_sent(folder) == len(runs.read_metrics(folder)), process)
    assert runs.read_status(folder).state == "running"


def below(process):
    """The mirror and wandb's service, children of the training."""
    mirror = next(p for p in psutil.Process(process.pid).children() if "ldct.runs.wandb_mirror" in p.cmdline())
    service = next(p for p in mirror.children() if "wandb-core" in p.name())
    return mirror, service


def without_times(folder):
    return [{k: v for k, v in line.items() if k not in runs.VARYING} for line in runs.read_metrics(folder)]


def numbers(line):
    """What W&B keeps of a line."""
    return {key: value for key, value in line.items() if isinstance(value, int | float)}


def assert_each_line_once(run, folder):
    """The history of ``run`` holds the lines of metrics.jsonl, each once and in order, and behind them the pictures."""
    rows = [{key: value for key, value in row.items() if not key.startswith("_")} for row in run.history]
    history = [row for row in rows if not any(key.startswith(("pictures/", "spectra/")) for key in row)]
    pictures = [key for row in rows for key in row if key.startswith("pictures/")]
    assert pictures == [f"pictures/{path.stem}" for path in wandb_rows.picture_files(folder)]
    assert [row.pop("step") for row in history] == [line["step"] for line in runs.read_metrics(folder)]
    for row, line in zip(history, runs.read_metrics(folder), strict=True):
        expected = {k: v for k, v in numbers(line).items() if k != "step" and k not in runs.VARYING}
        assert {k: v for k, v in row.items() if k not in runs.VARYING} == expected
    assert [row["_step"] for row in run.history] == list(range(len(rows)))


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory):
    """Folder of a run whose wandb/ is a full disk of 64 kB; None where this user may not mount one."""
    folder = tmp_path_factory.mktemp("disk") / "full"
    disk = folder / "wandb"
    disk.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        yield None
        return
    with contextlib.suppress(OSError):
        (disk / "filler").write_bytes(b"x" * 65536)
    yield folder
    subprocess.run(["umount", disk], check=True)


@pytest.fixture(scope="module")
def lab(tmp_path_factory, tiny_shards, home, server, full_disk):
    """Trainings with every fault, and trainings in parts, made side by side since most of it is waiting.

    Returns name -> (run folder, [(exit status, output, errors) of each part]).
    """
    sweep, trainings, slow = tmp_path_factory.mktemp("lab") / "lab", {}, Server(delay=5.0)

    def run(name, url="http://127.0.0.1:9", wait_s=60.0, disturb=(), extra=None, **changes):
        folder = full_disk if name == "full" else sweep / name
        flags = tiny_flags(tiny_shards, folder, **SMALL, **changes)
        trainings[name] = (folder, [])
        for attempt, what in enumerate((*disturb, None), start=1):
            process = python(url, home, *trainer(wait_s), *flags, **(extra or {}))
            try:
                if what:
                    hold(process, folder, attempt)
                    what(process)
                    process.send_signal(signal.SIGCONT)
                trainings[name][1].append(finish(process))
            finally:
                process.kill()
            if runs.read_status(folder).state == "finished":
                break

    def kill(which):
        return lambda process: below(process)[which].send_signal(signal.SIGKILL)

    def everyone(number):
        return lambda process: [each.send_signal(number) for each in (process, *below(process))]

    own = {"track__project": "parts", "train__log_every": 1}
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(run, "offline-parts", track__wandb="offline", **own,
                        disturb=(everyone(signal.SIGUSR2), everyone(signal.SIGTERM))),
            pool.submit(run, "online-parts", server.url, track__wandb="online", **own,
                        disturb=(everyone(signal.SIGTERM),)),
            pool.submit(run, "slow", slow.url, wait_s=2.0, track__wandb="online"),
            pool.submit(run, "unreachable", track__wandb="online", extra={"WANDB_INIT_TIMEOUT": "2"}),
            pool.submit(run, "mirror-killed", track__wandb="offline", disturb=(kill(0),)),
            pool.submit(run, "service-killed", track__wandb="offline", disturb=(kill(1),)),
            pool.submit(run, "disabled"),
            *([pool.submit(run, "full", track__wandb="offline")] if full_disk else []),
        ]  # fmt: skip
        for job in jobs:
            job.result()
    slow.delay = 0.0
    yield trainings, slow
    slow.close()


# ---- what breaks


def assert_unharmed(outcome, plain):
    """The run went on to its end, its record is whole, and one line told of the tracking."""
    folder, [(status, out, errors)] = outcome
    assert status == 0, errors
    assert out == f"finished: {folder}\n"
    assert runs.read_status(folder).state == "finished"
    assert without_times(folder) == without_times(plain)
    told = [line for line in errors.splitlines() if "W&B" in line or "warning" in line or "Traceback" in line]
    assert len(told) == 1, errors
    assert told[0].startswith("warning: W&B: ")
    assert told[0].endswith(f"metrics.jsonl is whole; send it with: python -m ldct.runs.wandb_mirror {folder}")


@pytest.mark.parametrize("fault", ["mirror-killed", "service-killed", "unreachable", "slow"])
def test_tracking_that_breaks_does_not_touch_the_training(lab, fault):
    trainings, _ = lab
    plain, [(status, _, errors)] = trainings["disabled"]
    assert status == 0, errors
    assert "W&B" not in errors and not (plain / "wandb").exists()
    assert len(runs.read_metrics(plain)) == 11  # steps 0 7 14 20 validated, 3 6 9 12 15 18 20 logged
    assert_unharmed(trainings[fault], plain)


def test_what_was_not_sent_is_sent_by_hand(lab, home):
    trainings, slow = lab
    names = ("mirror-killed", "service-killed", "slow")
    status, out, errors = finish(
        python(slow.url, home, "-m", "ldct.runs.wandb_mirror", *(trainings[name][0] for name in names))
    )
    assert status == 0, errors
    offline = [line.partition(": wandb sync ")[2] for line in out.splitlines() if "wandb sync" in line]
    parts = [part for name in names[:2] for part in (trainings[name][0] / "wandb").glob("offline-run-*")]
    assert offline == [str(part) for part in parts]  # one part each: the one that broke was sent again in full
    status, _, errors = finish(python(slow.url, home, "-m", "wandb", "sync", *parts))
    assert status == 0, errors
    assert sorted(slow.runs) == sorted(names)
    for name in names:
        assert_each_line_once(slow.runs[name], trainings[name][0])
        assert slow.runs[name].exit == 0


def test_a_run_without_tracking_is_not_sent(tmp_path):
    config = configuration.from_dict({"track": {"wandb": "disabled"}})
    (tmp_path / "config.yaml").write_text(configuration.to_yaml(config))
    with pytest.raises(InputError, match=r"says track\.wandb: disabled; set it to online or offline there"):
        wandb_mirror.send(tmp_path)


def test_a_full_disk_below_wandb_does_not_touch_the_training(lab, full_disk):
    if full_disk is None:
        pytest.skip("needs root and the right to mount a file system, to fill a small one")
    trainings, _ = lab
    assert_unharmed(trainings["full"], trainings["disabled"][0])


# ---- parts of one run


def test_offline_parts_sync_as_one_run(lab, server, home):
    folder, ended = lab[0]["offline-parts"]
    assert [status for status, _, _ in ended] == [75, 75, 0], ended
    hints = [[line for line in errors.splitlines() if "wandb sync" in line] for _, _, errors in ended]
    parts = sorted((folder / "wandb").glob("offline-run-*"))
    assert hints == [[], [], [f"W&B: send this run with: wandb sync {' '.join(map(str, parts))}"]]
    assert len(parts) == 2  # the part whose service died of SIGTERM was sent again by the last one
    assert folder.name not in server.runs

    status, _, errors = finish(python(server.url, home, "-m", "wandb", "sync", *parts))
    assert status == 0, errors
    run = server.runs[folder.name]
    assert_each_line_once(run, folder)
    assert_summary_is_of_the_whole_run(run, folder)
    assert (run.exit, run.preempting, run.head["groupName"]) == (0, True, "lab")


def test_online_parts_go_into_one_run(lab, server):
    folder, ended = lab[0]["online-parts"]
    assert [status for status, _, _ in ended] == [75, 0], ended
    assert not any("wandb sync" in errors for _, _, errors in ended)
    run = server.runs[folder.name]
    assert_each_line_once(run, folder)
    assert (run.exit, run.summary["state"]) == (0, "finished")
    assert run.starts >= 2


# ---- what is measured afterwards


@pytest.fixture(scope="module")
def measured(lab, server, home, tiny_shards):
    """Function that evaluates some trainings of the lab: (exit status, output, errors)."""

    def run(*names, url=server.url, protocols=("abd400", "hu2000"), **extra):
        folders = [lab[0][name][0] for name in names]
        argv = ["launch/evaluate.py", *folders, "--shards", tiny_shards, "--protocol", *protocols]
        return finish(python(url, home, *argv, **extra))

    return run


def means(folder):
    """Of the run itself, what its summary in W&B must hold."""
    own = results.load(folder, "test").get(folder.name)
    return {f"eval/test/{key}": value.mean for key, value in own.means.items() if np.isfinite(value.mean)}


def test_an_evaluation_that_cannot_be_sent_is_printed_all_the_same(lab, measured):
    folder = lab[0]["online-parts"][0]
    status, out, errors = measured("online-parts", url="http://127.0.0.1:9", WANDB_INIT_TIMEOUT="2")
    assert status == 0 and f"{means(folder)['eval/test/abd400/psnr']:.2f}" in out
    warnings = [line for line in errors.splitlines() if "W&B" in line or "Traceback" in line]
    assert len(warnings) == 1, errors
    assert warnings[0].startswith("warning: W&B: its process ended with status ")
    assert warnings[0].endswith(f"send what was measured with: python -m ldct.runs.wandb_mirror {folder}")


def assert_summary_is_of_the_whole_run(run, folder):
    """Best and last value over all parts; nothing that a line of metrics.jsonl told is missing."""
    rows = [numbers(line) for line in runs.read_metrics(folder)]
    last = {key: value for row in rows for key, value in row.items()}
    loss = [row["train/loss"] for row in rows if "train/loss" in row]
    psnr = [row["val/abd400/psnr"] for row in rows if "val/abd400/psnr" in row]
    assert last.keys() <= run.summary.keys()
    assert run.summary["train/loss"] == pytest.approx({"min": min(loss), "last": loss[-1]})
    assert run.summary["val/abd400/psnr"] == pytest.approx({"max": max(psnr), "last": psnr[-1]})
    single = [key for key in last if key not in runs.VARYING and not isinstance(run.summary[key], dict)]
    assert {key: run.summary[key] for key in single} == pytest.approx({key: last[key] for key in single})
    assert run.summary.keys() >= {f"pictures/{path.stem}" for path in wandb_rows.picture_files(folder)}


def own(summary):
    """Without what W&B's client adds."""
    return {key: value for key, value in summary.items() if not key.startswith("_")}


def assert_later_parts_add(earlier, later):
    """All that ``earlier`` held is in ``later``; a picture may be another file there."""
    assert earlier.keys() <= later.keys()
    same = [key for key in earlier if not key.startswith("pictures/")]
    assert {key: earlier[key] for key in same} == {key: later[key] for key in same}


def test_an_evaluation_reaches_wandb_by_itself_and_once(lab, measured, server, home):
    online, offline, disabled, unknown = (
        lab[0][name][0] for name in ("online-parts", "offline-parts", "disabled", "unreachable")
    )
    names = (online.name, offline.name, disabled.name, unknown.name)
    trained = {name: own(server.runs[name].summary) for name in names[:2]}
    status, _, errors = measured(*names)
    assert status == 0, errors
    assert_each_line_once(server.runs[online.name], online)
    part = wandb_mirror.offline_parts(offline)
    assert len(part) == 1  # the earlier ones were synchronised
    assert [line for line in errors.splitlines() if "W&B" in line] == [
        f"W&B: send what was measured with: wandb sync {offline}/wandb/offline-run-*"
    ]
    assert not (disabled / "wandb").exists() and unknown.name not in server.runs
    before = server.runs[online.name].starts
    assert "W&B" not in measured(*names)[2] and server.runs[online.name].starts == before

    status, _, errors = finish(python(server.url, home, "-m", "wandb", "sync", part[0]))
    assert status == 0, errors
    for folder in (online, offline):
        summary, expected = server.runs[folder.name].summary, means(folder)
        assert {"eval/test/abd400/psnr", "eval/test/hu2000/ssim", "eval/test/hu2000/rmse"} <= expected.keys()
        assert {key: summary[key] for key in expected} == pytest.approx(expected)
        assert summary["state"] == "finished" and server.runs[folder.name].exit == 0
        assert f"{folder.name}/eval/test-slices.csv" in server.runs[folder.name].files
        assert_later_parts_add(trained[folder.name], own(summary))
        assert_summary_is_of_the_whole_run(server.runs[folder.name], folder)

    evaluated = {name: own(server.runs[name].summary) for name in names[:2]}
    status, _, errors = measured(online.name, offline.name, protocols=("abd400", "full4096"))
    assert status == 0, errors
    (part,) = wandb_mirror.offline_parts(offline)
    status, _, errors = finish(python(server.url, home, "-m", "wandb", "sync", part))
    assert status == 0, errors
    for folder in (online, offline):
        assert_later_parts_add(evaluated[folder.name], own(server.runs[folder.name].summary))
        assert "eval/test/full4096/psnr" in server.runs[folder.name].summary


def test_a_torn_line_in_the_ledger_is_forgotten(tmp_path):
    path = tmp_path / "wandb" / "sent.jsonl"
    path.parent.mkdir()
    path.write_text('{"row": "a"}\n{"ended": "first"}\n{"row": "b"}\n{"row": "c')
    ledger = wandb_mirror.Ledger(tmp_path)
    assert (ledger.new, ledger.rows, ledger.certain, ledger.ended) == (False, ["a", "b"], ["a"], ["first"])
    ledger.begin(ledger.certain)
    assert wandb_mirror.Ledger(tmp_path).rows == ["a"]
