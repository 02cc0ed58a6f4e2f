"""What can be said of one piece of music: its quantities beside those of real clips, and the nearest clip.

The yardstick's distances are between sets. Of one piece there are the quantities that it compares.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Evaluation.Reference import spread_clips
from Libraries.Evaluation.Samples import nearest_in_training
from Libraries.Measures import Described, Values, describe, load_tagger, markdown, number
from Libraries.Measures.Description import STEREO_UNITS, UNITS
from Libraries.Runs.DiffusionRun import DiffusionRun

REAL_CLIPS = 32  # of the test split, to compare with: a table of seconds, not of minutes


@dataclass(frozen=True)
class Nearest:
    """The training clip that is nearest to a clip (`Samples.nearest_in_training`)."""

    x0: Tensor  # (C, F, T)
    source: str  # the file of music that it is from
    distance: float


def describe_music(waveform: Tensor, sample_rate: int) -> Described:
    """Describe one piece (C, L) float32 in [-1, 1] as the measures do."""
    return describe(waveform[None], sample_rate, load_tagger())


def describe_real(model: DiffusionRun) -> Described:
    """Describe clips of the test split of the run's dataset, decoded as generated ones are.

    Raises:
        DatasetError: the dataset is not here.
    """
    test = SpectrogramDataset(model.run.settings.dataset_dir, "test")
    rate = model.spectrogram.config.sample_rate
    return describe(model.to_audio(spread_clips(test, REAL_CLIPS)), rate, load_tagger())


def music_table(music: Described, real: Described | None = None) -> str:
    """Return the quantities of one piece as a Markdown table, the median of each.

    Args:
        real: real clips to compare with, whose median and middle nine tenths have a column.
    """
    head = ["measure", "this music", *(["real clips: median (5 to 95 %)"] if real else [])]
    rows = []
    for name, unit in (UNITS | STEREO_UNITS).items():
        if name in music.values:
            line = [f"{name} ({unit})" if unit else name, number(music.values[name].median())]
            rows.append([*line, *([_spread(real.values[name])] if real else [])])
    return markdown(head, rows)


def nearest_clip(model: DiffusionRun, x0: Tensor) -> Nearest:
    """Return the training clip of the run's dataset that is nearest to x0 (1, C, F, T).

    Raises:
        DatasetError: the dataset is not here.
    """
    train = SpectrogramDataset(model.run.settings.dataset_dir, "train")
    distance, index = nearest_in_training(x0, train)
    return Nearest(train[int(index)][0], train.sources[int(index)], distance.item())


def _spread(values: Values) -> str:
    """Return median and middle nine tenths of the clips' medians."""
    medians = [values.values[values.clip == clip] for clip in range(values.clips)]
    medians = [np.median(own) for own in medians if len(own)]
    if not medians:
        return number(None)
    low, middle, high = np.percentile(medians, [5, 50, 95])
    return f"{number(middle)} ({number(low)} to {number(high)})"
