"""Write a run's network as a file that other programs open.

    ma-ddpm export                                               # the newest run, to graph.pt in its folder
    ma-ddpm export --run diffusion-cpu -o network.pt

`pt` is TorchScript, which Netron draws and `torch.jit.load` runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from Commands.Options import folder_of, read
from Libraries.Evaluation import example_input
from Libraries.Runs import DiffusionRun
from Libraries.Training import export_graph

WRITERS = {"pt": export_graph}  # (network, example input, path)


@dataclass(frozen=True)
class Export:
    """The options."""

    run: str = "newest"  # or the folder or name of another
    format: Literal["pt"] = "pt"  # of the file
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None  # None: graph.pt in the run's folder


def main(arguments: Sequence[str]) -> None:
    """Load the run, write the file and print where it is."""
    options = read(Export, arguments, __doc__)
    model = DiffusionRun.load(folder_of(options.run))
    path = options.output or model.run.folder / f"graph.{options.format}"
    WRITERS[options.format](model.network.cpu(), example_input(model), path)
    print(path)
