"""Weights & Biases with its real client, against a server on loopback: what arrives, and what breaks."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from conftest import ROOT, tiny_flags
from PIL import Image
from wandb_server import Server, environment

from ldct import config as configuration
from ldct import evaluation, tracking
from ldct import run as runs
from ldct.evaluation import Evaluation, Result
from ldct.stats import Measured
from shards.atomic import write_text
from shards.command import InputError

SMALL = {"model__channels": 2, "train__global_batch": 4, "val__slices": 1}


def trainer(wait_s):
    """launch/train.py, waiting for the mirror at its end ``wait_s`` instead of END_S: this machine may be busy."""
    code = f"""
        import runpy, sys
        from ldct import tracking
        tracking.END_S = dict.fromkeys(tracking.END_S, {wait_s})
        sys.argv[0] = "launch/train.py"
        runpy.run_path(sys.argv[0], run_name="__main__")
    """
    return ["-c", textwrap.dedent(code)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server():
    with Server() as made:
        yield made


def python(server_url, home, *argv, **extra):
    """Start this Python on ``argv`` from the project's root, as a user of ``server_url`` and nothing else."""
    env = environment(server_url, home) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **extra}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *map(str, argv)], cwd=ROOT, env=env, text=True, **pipes)


def finish(process):
    """Exit status, output and errors of a process."""
    out, errors = process.communicate(timeout=200)
    return process.returncode, out, errors


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
    mirror = next(p for p in psutil.Process(process.pid).children() if "ldct.tracking" in p.cmdline())
    service = next(p for p in mirror.children() if "wandb-core" in p.name())
    return mirror, service


def without_times(folder):
    return [{k: v for k, v in line.items() if k not in runs.TIMES} for line in runs.read_metrics(folder)]


def numbers(line):
    """What W&B keeps of a line."""
    return {key: value for key, value in line.items() if isinstance(value, int | float)}


def assert_each_line_once(run, folder):
    """The history of ``run`` holds the lines of metrics.jsonl, each once and in order, and behind them the pictures."""
    rows = [{key: value for key, value in row.items() if not key.startswith("_")} for row in run.history]
    history = [row for row in rows if not any(key.startswith("pictures/") for key in row)]
    pictures = [key for row in rows for key in row if key.startswith("pictures/")]
    assert pictures == [f"pictures/{path.stem}" for path in sorted((folder / "eval").glob("*.png"))]
    assert [row.pop("step") for row in history] == [line["step"] for line in runs.read_metrics(folder)]
    for row, line in zip(history, runs.read_metrics(folder), strict=True):
        expected = {k: v for k, v in numbers(line).items() if k != "step" and k not in runs.TIMES}
        assert {k: v for k, v in row.items() if k not in runs.TIMES} == expected
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
    sweep, found, slow = tmp_path_factory.mktemp("lab") / "lab", {}, Server(delay=5.0)

    def run(name, url="http://127.0.0.1:9", wait_s=60.0, disturb=(), extra=None, **changes):
        folder = full_disk if name == "full" else sweep / name
        flags = tiny_flags(tiny_shards, folder, **SMALL, **changes)
        found[name] = (folder, [])
        for attempt, what in enumerate((*disturb, None), start=1):
            process = python(url, home, *trainer(wait_s), *flags, **(extra or {}))
            try:
                if what:
                    hold(process, folder, attempt)
                    what(process)
                    process.send_signal(signal.SIGCONT)
                found[name][1].append(finish(process))
            finally:
                process.kill()
            if runs.read_status(folder).state == "finished":
                break

    def kill(which):
        return lambda process: below(process)[which].send_signal(signal.SIGKILL)

    def everyone(number):
        return lambda process: [one.send_signal(number) for one in (process, *below(process))]

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
    yield found, slow
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
    assert told[0].endswith(f"metrics.jsonl is whole; send it with: python -m ldct.tracking {folder}")


@pytest.mark.parametrize("fault", ["mirror-killed", "service-killed", "unreachable", "slow"])
def test_tracking_that_breaks_does_not_touch_the_training(lab, fault):
    found, _ = lab
    plain, [(status, _, errors)] = found["disabled"]
    assert status == 0, errors
    assert "W&B" not in errors and not (plain / "wandb").exists()
    assert len(runs.read_metrics(plain)) == 11  # steps 0 7 14 20 validated, 3 6 9 12 15 18 20 logged
    assert_unharmed(found[fault], plain)


def test_what_was_not_sent_is_sent_by_hand(lab, home):
    found, slow = lab
    names = ("mirror-killed", "service-killed", "slow")
    status, out, errors = finish(python(slow.url, home, "-m", "ldct.tracking", *(found[name][0] for name in names)))
    assert status == 0, errors
    offline = [line.partition(": wandb sync ")[2] for line in out.splitlines() if "wandb sync" in line]
    parts = [part for name in names[:2] for part in (found[name][0] / "wandb").glob("offline-run-*")]
    assert offline == [str(part) for part in parts]  # one part each: the one that broke was sent again in full
    status, _, errors = finish(python(slow.url, home, "-m", "wandb", "sync", *parts))
    assert status == 0, errors
    assert sorted(slow.runs) == sorted(names)
    for name in names:
        assert_each_line_once(slow.runs[name], found[name][0])
        assert slow.runs[name].exit == 0


def test_a_run_without_tracking_is_not_sent(tmp_path):
    config = configuration.from_dict({"track": {"wandb": "disabled"}})
    (tmp_path / "config.yaml").write_text(configuration.to_yaml(config))
    with pytest.raises(InputError, match=r"says track\.wandb: disabled; set it to online or offline there"):
        tracking.send(tmp_path)


def test_a_full_disk_below_wandb_does_not_touch_the_training(lab, full_disk):
    if full_disk is None:
        pytest.skip("needs root and the right to mount a file system, to fill a small one")
    found, _ = lab
    assert_unharmed(found["full"], found["disabled"][0])


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

    def run(*names, url=server.url, **extra):
        folders = [lab[0][name][0] for name in names]
        argv = ["launch/evaluate.py", *folders, "--shards", tiny_shards, "--protocol", "abd400", "hu2000"]
        return finish(python(url, home, *argv, **extra))

    return run


def means(folder):
    """Of the run itself, what its summary in W&B must hold."""
    own = evaluation.load(folder, "test").get(folder.name)
    return {f"eval/test/{key}": value.mean for key, value in own.means.items() if np.isfinite(value.mean)}


def test_an_evaluation_that_cannot_be_sent_is_printed_all_the_same(lab, measured):
    folder = lab[0]["online-parts"][0]
    status, out, errors = measured("online-parts", url="http://127.0.0.1:9", WANDB_INIT_TIMEOUT="2")
    assert status == 0 and f"{means(folder)['eval/test/abd400/psnr']:.2f}" in out
    warnings = [line for line in errors.splitlines() if "W&B" in line or "Traceback" in line]
    assert len(warnings) == 1, errors
    assert warnings[0].startswith("warning: W&B: its process ended with status ")
    assert warnings[0].endswith(f"send what was measured with: python -m ldct.tracking {folder}")


def test_an_evaluation_reaches_wandb_by_itself_and_once(lab, measured, server, home):
    online, offline, disabled, unknown = (
        lab[0][name][0] for name in ("online-parts", "offline-parts", "disabled", "unreachable")
    )
    names = (online.name, offline.name, disabled.name, unknown.name)
    status, _, errors = measured(*names)
    assert status == 0, errors
    assert_each_line_once(server.runs[online.name], online)
    part = tracking.offline_parts(offline)
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


# ---- what is shown


@pytest.fixture(scope="module")
def shown(tmp_path_factory, home, server):
    """A finished run with everything a run folder can hold, sent by hand; its folder."""
    folder = tmp_path_factory.mktemp("runs") / "attention-depth" / "003-0123abcd"
    (folder / "eval").mkdir(parents=True)
    config = configuration.from_dict(
        {
            "model": {"name": "unet", "attention": "both"},
            "track": {"wandb": "online", "project": "ct", "tags": ["paper"]},
        }
    )
    write_text(folder / "config.yaml", configuration.to_yaml(config))
    metrics = runs.Metrics(folder)
    metrics.append(
        {"step": 0, "val/abd400/psnr": 30.0, "val/abd400/rmse": 9.0, "val/abd400/ssim": 0.5, "val/flags": ["x"]}
    )
    metrics.append({"step": 5, "train/loss": 0.25, "train/lr": float("nan")})
    metrics.append({"step": 5, "attention/1/channel_sd": 0.1, "attention/1/channel_histogram": [0.5, 0.25, 0.25, 0.0]})
    metrics.append({"step": 9, "val/abd400/psnr": 34.0, "val/abd400/rmse": 6.0, "val/abd400/ssim": 0.75})
    metrics.append({"step": 12, "val/abd400/psnr": 33.0, "val/abd400/rmse": 7.0, "val/abd400/ssim": 0.8})
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(folder / "eval" / "attention.png")
    names = ("abd400/psnr", "abd400/ssim", "abd400/rmse", "texture/frequency", "texture/high_band")
    values = dict(zip(names, (33.5, 0.9, 5.5, float("nan"), 0.5), strict=True))
    low = dict(zip(names, (29.5, 0.6, 9.5, 0.25, 1.0), strict=True))
    results = [
        Result(name, "", [Measured("L067", "L067_000", found)], 3.0, "CPU")
        for name, found in (("low dose", low), (folder.name, values))
    ]
    evaluation.save(folder, Evaluation("test", "0" * 64, "", ["abd400"], results))
    runs.write_status(folder, runs.Status("finished", 12, 12, world_size=2, device="H200", train_s=3600.0))
    status, out, errors = finish(python(server.url, home, "-m", "ldct.tracking", folder))
    assert (status, out) == (0, ""), errors
    return folder


def test_a_project_page_compares_runs_without_hand_work(shown, server):
    run = server.runs["003-0123abcd"]
    assert (run.project, run.exit, run.preempting) == ("ct", 0, False)
    assert run.head == {
        "groupName": "attention-depth",
        "jobType": "train",
        "displayName": "003-0123abcd",
        "tags": ["unet", "attention-both", "paper"],
    }
    written = yaml.safe_load((shown / "config.yaml").read_text())
    assert run.values == {key: written[key] for key in ("data", "model", "loss", "optim", "train", "val")}
    summary = run.summary
    assert summary["val/abd400/psnr"] == {"max": 34, "last": 33}
    assert summary["val/abd400/ssim"] == {"max": 0.8, "last": 0.8}
    assert summary["val/abd400/rmse"] == {"min": 6, "last": 7}
    assert summary["train/loss"] == {"min": 0.25, "last": 0.25}
    assert {key: value for key, value in summary.items() if key.startswith("eval/")} == {
        "eval/test/abd400/psnr": 33.5, "eval/test/abd400/ssim": 0.9, "eval/test/abd400/rmse": 5.5,
        "eval/test/texture/high_band": 0.5, "eval/test/low_dose/abd400/psnr": 29.5,
        "eval/test/low_dose/abd400/ssim": 0.6, "eval/test/low_dose/abd400/rmse": 9.5,
        "eval/test/low_dose/texture/frequency": 0.25, "eval/test/low_dose/texture/high_band": 1,
    }  # fmt: skip
    own = {key: summary[key] for key in ("state", "train_s", "world_size", "device", "flags")}
    assert own == {"state": "finished", "train_s": 3600, "world_size": 2, "device": "H200", "flags": []}
    assert [row["step"] for row in run.history] == [0, 5, 5, 9, 12, 12]


def test_pictures_and_histograms_are_media(shown, server):
    run = server.runs["003-0123abcd"]
    histogram = run.history[2]["attention/1/channel_histogram"]
    expected = {"_type": "histogram", "values": [0.5, 0.25, 0.25, 0], "bins": [0, 0.25, 0.5, 0.75, 1]}
    assert histogram == expected
    assert "train/lr" not in run.history[1]  # it was not finite
    picture = run.history[5]["pictures/attention"]
    assert (picture["_type"], picture["width"], picture["height"]) == ("image-file", 8, 8)
    assert run.files[picture["path"]] == (shown / "eval" / "attention.png").read_bytes()


FETCH = (
    "import sys; from pathlib import Path; from shards.command import command; from ldct.wandb_reader import fetch; "
    "command(lambda: print(*fetch(sys.argv[1], Path(sys.argv[2]))))"
)


def test_runs_are_read_back_as_the_folders_they_were(shown, server, home, tmp_path):
    server.runs["003-0123abcd"].files["003-0123abcd/eval/../../../escaped.json"] = b"{}"
    status, out, errors = finish(python(server.url, home, "-c", FETCH, "me/ct", tmp_path / "got"))
    assert status == 0, errors
    folder = tmp_path / "got" / "attention-depth" / "003-0123abcd"
    assert out.split() == [str(folder)]
    names = {path.relative_to(folder).as_posix() for path in folder.glob("**/*") if path.is_file()}
    tables = {f"eval/test{ending}" for ending in (".json", "-slices.csv", "-patients.csv", "-slices.npz")}
    assert names == {"config.yaml", "metrics.jsonl", "status.json", "eval/attention.png"} | tables
    assert all((folder / name).read_bytes() == (shown / name).read_bytes() for name in names)
    assert not list(tmp_path.glob("**/escaped.json"))


def test_compare_makes_its_report_from_wandb(shown, server, home, tmp_path):
    page = tmp_path / "report.html"
    status, out, errors = finish(python(server.url, home, "launch/compare.py", "--wandb", "me/ct", "-o", page))
    assert status == 0, errors
    assert out.splitlines()[-1] == str(page)
    assert "003-0123abcd" in page.read_text() and "33.50" in out


@pytest.mark.parametrize(
    ("project", "expected"),
    [
        ("me", "expected ENTITY/PROJECT, found 'me'"),
        ("me/nothing", "cannot read me/nothing from W&B: Could not find project"),
    ],
)
def test_a_project_that_cannot_be_read_is_one_line(server, home, tmp_path, project, expected):
    status, _, errors = finish(python(server.url, home, "-c", FETCH, project, tmp_path))
    assert (status, errors.count("\n")) == (2, 1), errors
    assert expected in errors


def test_another_run_of_the_same_name_is_not_mixed_in(shown, server, home, tmp_path):
    folder, before = tmp_path / "attention-depth" / shown.name, len(server.runs[shown.name].history)
    folder.mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", "status.json"):
        (folder / name).write_bytes((shown / name).read_bytes())
    status, _, errors = finish(python(server.url, home, "-m", "ldct.tracking", folder))
    assert status == 2
    assert f"error: W&B's project ct has another run called {shown.name}, with {before} rows; delete it there" in errors
    assert len(server.runs[shown.name].history) == before


# ---- sweeps


def test_wandb_sweep_takes_our_files(server, home):
    files = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
    assert files
    code = "import sys; from wandb.cli.cli import cli; [cli(['sweep', f], standalone_mode=False) for f in sys.argv[1:]]"
    status, _, errors = finish(python(server.url, home, "-c", code, *files, WANDB_PROJECT="ct"))
    assert status == 0, errors
    assert "warn" not in errors.lower(), errors
    assert list(server.sweeps.values()) == [yaml.safe_load(file.read_text()) for file in files]


def test_wandb_agent_trains_a_run_of_the_sweep(server, home, tiny_shards, tmp_path):
    """With the command of docs/wandb.md, the shards and sizes of this test added."""
    text = re.search(r"^command:\n(?:  - .*\n)+", (ROOT / "docs" / "wandb.md").read_text(), re.MULTILINE)[0]
    sizes = ["--model.channels=2", "--train.steps=1", "--train.global_batch=4", "--val.slices=1"]
    command = text.replace("data/shards", str(tiny_shards)).replace("runs/", f"{tmp_path}/runs/")
    content = yaml.safe_load((ROOT / "configs" / "sweeps" / "demo.yaml").read_text())
    content["command"] = [*yaml.safe_load(command)["command"], *sizes]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    here = {"WANDB_DIR": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    status, _, errors = finish(python(server.url, home, "-m", "wandb", "sweep", "-p", "ct", tmp_path / "sweep.yaml"))
    assert status == 0, errors
    name = re.search(r"wandb agent (\S+)", errors)[1]
    chosen = {"config": "configs/train/demo.yaml", "model.name": "unet", "model.attention": "both"}
    server.to_run.append(("agentrun", chosen))
    status, out, errors = finish(python(server.url, home, "-m", "wandb", "agent", "--count", "1", name, **here))
    assert status == 0, out + errors
    run = server.runs["agentrun"]
    assert (run.exit, run.head["groupName"]) == (0, "agents"), out + errors
    assert (run.values["model"]["name"], run.values["model"]["attention"]) == ("unet", "both")
    assert runs.read_status(tmp_path / "runs" / "agents" / "agentrun").state == "finished"


def test_a_torn_line_in_the_ledger_is_forgotten(tmp_path):
    path = tmp_path / "wandb" / "sent.jsonl"
    path.parent.mkdir()
    path.write_text('{"row": "a"}\n{"ended": "first"}\n{"row": "b"}\n{"row": "c')
    ledger = tracking.Ledger(tmp_path)
    assert (ledger.new, ledger.rows, ledger.certain, ledger.ended) == (False, ["a", "b"], ["a"], ["first"])
    ledger.begin(ledger.certain)
    assert tracking.Ledger(tmp_path).rows == ["a"]
