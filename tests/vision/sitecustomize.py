"""Lets torchvision be imported where it was built for CUDA and torch was not.

Such a torchvision describes two operators while it is imported that only its CUDA library would define; its networks
need neither. Python runs this file at its start where its folder is on PYTHONPATH; conftest.py runs it for the tests.
"""

import contextlib

with contextlib.suppress(ImportError):
    try:
        import torchvision
    except RuntimeError:
        from torch import library

        for operator in ("nms", "qnms"):
            library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401
