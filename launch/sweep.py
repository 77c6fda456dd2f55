"""Check every run of a sweep, show the table and the cost, and submit what is not finished.

python launch/sweep.py configs/sweeps/demo.yaml --cluster configs/clusters/local.yaml --set data.shards=data/shards
"""

import argparse
from pathlib import Path

from shards.common.command import as_typed, command, say
from shards.common.lock import locked
from slurm import chain, early_terminate, plan_table, snapshot, squeue, sweep_file
from slurm.cluster import load, sbatch_environment
from slurm.local import Local
from slurm.submit import note_lost_answers, submit
from slurm.sweep import end_hung, left_behind, note_states, plan, write_configs


def main() -> int:
    """Parse, plan, show, submit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog="Run again after an "
        "interruption or a failure: finished runs are skipped, running and waiting ones are left alone."
    )  # fmt: skip
    parser.add_argument(
        "sweep", type=Path, metavar="SWEEP", help="YAML file in the schema of W&B sweeps; see configs/sweeps"
    )
    parser.add_argument("--cluster", type=Path, required=True, help="YAML file; see configs/clusters")
    parser.add_argument("--dry-run", action="store_true", help="check and show everything, submit nothing")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", dest="settings",
        help="the same field for every run, e.g. --set data.shards=data/shards; repeat as needed",
    )  # fmt: skip
    parser.add_argument(
        "--restart-lost", action="store_true",
        help="end jobs that run without a heartbeat, and submit their runs again",
    )  # fmt: skip
    parser.add_argument(
        "--then",
        default="",
        metavar="STEPS",
        help="what follows when the runs have ended, well or not: evaluate,compare or evaluate,findings",
    )
    parser.add_argument(
        "--bench", type=Path, metavar="FILE", help="JSON of bench.py train, for hours before a first run"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all sweeps, default: runs")
    args = parser.parse_args()

    cluster = load(args.cluster)
    sweep = sweep_file.read(args.sweep)
    planned = plan(sweep, cluster, args.settings, args.runs)
    folder = planned[0].folder.parent
    then = chain.steps(args.then, folder, {run.config.data.shards for run in planned})
    rule = early_terminate.rule_of(sweep, planned)
    if args.dry_run:
        note_states(planned, folder)
        print(plan_table.of_plan(planned, cluster, args.runs, args.bench))
        print(plan_table.dry_run(planned, cluster, folder))
        if script := plan_table.script(planned, cluster, folder):
            with sbatch_environment(cluster):
                print(squeue.would_take(script))
        return 0
    # a launcher of local runs holds the sweep until they end, one of SLURM jobs for seconds
    wait_s = 0 if cluster.executor == "local" else 120
    with locked(folder / ".lock", f"another launcher works on {folder}", wait_s):
        note_lost_answers(cluster, folder, planned)
        note_states(planned, folder)
        if args.restart_lost:
            end_hung(planned, folder)
        if cluster.executor == "slurm":
            chain.refuse_beside_processes(folder, then, planned)
        say(plan_table.of_plan(planned, cluster, args.runs, args.bench), "nothing was submitted")
        chosen = [run for run in planned if run.open]
        for line in filter(None, (left_behind(planned, folder), snapshot.other_code([run.folder for run in chosen]))):
            say(line, "nothing was submitted")
        local = cluster.executor == "local"
        code = snapshot.take(folder) if chosen or local else folder
        write_configs(chosen)
        early_terminate.write(rule, folder)
        if local:
            adopted = [run for run in planned if run.state in ("running", "pending")]
            Local(cluster, folder, code).run(adopted, chosen)
            note_states(planned, folder)
            finished = sum(run.state == "finished" for run in planned)
            print(f"{finished} of {len(planned)} runs finished in {folder}", flush=True)
            followed = chain.follow_here(cluster, folder, then, bool(adopted or chosen), args.restart_lost)
            return 0 if finished == len(planned) and followed else 1
        if chosen:
            jobs = submit(cluster, folder, code, chosen)
            submitted = f"submitted {len(chosen)} run{'s' * (len(chosen) != 1)} as job {', '.join(jobs)}"
            say(f"{submitted}; look at them with: python launch/status.py {as_typed(folder)}", submitted)
        else:
            print("nothing to submit")
        if then:
            print(chain.follow(cluster, folder, then, bool(chosen), args.restart_lost))
    return 0


if __name__ == "__main__":
    command(main)
