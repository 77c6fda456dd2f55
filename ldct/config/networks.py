"""What the networks' own files in ldct/models declare of them, read without importing torch."""

import ast
import functools
from dataclasses import dataclass
from pathlib import Path

NAME = "PUBLISHED"
"""Of the dict in a network's file."""


@dataclass(frozen=True)
class Published:
    """A network as its authors describe it."""

    label: str
    """What people call it."""
    channels: int
    """Filters of the first stage."""
    depth: int
    """Stages; what one is stands in the network's file."""
    kernel: int
    """Side of the convolution kernels in pixels."""
    parameters: int
    """Trainable parameters at these sizes, without batch norm and attention."""
    source: str
    """Publication."""

    @property
    def sizes(self) -> dict[str, int]:
        """Fields of ModelConfig that are filled in where a configuration leaves them out."""
        return {"channels": self.channels, "depth": self.depth, "kernel": self.kernel}


@functools.cache
def networks() -> dict[str, Published]:
    """The networks by name: every file ``ldct/models/NAME.py`` that assigns a dict of Published's fields to PUBLISHED.

    The files are parsed, not imported: that takes seconds with torch, and neither --help nor the plan of a sweep nor a
    report needs a network.
    """
    declared = {}
    for path in sorted((Path(__file__).parents[1] / "models").glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [NAME]:
                declared[path.stem] = Published(**ast.literal_eval(node.value))
    return declared
