"""Denoise DICOM series: a folder tree in, the same tree of derived series out.

python launch/denoise.py --model redcnn-general IN OUT
python launch/denoise.py --run runs/demo/000-1a2b3c4d IN OUT
python launch/denoise.py --run runs/demo/000-1a2b3c4d --export model.pt2
python launch/denoise.py --run model.pt2 IN OUT

Refuses what is not in HU or was denoised before; a network that ships also measures each series, and refuses what is
far from what it was trained on. For research, not for diagnosis.
"""

import argparse
import dataclasses
from pathlib import Path

from shards.common import part
from shards.common.command import InputError, command


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument("--model", metavar="NAME", help="a network that ships (a wrong name lists them)")
    network.add_argument("--run", type=Path, help="run folder, or a file written by --export")
    parser.add_argument("source", nargs="?", type=Path, metavar="IN", help="folder with DICOM series, at any depth")
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT", help="folder to write to; run again, it goes on")
    parser.add_argument("--strength", type=float, default=1.0, help="0 = the input, 1 = fully denoised (%(default)s)")
    parser.add_argument("--deidentify", type=Path, metavar="KEY", help="no patient in headers; KEY: file of a secret")
    parser.add_argument("--force", action="store_true", help="also what is refused; the derived series says so")
    parser.add_argument("--export", type=Path, metavar="FILE", help="write the network as one file, .pt2 or .onnx")
    part.add_argument(parser, "of several processes: only these series")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    return parser.parse_args()


def main() -> None:
    """Open the model; export it, denoise, or both."""
    options = arguments()
    if not (options.export or (options.source and options.out)):
        raise InputError("expected IN and OUT, or --export FILE; --help shows examples")
    from ldct.device import device_name, keep_freed, pick_device
    from ldct.inference import pretrained  # --help and a typo need no torch
    from ldct.inference.denoiser import Blended
    from ldct.inference.dicom import denoise_series
    from ldct.inference.export import export, open_model
    from ldct.inference.folder_key import open_key
    from ldct.inference.guard import check, check_images
    from ldct.inference.series import find_series, oddities

    keep_freed()
    device = pick_device(options.device)
    path = pretrained.find(options.model) if options.model else options.run
    network = open_model(path, device)
    if options.export:
        export(network, options.export)
        print(f"{options.export}: {network.about}")
    if not (options.source and options.out):
        return
    series, passed_over = find_series(options.source, options.out)
    series = options.part.of(series)
    lines = oddities(series, passed_over)
    series = check_images(series, options.force)
    if options.model:
        series, measured = check(series, pretrained.read_card(path), options.force)
        lines += measured
    print("".join(f"{line}\n" for line in lines), end="", flush=True)
    deidentifier = open_key(options.deidentify, options.out, options.source)
    series = [dataclasses.replace(each, numbered=deidentifier is not None) for each in series]
    model = network if options.strength == 1 else Blended(network, options.strength)
    try:
        count, seconds, left_out = denoise_series(series, model, model.about, model.name, deidentifier)
    except OSError as error:
        what = "make room or choose another OUT, and run again"
        raise InputError(f"cannot write to {options.out}: {error.strerror}; {what}") from None
    rate = f", {count / seconds:.2f} slices/s on {device_name(device)}" if count else ""
    total = sum(len(each.slices) for each in series)
    kept = f"; the other {total - count} were there" if count < total and not left_out else ""
    print(f"{options.out}: {count} of {total} slices in {len(series)} series denoised by {model.about}{rate}{kept}")
    if left_out:
        raise InputError(f"{len(left_out)} of {len(series)} series left out: {'; '.join(dict.fromkeys(left_out))}")


if __name__ == "__main__":
    command(main)
