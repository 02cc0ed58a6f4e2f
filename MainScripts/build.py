"""Build a dataset from a terminal: on this machine, in parts by any scheduler, or by Ray.

    python MainScripts/build.py --preset BASE                   # all of it, here
    python MainScripts/build.py --preset BASE --shard 3/16      # one part of sixteen, on any machine
    python MainScripts/build.py --preset BASE                   # a last call, when all are done, joins them
    python MainScripts/build.py --preset BASE --executor ray    # on RAY_ADDRESS's machines, or all cores here
    python MainScripts/build.py --preset CPU --latents          # its latents, likewise in parts or by Ray

All machines see the music and `Data` at the same paths. Parts may run at the same time, and again after a
failure; the last call makes what is missing. Every way gives the same dataset, byte for byte.
"""

import argparse
import re
from dataclasses import replace

from Conf import PRESETS, choose
from Libraries.Dataset import build, build_part
from Libraries.Dataset.Manifest import EXECUTORS
from Libraries.Disk import exit_with_the_sentence
from Libraries.Runs import latent_plan, music_plan, open_codec


def main() -> None:
    """Read the arguments; build the dataset, or one part of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="BASE")
    parser.add_argument("--shard", type=part_of_parts, help="one part: 1/16 to 16/16 (default: all, joined)")
    parser.add_argument("--executor", choices=EXECUTORS, help="default: the preset's")
    parser.add_argument("--latents", action="store_true", help="encode the dataset by its autoencoder")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a dataset of other settings or files"
    )
    arguments = parser.parse_args()
    settings = choose(arguments.preset)
    if arguments.executor:
        settings = replace(settings, dataset=replace(settings.dataset, executor=arguments.executor))
    plan = latent_plan(settings, open_codec(settings)) if arguments.latents else music_plan(settings)
    if arguments.shard is None:
        print(build(plan, arguments.overwrite))
        return
    files = build_part(plan, *arguments.shard, arguments.overwrite)
    part, parts = arguments.shard
    print(f"part {part} of {parts}: {files} files; when all parts are done, run this again without --shard")


def part_of_parts(text: str) -> tuple[int, int]:
    """Return the numbers of a text such as "3/16"."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    part, parts = map(int, found.groups()) if found else (0, 0)
    if not 1 <= part <= parts:
        raise argparse.ArgumentTypeError(f"{text!r} is no part: of sixteen they are 1/16 to 16/16")
    return part, parts


if __name__ == "__main__":
    with exit_with_the_sentence():
        main()
