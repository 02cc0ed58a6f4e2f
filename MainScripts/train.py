"""Train from a terminal, in one process or several.

    python MainScripts/train.py --preset BASE
    accelerate launch --multi_gpu MainScripts/train.py --preset BASE
    accelerate launch MainScripts/train.py --preset BASE --resume Models/diffusion/00003-BASE
    torchrun --nnodes 1:4 --max-restarts 100 --rdzv-backend c10d --rdzv-endpoint HOST:29400 \\
        MainScripts/train.py --preset BASE --processes 4 --resume newest

If missing, the dataset is built first, and the autoencoder or upsampler is trained first if the space needs
one. N processes with batches of B compute what one process computes with batches of N * B, except that
dropout draws other masks and BatchNorm sees other batches. Ctrl-C and SIGTERM save before the training stops.

With --processes, a step keeps its size when machines come and go: fewer accumulate more. The last line, once
on each of four machines, goes on as long as one is there, from the newest state that was saved.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from Conf import NETWORKS, PRESETS, choose, in_space
from Libraries.Disk import exit_with_the_sentence
from Libraries.Runs import diffusion_recipe, ensure_dataset, prepare_space, resumable, train_diffusion
from Libraries.Training import process_state


def main() -> None:
    """Read the arguments, build the dataset if it is missing, and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="BASE")
    parser.add_argument("--space", choices=NETWORKS["BASE"], help="of the diffusion (default: the preset's)")
    parser.add_argument(
        "--resume", help="the folder of an interrupted run, or newest: that of these settings, else a new one"
    )
    parser.add_argument("--processes", type=int, help="in all; fewer accumulate more (default: any number)")
    arguments = parser.parse_args()
    settings = choose(arguments.preset)
    if arguments.space:
        settings = in_space(settings, arguments.space)
    if arguments.processes:
        settings = replace(settings, train=replace(settings.train, processes=arguments.processes))
    state = process_state()
    with state.main_process_first():
        if (built := ensure_dataset(settings)) is not None:
            print(built)
    prepare_space(settings)
    run_dir = arguments.resume and Path(arguments.resume)
    if arguments.resume == "newest":
        run_dir = resumable(diffusion_recipe(settings))
    run_dir = train_diffusion(settings, run_dir)
    if state.is_main_process:
        print("trained:", run_dir)


if __name__ == "__main__":
    with exit_with_the_sentence():
        main()
