"""Rules on the data: their range and level, how many clips there are, who shares pieces, what decoding loses.

Each rule takes a `Case` and returns a `Finding`, or None if what it looked at is sound.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from Libraries.Dataset.Manifest import clips_of, piece_of
from Libraries.Doctor.Case import CLIPS, SEARCHED, Case, Finding
from Libraries.Measures import hear, kernel_distance, load_tagger
from Libraries.Measures.Copies import shifted_distances
from Libraries.Measures.Sound import CLIPPED
from Libraries.Sound.Metrics import spectral_convergence
from Libraries.Sound.SpectrogramConfig import RANGES
from Libraries.Sound.Stereo import downmix

FILLED = 0.9  # of its range that half of the clips should reach: 8 dB of 80 is a matter of taste, more is not
QUIET_FILLED = 0.75  # that nine in ten should reach
LEVEL_STD = 0.5  # deviations that a clip's mean may be from the set's, in unit variance
CLIPPED_SAMPLES = 1e-3  # of a clip: a mastered peak touches full scale now and then, 1 in 1000 is cut flat
CLIPPED_CLIPS = 0.1  # of the clips; fewer are an accident of one recording
QUIETEST_DB = -60.0  # of full scale, RMS: below it normalisation raises noise to full level
QUIET_CLIPS = 0.01  # of the clips
FEWEST_CLIPS = 100  # for training; with so few a network of any use remembers each (Gu et al. 2023)
FEWEST_HELD_OUT = 8  # for validation; a mean over fewer says little
COPY = 0.12  # RMS distance in deviations of the data: copies have 0 to .06, unheard clips .45 up
DECODED = 16  # recordings for the round trip
WRONG = 0.3  # spectral convergence of the round trip; magnitude 480/288 has .37 to .46, mel .12 to .19
HEARD = 50.0  # kernel distance of decoded clips from the originals; mel of the preset CPU has -5, bands 93


def data_in_zero_to_one(case: Case) -> Finding | None:
    """Find data that are never negative under noise that is as often negative as positive.

    Journal, 03.03.2025: "i had to switch the training data interval to [-1 1] rather than [0, 1] as the noise
    added is of form N(0, I)"; asked in teticio/audio-diffusion#15.
    """
    x = case.encoded
    low, mean, std = x.min().item(), x.mean().item(), x.std().item()
    if low < 0:
        return None
    return Finding(
        f"the data are never negative (mean {mean:.2f}, deviation {std:.2f}), but the noise is N(0, 1)",
        "set value_range='minus_one_to_one' in spectrogram and build the dataset again",
        {"minimum": low, "mean": mean, "deviation": std},
    )


def one_scale_for_all_clips(case: Case) -> Finding | None:
    """Find clips of very different level, as one minimum and maximum for the whole set leave them.

    Journal, 09.03.2025: "my normalization might be bad [...] due to the normalization taking the min and max
    value of a whole set rather than the individual sample".
    """
    if case.manifest["settings"]["spectrogram"]["normalisation"] == "per_sample":
        return None
    x = case.clips("train", 4 * CLIPS)
    advice = "set normalisation='per_sample' in spectrogram and build the dataset again"
    value_range = case.settings.spectrogram.value_range
    if value_range == "unit_variance":
        apart = (x.mean((1, 2, 3)) - x.mean()).abs().quantile(0.9).item()
        sentence = f"the levels of clips differ: of one in ten the mean is {apart:.2f} deviations off"
        return Finding(sentence, advice, {"apart": apart}) if apart > LEVEL_STD else None
    low, high = RANGES[value_range]
    reached = (x.amax((1, 2, 3)) - low) / (high - low)
    tenth, median = reached.quantile(torch.tensor([0.1, 0.5])).tolist()
    if tenth >= QUIET_FILLED and median >= FILLED:
        return None
    sentence = (
        f"one scale for the whole set leaves clips at different levels: half of them reach {median:.0%} of "
        f"the range at most, one in ten {tenth:.0%}"
    )
    return Finding(sentence, advice, {"median": median, "tenth": tenth})


def near_silent_clips(case: Case) -> Finding | None:
    """Find clips that are 60 dB below full scale.

    Normalisation of a clip without music brings its noise to full level, and that is learned as music;
    jneem/nnnoiseless#27: "I had to preprocess the files to exclude the silent parts".
    """
    level = 20 * case.recordings.square().mean((1, 2)).sqrt().clamp(min=1e-10).log10()
    quiet = (level < QUIETEST_DB).float().mean().item()
    if quiet <= QUIET_CLIPS:
        return None
    return Finding(
        f"{quiet:.0%} of the training clips are nearly silent, {level.min():.0f} dB of full scale at the "
        "quietest, and their noise is learned as music",
        "raise silence_db in dataset (-50 drops such clips) and build the dataset again",
        {"fraction": quiet, "quietest_db": level.min().item()},
    )


def clipped_recordings(case: Case) -> Finding | None:
    """Find recordings that were cut off at full scale: their distortion is learned as timbre.

    A well-known fault of transfers and of loud masters.
    """
    fraction = (case.recordings.abs() >= CLIPPED).float().mean((1, 2))
    clipped = (fraction > CLIPPED_SAMPLES).float().mean().item()
    if clipped <= CLIPPED_CLIPS:
        return None
    return Finding(
        f"{clipped:.0%} of the training clips are clipped, with {fraction.max():.1%} of the samples of the "
        "worst at full scale",
        "use recordings that were made at a lower level, or leave these out",
        {"clips": clipped, "worst": fraction.max().item()},
    )


def too_few_clips(case: Case) -> Finding | None:
    """Find a set that a network remembers instead of learning from it.

    Journal, 23.02.2025 to 07.03.2025: trainings on 640 and 1,280 clips; Gu et al. 2023, "On memorization in
    diffusion models": the fewer the clips, the larger the part of the samples that are copies.
    """
    train, held_out = (len(clips_of(case.manifest, split)) for split in ("train", "validation"))
    if train >= FEWEST_CLIPS and held_out >= FEWEST_HELD_OUT:
        return None
    config = case.train
    passes = case.step * config.batch_size * config.grad_accumulation / max(train, 1)
    sentence = f"{train} clips to train on, each seen {passes:.0f} times or more, and {held_out} to validate"
    advice = f"add music: {FEWEST_CLIPS} clips to train on and {FEWEST_HELD_OUT} to validate are the least"
    return Finding(sentence, advice, {"train": train, "validation": held_out, "passes": passes})


def one_piece_in_two_splits(case: Case) -> Finding | None:
    """Find music on both sides of a split: the same name, the same file, or clips that are copies.

    Well known as leakage: where clips are dealt out one by one, validation cannot see memorising.
    """
    manifest = case.manifest
    prints = {source["file"]: source["fingerprint"] for source in manifest["sources"]}
    for identify in (piece_of, prints.__getitem__):
        if shared := _shared(manifest["clips"], identify):
            sentence = f"pieces in more than one split: {len(shared)}, such as {shared[0]}"
            return Finding(sentence, _SPLIT_ADVICE, {"pieces": len(shared)})
    distances = nearest_in_training(case, case.held_out)
    copies = int((distances < COPY).sum())
    if not copies:
        return None
    sentence = f"{copies} of {len(distances)} clips for validation and test are copies of training clips"
    return Finding(sentence, _SPLIT_ADVICE, {"copies": copies, "nearest": distances.min().item()})


_SPLIT_ADVICE = "give every recording of a piece the same file name, whatever its folder, and build again"


def representation_hard_to_invert(case: Case) -> Finding | None:
    """Find a representation that loses the music by itself, with no model between.

    Journal, 05.03.2025: "Tried mel spectograms but due to the bad reconstruction [...] stayed with stft
    diagrams", whose magnitudes 480/288 determine the sound no better.
    """
    recordings = case.recordings[:DECODED]
    spectrogram = case.run.spectrogram(device=case.device)
    rate = spectrogram.config.sample_rate
    decoded = spectrogram.decode(*spectrogram.encode_with_gain(recordings))
    kept = recordings[..., : decoded.shape[-1]]
    wrong = spectral_convergence(kept, decoded).mean().item()
    tagger = load_tagger()
    heard = [hear(tagger, downmix(waves), rate).embedding.numpy() for waves in (decoded, kept)]
    distance = kernel_distance(*heard)
    if wrong <= WRONG and distance <= HEARD:
        return None
    return Finding(
        f"to the spectrogram and back, with no model between, {wrong:.0%} of the magnitudes are wrong, and a "
        f"music tagger hears a difference (kernel distance {distance:.0f}; another set of the same music has "
        "20 to 40)",
        "compare representations in Preprocessing: longer windows, representation='mel' or 'bands', or "
        "another inverse",
        {"spectral_convergence": wrong, "kernel_distance": distance},
    )


def nearest_in_training(case: Case, x0: Tensor) -> Tensor:
    """Return how far each x0 (N, C, F, T) is from the nearest training clip, (N,), in deviations of the data.

    At the best shift in time, since training shifts clips; among 2,048 training clips at most.
    """
    known = case.clips("train", SEARCHED).flatten(1, 2)
    return shifted_distances(x0.flatten(1, 2), known).amin(1) / known.std()


def _shared(clips: Iterable[dict], identify) -> list[str]:
    """Return a file of each piece that is in more than one split."""
    splits, files = defaultdict(set), {}
    for clip in clips:
        piece = identify(clip["source"])
        splits[piece].add(clip["split"])
        files.setdefault(piece, clip["source"])
    return sorted(files[piece] for piece, found in splits.items() if len(found) > 1)


DATA_RULES = (
    one_scale_for_all_clips,
    near_silent_clips,
    clipped_recordings,
    too_few_clips,
    one_piece_in_two_splits,
    representation_hard_to_invert,
)
