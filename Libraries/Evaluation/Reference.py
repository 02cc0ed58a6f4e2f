"""The real music that clips are measured against.

Real clips that pass through the same decoder at the same level leave only the model to be judged, neither the
inverse transform nor the loudness (`make_yardstick`). Against the recordings themselves, what the spectrogram
and the autoencoder lose shows as well (`against_recordings`).
"""

from collections.abc import Callable

from torch import Tensor

from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Measures import POOL, Described, Measures, Yardstick, sets_table
from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.Preparation import load_split_clips
from Libraries.Runs.Settings import Settings, music_folder
from Libraries.Utils import spread_indices

SHOWN = ("kernel distance", "note length", "note steadiness", "distance to the grid")
LEVEL_OF_EVERY = 8  # clips, since decoding takes its time
GENERATED = "generated"
THROUGH = {  # what a space adds to the spectrogram
    "latent": "and through the autoencoder",
    "small": "and through the low resolution and the upsampler",
}


def spread_clips(dataset: SpectrogramDataset, count: int) -> Tensor:
    """Return `count` clips spread evenly over a split (all if there are fewer): x0 (N, C, F, T)."""
    return dataset.__getitems__(spread_indices(len(dataset), count))[0]


def make_yardstick(
    to_audio: Callable[[Tensor], Tensor], train: SpectrogramDataset, real: SpectrogramDataset, count: int
) -> Yardstick:
    """Describe the real music that sets of `count` clips are measured against.

    Args:
        to_audio: decodes x0 to waveforms, as it decodes the clips that are measured.
        train: the training split; of it 2·count clips, spread evenly, give the floors and are searched for
            copies.
        real: the split to compare with, of which `count` clips are taken, spread evenly.

    Raises:
        ValueError: a split has fewer than two clips.
    """
    for split in (train, real):
        if len(split) < 2:
            raise ValueError(
                f"the {split.split} split of {split.folder} has {len(split)} clips; measuring needs two or "
                "more: add music, or change dataset.split and build the dataset again"
            )
    reference, training = (
        to_audio(spread_clips(split, clips)) for split, clips in ((real, count), (train, POOL * count))
    )
    pieces = [real.sources[index] for index in spread_indices(len(real), count)]
    return Yardstick(reference, training, real.spectrogram_config.sample_rate, pieces, seed=0)


def against_recordings(
    model: DiffusionRun,
    settings: Settings,
    yardstick: Yardstick,
    generated: Described,
    real: SpectrogramDataset,
) -> dict[str, Measures]:
    """Measure real clips after each stage, and generated ones, against the recordings of a split.

    The recordings are brought to the level at which the model decodes.

    Args:
        settings: say where the music is.
        yardstick: `make_yardstick` for this model and split; it has real clips through the spectrogram.
        generated: from `yardstick.describe`.
        real: the split.

    Returns:
        Measures by stage; none if the music is not here any more (`missing_music`).
    """
    if missing_music(settings, real):
        return {}
    count = len(yardstick.reference)
    x0 = spread_clips(real, count)
    level = _level(model.to_audio(x0[::LEVEL_OF_EVERY])).median().item()
    reference, training = (
        at_level(
            load_split_clips(settings, split, clips)[..., : model.spectrogram.config.kept_samples], level
        )
        for split, clips in ((real.split, count), ("train", POOL * len(generated)))
    )
    recorded = Yardstick(reference, training, yardstick.sample_rate, yardstick.pieces, yardstick.seed)
    stages = {"real clips through the spectrogram": yardstick.reference}
    if settings.space in THROUGH:
        decoded = model.to_audio(model.decode(model.encode(x0)))
        stages[THROUGH[settings.space]] = yardstick.describe(decoded)
    found = {name: recorded.compare(own, yardstick.pieces) for name, own in stages.items()}
    return found | {GENERATED: recorded.compare(generated)}


def recordings_table(stages: dict[str, Measures], settings: Settings, real: SpectrogramDataset) -> str:
    """Return `against_recordings` as a Markdown table with a heading, or the sentence why there is none."""
    if not stages:
        return f"Not measured against the recordings: {missing_music(settings, real)}."
    text = "Against the recordings themselves, so that what the spectrogram loses shows too:"
    return f"{text}\n\n{sets_table('stage', stages, SHOWN)}"


def missing_music(settings: Settings, real: SpectrogramDataset) -> str:
    """Return which file of a split's music is missing, and where it was looked for; "" if all are here."""
    folder = music_folder(settings)
    missing = next((source for source in real.sources if not (folder / source).exists()), None)
    return "" if missing is None else f"{missing} of the dataset's music is not in {folder}"


def _level(waveforms: Tensor) -> Tensor:
    """Return the root mean square of each waveform (N, C, L), over all channels: (N, 1, 1)."""
    return waveforms.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-6)


def at_level(waveforms: Tensor, level: float) -> Tensor:
    """Return waveforms (N, C, L), each scaled to this root mean square over all channels."""
    return waveforms * (level / _level(waveforms))
