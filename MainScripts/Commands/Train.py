"""Train a model, in one process or several.

    ma-ddpm train --preset BASE --train.batch-size 8
    ma-ddpm train --preset CPU --start None --vae.start None --vae.no-freeze-encoder     # from random weights
    ma-ddpm train --preset BASE --network unet_v0                # one of the journal's networks
    accelerate launch --multi_gpu MainScripts/ma_ddpm.py train --preset BASE --resume newest
    torchrun --nnodes 1:4 --max-restarts 100 --rdzv-backend c10d --rdzv-endpoint HOST:29400 \\
        MainScripts/ma_ddpm.py train --preset BASE --train.processes 4 --resume newest

If missing, the dataset is built first, and the autoencoder or upsampler is trained first if the space needs
one. N processes with batches of B compute what one process computes with batches of N * B, except that
dropout draws other masks and BatchNorm sees other batches. Ctrl-C and SIGTERM save before the training stops.

With --train.processes, a step keeps its size when machines come and go: fewer accumulate more. The last line,
once on each of four machines, goes on as long as one is there, from the newest state that was saved.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from Commands.Options import AllSettings, read_settings
from Libraries.Runs import (
    Settings,
    diffusion_recipe,
    ensure_dataset,
    prepare_space,
    resumable,
    train_diffusion,
)
from Libraries.Training import process_state


@dataclass(frozen=True)
class Train:
    """The options."""

    settings: AllSettings
    resume: str | None = None  # folder of an interrupted run; newest: of these settings, else a new one


def main(arguments: Sequence[str]) -> None:
    """Build the dataset if it is missing, and train."""
    options = read_settings(Train, arguments, __doc__)
    train(options.settings, options.resume)


def train(settings: Settings, resume: str | None) -> None:
    """Train on the dataset of these settings, which is built first if it is missing; print the run."""
    state = process_state()
    with state.main_process_first():
        if (built := ensure_dataset(settings)) is not None:
            print(built)
    prepare_space(settings)
    run_dir = resumable(diffusion_recipe(settings)) if resume == "newest" else resume and Path(resume)
    run_dir = train_diffusion(settings, run_dir)
    if state.is_main_process:
        print("trained:", run_dir)
