"""Train on a folder of your own music, from the weights that come with the repository.

    ma-ddpm tune ~/my-songs
    ma-ddpm tune ~/my-songs --train.num-steps 3000 --resume newest
    ma-ddpm generate -o song.flac --run newest --seconds 60

All options of `train` are here too; the preset is CPU, which has released weights. The dataset gets the name
of the folder, unless `--dataset.name` gives another.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from Commands.Options import AllSettings, Folder, read_settings, refuse
from Commands.Train import train
from Conf import choose
from Libraries.Runs import changed


@dataclass(frozen=True)
class Tune:
    """The options."""

    music: Folder  # folder of your music; its first-level subfolders are the labels
    settings: AllSettings
    resume: str | None = None  # as in `train`


def main(arguments: Sequence[str]) -> None:
    """Build the dataset of the folder if it is missing, and train from the weights of `start`."""
    options = read_settings(Tune, arguments, __doc__, preset="CPU")
    settings, folder = options.settings, options.music.expanduser().resolve()
    if settings.start is None:
        refuse(ValueError("these settings begin with random weights: name a run in --start, or use `train`"))
    changes = {"music_dir": folder}
    if settings.dataset.name == choose(settings.preset).dataset.name:
        changes["dataset.name"] = re.sub(r"[^\w.-]+", "-", folder.name)
    train(changed(settings, changes), options.resume)
