"""Train from a terminal, in one process or several.

    python MainScripts/train.py --preset BASE
    accelerate launch --multi_gpu MainScripts/train.py --preset BASE
    accelerate launch MainScripts/train.py --preset BASE --resume Models/diffusion/00003-BASE

If missing, the dataset is built first, and the autoencoder or upsampler is trained first if the space needs
one. N processes with batches of B compute what one process computes with batches of N * B, except that
dropout draws other masks and BatchNorm sees other batches. Ctrl-C and SIGTERM save before the training stops.
"""

import argparse
from pathlib import Path

from Conf import NETWORKS, PRESETS, choose, in_space
from Libraries.Disk import exit_with_the_sentence
from Libraries.Runs import ensure_dataset, prepare_space, train_diffusion
from Libraries.Training import process_state


def main() -> None:
    """Read the arguments, build the dataset if it is missing, and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="BASE")
    parser.add_argument("--space", choices=NETWORKS["BASE"], help="of the diffusion (default: the preset's)")
    parser.add_argument("--resume", type=Path, help="the folder of an interrupted run")
    arguments = parser.parse_args()
    settings = choose(arguments.preset)
    if arguments.space:
        settings = in_space(settings, arguments.space)
    state = process_state()
    with state.main_process_first():
        if (built := ensure_dataset(settings)) is not None:
            print(built)
    prepare_space(settings)
    run_dir = train_diffusion(settings, arguments.resume)
    if state.is_main_process:
        print("trained:", run_dir)


if __name__ == "__main__":
    with exit_with_the_sentence():
        main()
