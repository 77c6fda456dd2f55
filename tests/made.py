"""A run folder without the training: a network that does something, saved as the loop saves its best."""

import json

import torch

from ldct import config as configuration
from ldct import models
from ldct.device import device_name
from ldct.metrics import names
from ldct.runs import checkpoint
from ldct.runs import folder as runs
from shards import manifest

CPU = torch.device("cpu")


def make_run(folder, shards, seed=0, state="finished", scale=0.05, **model):
    """A run in ``folder`` whose network adds a little of something random to its input; returns ``folder``."""
    fields = {"name": "redcnn", "channels": 4, "depth": 3, "init_output": "same", **model}
    config = configuration.from_dict(
        {
            "data": {"shards": str(shards)},
            "model": fields,
            "train": {"seed": seed, "steps": 20, "precision": "fp32"},
            "run_dir": str(folder),
        }
    )
    torch.manual_seed(seed)
    network = models.create(config.model)
    with torch.no_grad():
        for weight in network.output.parameters():
            weight *= scale
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(configuration.to_yaml(config))
    content = {
        "model": network.state_dict(),
        "patch": 55,
        "step": 20,
        "config": configuration.to_dict(config),
        "manifest_sha256": manifest.digest(shards),
    }
    checkpoint.save(folder / "checkpoints", checkpoint.BEST, content)
    runs.write_status(
        folder, runs.Status(state=state, step=20, steps=20, attempt=1, train_s=3.0, device=device_name(CPU))
    )
    runs.write_provenance(folder, manifest.digest(shards))
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(0, 21, 5):
            line = {"step": step, names.TRAIN_LOSS: 1 / (step + 1), "patches_per_s": 50.0, "elapsed_s": float(step)}
            psnr = names.metric("abd400", "psnr")
            line |= {names.validation(psnr): 30 + step / 10, names.low_dose_validation(psnr): 30.0}
            file.write(json.dumps(line) + "\n")
    return folder
