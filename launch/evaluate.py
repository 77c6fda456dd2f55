"""Measure runs on the whole slices of a split, beside the low dose, the best Gaussian blur and non-local means.

python launch/evaluate.py runs/demo --shards data/shards --split test
python launch/evaluate.py --model redcnn-general --pairs FOLDER

Writes RUN/eval/SPLIT.json and .csv for each run (NAME in place of SPLIT with --name), prints the table and tells W&B,
where it knows the run. Run again, it measures only what is new.
"""

import argparse
import dataclasses
import os
import re
from pathlib import Path

from shards.common import part
from shards.common.command import InputError, command
from shards.common.pool import Workers

RESERVED = ("train", "val", "test", "pairs")
"""What no --name may be: these results would look like those of another split."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders, or folders of runs")
    parser.add_argument(
        "--model", metavar="NAME", help="a network that ships; it becomes a run in runs/pretrained/NAME"
    )
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--shards", type=Path, help="folder written by shards/build.py")
    data.add_argument("--pairs", type=Path, help="folder with DICOM series at both doses, in any layout build.py knows")
    parser.add_argument("--series", metavar="NAME", help="of --pairs, where a patient has several, e.g. 1mm_sharp")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="of the shards (%(default)s)")
    parser.add_argument(
        "--name", help="what the results are called, to keep those of several data sets (the split, or pairs)"
    )
    parser.add_argument(
        "--protocol", nargs="+", metavar="P", help="metric protocols, the first ranks (a wrong one lists all)"
    )
    parser.add_argument(
        "--ablate",
        action="store_true",
        help="also what attention does at each stage: its statistics, and the loss with its mean in its place",
    )
    parser.add_argument(
        "--lesion",
        action="store_true",
        help="also how well a faint disc, drawn into the low dose, is seen behind each method",
    )
    part.add_argument(parser, "of several processes: measure only these runs")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)),
                        help="processes that take metrics and run the baselines (%(default)s, one a core)")  # fmt: skip
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = arguments()
    from ldct.device import keep_freed, pick_device
    from ldct.evaluation import attention, datasets, evaluate, lesion, results
    from ldct.inference import pretrained
    from ldct.metrics import protocols
    from ldct.reports import significance, tables
    from ldct.runs import wandb_mirror  # --help and a typo need no torch
    from ldct.runs.folder import read_config

    fits = re.fullmatch(r"\w{1,64}", options.name, re.ASCII) if options.name is not None else True
    if not fits or options.name in RESERVED:
        expected = f"expected letters, digits and _, at most 64, and none of {', '.join(RESERVED)}"
        raise InputError(f"--name {options.name}: {expected}")
    keep_freed()
    chosen = [protocols.get(name).name for name in dict.fromkeys(options.protocol or protocols.DEFAULT)]
    device = pick_device(options.device)
    shipped = [pretrained.as_run(pretrained.find(options.model))] if options.model else []
    if not (options.runs or shipped):
        raise InputError("expected RUN..., or --model NAME; --help shows examples")
    runs = evaluate.usable([*options.runs, *shipped], options.part)
    if not runs:
        print(f"part {options.part}: no run")
        return
    if options.shards:
        data = datasets.open_shards(options.shards, options.split)
    else:
        data = datasets.open_pairs(options.pairs, options.series)
    if options.name:
        data = dataclasses.replace(data, split=options.name)
    seen = {}
    try:
        for run in runs if options.lesion else []:
            results.check_writable(run)  # also where it is measured already
        with Workers(max(1, options.workers)) as workers:
            evaluation = evaluate.evaluate(runs, data, chosen, device, workers)
        if options.lesion:
            seen = lesion.measure(runs, evaluation, device)
    except OSError as error:
        raise InputError(f"cannot write the results: {error}; give a folder of runs that is yours") from None
    rows = tables.rows(evaluation, {run.name: read_config(run) for run in runs})
    print(tables.as_text(evaluation, rows))
    print(
        *tables.warnings(rows),
        "",
        significance.as_text(evaluation, rows),
        tables.about(evaluation),
        sep="\n",
        flush=True,
    )
    if options.lesion:
        print("", lesion.as_text(seen, {row.name: row.label for row in rows}), sep="\n", flush=True)
    if options.ablate:
        found = {run: attention.by_stage(run, data, chosen[0], evaluation.get(run.name).mark, device) for run in runs}
        print("", attention.as_text({row.label: found[run] for run in runs for row in rows if row.name == run.name}),
              sep="\n", flush=True)  # fmt: skip
    wandb_mirror.tell(runs)


if __name__ == "__main__":
    command(main)
