"""Build the dataset of your music or the demo music: here, in parts by any scheduler, or by Ray.

    ma-ddpm prepare --music-dir ~/music                          # all of it, here
    ma-ddpm prepare --preset BASE --shard 3/16                   # one part of sixteen, on any machine
    ma-ddpm prepare --preset BASE                                # a last call, when all are done, joins them
    ma-ddpm prepare --preset BASE --dataset.executor ray         # on RAY_ADDRESS's machines, or here
    ma-ddpm prepare --preset CPU --latents                       # its latents, likewise in parts or by Ray

All machines see the music and `Data` at the same paths. Parts may run at the same time, and again after a
failure; the last call makes what is missing. Every way gives the same dataset, byte for byte.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from Commands.Options import AllSettings, read_settings
from Libraries.Dataset import build, build_part
from Libraries.Runs import latent_plan, music_plan, open_codec


@dataclass(frozen=True)
class Prepare:
    """The options.

    Raises:
        ValueError: there is no such part.
    """

    settings: AllSettings
    shard: str | None = None  # one part: 1/16 to 16/16; None: all, joined
    latents: bool = False  # encode the dataset by its autoencoder
    overwrite: bool = False  # replace a dataset of other settings or files

    def __post_init__(self):
        if self.shard is not None:
            part_of_parts(self.shard)


def main(arguments: Sequence[str]) -> None:
    """Build the dataset, or one part of it."""
    options = read_settings(Prepare, arguments, __doc__)
    settings = options.settings
    plan = latent_plan(settings, open_codec(settings)) if options.latents else music_plan(settings)
    if options.shard is None:
        print(build(plan, options.overwrite))
        return
    part, parts = part_of_parts(options.shard)
    files = build_part(plan, part, parts, options.overwrite)
    print(f"part {part} of {parts}: {files} files; when all parts are done, run this again without --shard")


def part_of_parts(text: str) -> tuple[int, int]:
    """Return the numbers of a text such as "3/16"; a ValueError says what is wrong with it."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    part, parts = map(int, found.groups()) if found else (0, 0)
    if not 1 <= part <= parts:
        raise ValueError(f"{text!r} is no part: of sixteen they are 1/16 to 16/16")
    return part, parts
