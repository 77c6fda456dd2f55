"""Train one network here, or under torchrun; goes on where the run folder left off.

python launch/train.py --config configs/train/default.yaml --data.shards data/shards --run_dir runs/mine
python launch/train.py --config configs/train/default.yaml --dry-run
python launch/train.py --init redcnn-general --data.shards data/mine --run_dir runs/mine
"""

# the latch first: a signal that comes while torch is imported must not be lost
from ldct.training.signals import STOPPED, Latch

latch = Latch()

import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from jsonargparse import ArgumentError, Namespace  # noqa: E402

from ldct import config as configuration  # noqa: E402
from ldct.config import Config  # noqa: E402
from shards.common.command import InputError, command  # noqa: E402


def arguments() -> tuple[Config, bool]:
    """The configuration, and whether it is only to be described."""
    parser = configuration.parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="describe the network and its data, and end")
    parser.add_argument("--init", metavar="NAME", help="start from a network that ships, or from another run's best")
    try:
        options = parser.parse_args()
        if options.init:
            start_from(options)
        return configuration.instantiate(parser, options), options.dry_run
    except ArgumentError as error:
        raise InputError(configuration.explain(error)) from None


def start_from(options: Namespace) -> None:
    """Take over the network of ``--init`` and its normalization; its weights are where training starts."""
    from ldct.inference import pretrained
    from ldct.runs.folder import read_config

    given = Path(options.init)
    run = given if (given / "config.yaml").is_file() else pretrained.as_run(pretrained.find(options.init))
    config = read_config(run)
    options["train"]["init_from"] = str(run)
    options["data"]["normalization"] = config.data.normalization
    for name, value in vars(config.model).items():
        options["model"][name] = value


def describe(config: Config) -> None:
    """Print what would be trained on what."""
    from ldct import models
    from ldct.data.patches import Patches

    network, attention = models.describe(config.model), config.model.attention
    print(f"network          {config.model.name}, attention {attention}, run hash {configuration.hash8(config)}")
    print(f"parameters       {network.parameters:,}, {network.attention_parameters:,} of them attention's")
    print(f"receptive field  {network.receptive_field} x {network.receptive_field} pixels")
    print(f"encoder stages   {network.stages}, where attention can stand")
    seen = config.train.steps * config.train.global_batch
    print(f"budget           {config.train.steps:,} steps of {config.train.global_batch} patches: {seen:,} patches")
    if config.data.shards:
        patches = Patches(Path(config.data.shards), config.data)
        size = f"{patches.patch} x {patches.patch}"
        print(f"data             {len(patches):,} patches of {size}: {seen / len(patches):.1f} epochs")


def main() -> int:
    """Parse, train, and say what is left to do."""
    config, only_described = arguments()
    if only_described:
        describe(config)
        return 0
    from ldct.training.trainer import train  # --help and a typo need no torch

    stopped = train(config, latch)
    if stopped is None:
        print(f"finished: {config.run_dir}")
        return 0
    cause = latch.signal or stopped  # another rank's, where this one had none
    print(f"stopped by {cause.name} with a checkpoint; run the same command again to go on", file=sys.stderr)
    return STOPPED


if __name__ == "__main__":
    command(main)
