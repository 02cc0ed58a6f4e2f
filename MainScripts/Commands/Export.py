"""Write a run's networks as files for other programs, or all of it as a folder to give away.

    ma-ddpm export                                               # the newest run, to graph.pt in its folder
    ma-ddpm export --run diffusion-cpu -o network.pt2
    ma-ddpm export --run diffusion-cpu --format onnx             # all that a clip passes through
    ma-ddpm export --format model -o my-model                    # all that makes music, with a card

Netron draws all three. `pt` is TorchScript, which `torch.jit.load` runs, `pt2` is for `torch.export.load`,
and `onnx` for onnxruntime and others. `model` is for another machine or the Hugging Face Hub:
`ma-ddpm generate --run my-model/Models/diffusion/00003-CPU` plays it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from Commands.Options import folder_of, read
from Libraries.Evaluation import example_input
from Libraries.Runs import DiffusionRun, export_run, share
from Libraries.Training import export_graph


@dataclass(frozen=True)
class Export:
    """The options."""

    run: str = "newest"  # or the folder or name of another
    format: Literal["pt", "pt2", "onnx", "model"] = "pt"  # of the file, where no output says it
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None  # None: in the run's folder


def main(arguments: Sequence[str]) -> None:
    """Load the run, write the files and print where they are."""
    options = read(Export, arguments, __doc__)
    folder = folder_of(options.run)
    if options.format == "model":
        print(share(folder, options.output or Path(folder.name)))
        return
    model = DiffusionRun.load(folder)
    if options.output is None and options.format == "onnx":
        print(*export_run(model).values(), sep="\n")
        return
    path = options.output or model.run.folder / f"graph.{options.format}"
    export_graph(model.network.cpu(), example_input(model), path)
    print(path)
