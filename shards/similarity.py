"""How alike low and full dose look to a network trained on photographs: cosine of ResNet-50 features.

    python shards/similarity.py data/shards
    python shards/similarity.py data/shards --weights resnet50-0676ba61.pth --patches

Writes SHARDS/similarity.csv and SHARDS/similarity.png, and prints the least and the mean cosine.
"""

import argparse
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shards import patching
from shards.common.atomic import atomic, write_text
from shards.common.command import InputError, Progress, command, first_line
from shards.common.table import csv_text
from shards.manifest import Manifest, load

if TYPE_CHECKING:
    import torch

WEIGHTS = "resnet50-0676ba61.pth"
"""torchvision's ImageNet weights (IMAGENET1K_V1), under the name torch caches them."""
WEIGHTS_URL = f"https://download.pytorch.org/models/{WEIGHTS}"
MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's red, green and blue, on a scale of 0 to 1."""
COLUMNS = ("split", "patient", "z", "key", "patch", "cosine")


def find_weights(given: Path | None) -> Path:
    """The file with ResNet-50's weights: the user's, or torch's cache.

    Raises
    ------
    InputError
        If there is none.
    """
    import torch

    path = given or Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    if not path.is_file():
        raise InputError(
            f"no weights of ResNet-50 at {path}; on a machine with a network get {WEIGHTS_URL}, then name the file "
            "with --weights"
        )
    return path


def load_network(path: Path) -> "torch.nn.Module":
    """ResNet-50 up to its 2048 pooled features, in eval mode, on the GPU where there is one.

    Raises
    ------
    InputError
        If the file holds something else.
    """
    import torch

    from shards.resnet50 import ResNet50

    network = ResNet50()
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a wrong file fails in many ways
        raise InputError(f"{path} holds no weights of ResNet-50: {first_line(error)}") from None
    return network.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def cosines(network: "torch.nn.Module", pairs: np.ndarray) -> np.ndarray:
    """Cosine similarity of the features of low and full dose.

    Parameters
    ----------
    network : torch.nn.Module
        Images (m, 3, H, W) to features (m, 2048).
    pairs : numpy.ndarray
        HU, shape (n, 2, H, W). Clipped to [-1000, 2000], scaled to [0, 1], repeated for three colours, and
        normalised as ImageNet.

    Returns
    -------
    numpy.ndarray
        float64, shape (n,).
    """
    import torch

    device = next(network.parameters()).device
    images = (torch.from_numpy(np.clip(pairs, -1000, 2000).astype(np.float32)).to(device) + 1000) / 3000
    colours = images.flatten(0, 1)[:, None].expand(-1, 3, -1, -1)
    mean, sd = (torch.tensor(v, device=device)[:, None, None] for v in (MEAN, SD))
    with torch.inference_mode():
        features = network((colours - mean) / sd).double().unflatten(0, (len(pairs), 2))
        similar = torch.nn.functional.cosine_similarity(features[:, 0], features[:, 1], dim=1)
    return similar.cpu().numpy()


def read_records(path: Path) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
    """Key, array and description of each record of a shard."""
    array = np.empty(0)
    with tarfile.open(path) as tar:
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            key, kind = member.name.split(".", 1)
            if kind == "json":
                yield key, array, json.load(content)
            else:
                array = np.load(io.BytesIO(content.read()), allow_pickle=False)


def whole_slice(array: np.ndarray, about: dict[str, Any]) -> np.ndarray:
    """Both doses of a slice, (1, 2, H, W): as stored, or put together from its patches as far as they reach."""
    if array.ndim == 3:
        return array[None]
    corners, patch = about["origins"], array.shape[-1]
    shape = (max(row for row, _ in corners) + patch, max(column for _, column in corners) + patch)
    return np.nan_to_num(np.stack([patching.join(array[:, dose], corners, shape) for dose in (0, 1)])[None], nan=-1000)


def cosine_rows(folder: Path, manifest: Manifest, network: "torch.nn.Module", patches: bool) -> Iterator[list[Any]]:
    """Rows of the CSV: of each slice, or of each training patch."""
    shards = [shard for shard in manifest.shards if shard.split == "train" or not patches]
    with Progress("similarity", sum(len(shard.records) for shard in shards), "slices") as progress:
        for shard in shards:
            for key, array, about in read_records(folder / shard.name):
                start = [shard.split, about["patient"], about["z"], key]
                values = cosines(network, array if patches else whole_slice(array, about))
                for patch, value in enumerate(values):
                    yield [*start, patch if patches else "", float(value)]
                progress.update()


def write_histogram(values: np.ndarray, path: Path, what: str) -> None:
    """The histogram of the cosines as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.hist(values, bins=40)
    axes.set_xlabel("cosine similarity of ResNet-50 features, low and full dose")
    axes.set_ylabel(what)
    axes.set_title(f"least {values.min():.4f}, mean {values.mean():.4f}")
    with atomic(path) as file:
        figure.savefig(file, format="png", dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="folder with manifest.json")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="of ResNet-50 (default: torch's cache)")
    parser.add_argument("--patches", action="store_true", help="of each training patch, not of whole slices")
    options = parser.parse_args()
    manifest = load(options.shards)
    network = load_network(find_weights(options.weights))
    rows = list(cosine_rows(options.shards, manifest, network, options.patches))
    if not rows:
        raise InputError(f"{options.shards} has no {'training patches' if options.patches else 'slices'} to compare")
    write_text(options.shards / "similarity.csv", csv_text([COLUMNS, *rows]))
    values = np.array([row[-1] for row in rows])
    what = "patches" if options.patches else "slices"
    write_histogram(values, options.shards / "similarity.png", what)
    print(f"{len(values)} {what}: least cosine {values.min():.4f}, mean {values.mean():.4f}")
    print(f"{options.shards / 'similarity.csv'} and similarity.png")


if __name__ == "__main__":
    command(main)
