"""The journal that this repository grew from, as experiments: what it tried, and the settings to repeat it.

    for experiment in journal_experiments(conf).values(): ...

The first variant of each is the preset itself; the others name the settings they change, as in `Conf.py`. The
preset TRIAL and the journal's autoencoders are also here, because nothing else needs them.
"""

import math
from dataclasses import replace

from Conf import CPU, ORIGIN, PRESETS, in_space
from Libraries.Networks import as_journal, journal_network
from Libraries.Runs.Settings import Settings
from Libraries.Studies.Experiments import Change, Experiment, Trials
from Libraries.Utils import require

PRESET = Change({})

# TRIAL: each experiment in about ten minutes on two cores: one second at 8 kHz.
TRIAL = replace(
    CPU,
    preset="TRIAL",
    demo_music=replace(CPU.demo_music, clips=800, sample_rate=8_000),
    spectrogram=replace(
        CPU.spectrogram,
        representation="bands",  # as BASE
        sample_rate=8_000,  # Hz
        clip_seconds=1.024,  # s = 64 hops
        n_fft=512,  # samples = 64 ms
        win_length=512,
        hop_length=128,  # samples = 16 ms
        n_bands=64,
        narrow_frequency=750.0,  # Hz
        max_frequency=4_000.0,  # Hz
    ),
    dataset=replace(CPU.dataset, name="trial"),
    space="spectrogram",
    start=None,
    network=replace(
        as_journal(in_space(CPU, "spectrogram").network),  # with every option that the journal varied
        channels=(16, 32, 64),
        head_dim=16,
        embedding_dim=128,
    ),
    train=replace(
        CPU.train, num_steps=600, validate_every=200, num_validation_clips=32, save_every=300, power_ema=()
    ),
    evaluation=replace(CPU.evaluation, num_samples=96),
)

TRIALS = Trials(
    seeds=(0, 1, 2),  # one training per seed and variant
    clips=256,  # generated per training to measure it
    names=(),  # which run in the notebook's last cell; (): all
)
TRIALS_OF = {
    "TRIAL": replace(TRIALS, clips=96),
    "SMOKE": replace(TRIALS, seeds=(0, 1), clips=4, names=("06-norm",)),
}

# The autoencoder that works, at 8 to 64 spectrogram values per latent value, and the origin's three.
_RESIDUAL = replace(CPU.vae.network, latent_channels=4)
_CONV = replace(
    _RESIDUAL,
    kind="conv",
    channels=(32, 64, 128),
    row_strides=(2, 2, 2),
    frame_strides=(2, 2, 2),
    latent_channels=64,  # 8·8 values to 64: the latent is as large as the spectrogram
)
VAES = {
    "linear": replace(_CONV, kind="linear", latent_channels=256),  # the whole latent
    "conv": _CONV,
    "conv_v2": ORIGIN.vae.network,  # 16·16 values to 128: half as large
    "residual_8": replace(_RESIDUAL, latent_channels=8),
    "residual_16": _RESIDUAL,
    "residual_32": replace(_RESIDUAL, latent_channels=2),
}


def choose_experiments(preset: str) -> tuple[Settings, Trials]:
    """Return the settings of a preset (TRIAL included) in the space of spectrograms, and its `Trials`.

    Raises:
        ValueError: there is no such preset; the message lists the known ones.
    """
    known = {**PRESETS, "TRIAL": TRIAL}
    require(known, preset=preset)
    settings = TRIAL
    if preset != "TRIAL":
        settings = in_space(known[preset], "spectrogram")
        settings = replace(settings, network=as_journal(settings.network))
    return settings, TRIALS_OF.get(preset, TRIALS)


def journal_experiments(conf: Settings) -> dict[str, Experiment]:
    """Return the experiments by name, for any preset with the networks and data of BASE."""
    experiments = (
        *_data_and_process(),
        *_network(conf),
        *_training(conf),
        *_representations(conf),
        *_costs(conf),
    )
    return {experiment.name: experiment for experiment in sorted(experiments, key=lambda e: e.name)}


def _data_and_process() -> tuple[Experiment, ...]:
    return (
        Experiment(
            "01-output",
            "Sigmoid or linear output",
            "a sigmoid as last layer made the first outputs noise (03.03.2025).",
            {"linear": PRESET, "sigmoid": Change({"network.output": "sigmoid_experiment"})},
        ),
        Experiment(
            "02-range",
            "Data in [0, 1] or [-1, 1]",
            "the data had to be in [-1, 1], as the noise is N(0, I) (03.03.2025).",
            {"[-1, 1]": PRESET, "[0, 1]": Change({"spectrogram.value_range": "zero_to_one"})},
        ),
        Experiment(
            "03-normalisation",
            "Min-max over the whole set or over each sample",
            "the range of the whole set lets samples differ a lot: a bad output range (09.03.2025).",
            {"each sample": PRESET, "whole set": Change({"spectrogram.normalisation": "dataset"})},
        ),
        Experiment(
            "04-schedule",
            "Linear or cosine schedule, predicting v or the noise",
            "the cosine schedule is not working somehow, so it is linear now (06.03.2025).",
            {
                "cosine, v": PRESET,
                "linear, v": Change({"diffusion.schedule": "linear"}),
                "cosine, noise": Change({"diffusion.prediction_type": "epsilon"}),
                "linear, noise": Change(
                    {"diffusion.schedule": "linear", "diffusion.prediction_type": "epsilon"}
                ),
            },
        ),
    )


def _network(conf: Settings) -> tuple[Experiment, ...]:
    levels = tuple(range(len(conf.network.channels)))
    full = conf.network.attention_levels
    everywhere = {
        "network.head_dim": math.gcd(*conf.network.channels),  # so that it fits every level
        "network.attention_levels": full,
        "network.linear_attention_levels": tuple(level for level in levels if level not in full),
    }
    without = {"network.attention_levels": ()}
    same_size = ("parameters",)
    return (
        Experiment(
            "05-blocks",
            "Attention, squeeze-and-excitation or double convolutions, at equal parameters",
            "attention cost too much, squeeze-and-excitation gave no meaningful data, so double convolutions "
            "(06.03.2025).",
            {
                "double conv": Change({"network.block": "double_conv", **without}),
                "double conv, SE": Change({"network.block": "double_conv_se", **without}, same_size),
                "double conv, attention": Change({"network.block": "double_conv", **everywhere}, same_size),
                "the preset": Change({}, same_size),
            },
        ),
        Experiment(
            "06-norm",
            "BatchNorm or GroupNorm",
            "BatchNorm seemed to make inference numerically unstable; back to GroupNorm(8) (15.03.2025).",
            {"GroupNorm(8)": PRESET, "BatchNorm": Change({"network.norm": "batch"})},
        ),
        Experiment(
            "07-activation",
            "GELU or SiLU",
            "from GELU to SiLU, to see whether it makes a difference (15.03.2025).",
            {"SiLU": PRESET, "GELU": Change({"network.activation": "gelu"})},
        ),
        Experiment(
            "08-time",
            "The time by modulation or by addition",
            "modulation gave the lowest loss (17.03.2025), and was taken out again (20.03.2025).",
            {"modulation": PRESET, "addition": Change({"network.time_injection": "add"})},
        ),
        Experiment(
            "09-skips",
            "Skips: of every layer, a block, a level, none, and the extra one",
            "the extra skip gave results again, not stable and with the highs removed (24.03.2025).",
            {
                "every layer": PRESET,
                **(
                    {"a block": Change({"network.skips": "block"})}
                    if conf.network.blocks_per_level > 1
                    else {}
                ),
                "a level": Change({"network.skips": "level"}),
                "a level, extra": Change({"network.skips": "level", "network.first_skip": True}),
                "none": Change({"network.skips": "none"}),
            },
        ),
    )


def _training(conf: Settings) -> tuple[Experiment, ...]:
    rate, batch = conf.train.learning_rate, conf.train.batch_size
    return (
        Experiment(
            "10-learning-rate",
            "Learning rates and their schedules",
            "a higher learning rate seemed beneficial (15.03.2025), then a schedule of its own (17.03.2025); "
            "early on the loss spiked at epoch 50 and stayed.",
            {
                f"cosine, {rate:g}": PRESET,
                f"cosine, {rate * 10:g}": Change({"train.learning_rate": rate * 10}),
                f"cosine, {rate / 10:g}": Change({"train.learning_rate": rate / 10}),
                f"constant, {rate:g}": Change({"train.lr_schedule": "constant"}),
                f"step, {rate:g}": Change({"train.lr_schedule": "step"}),
            },
        ),
        Experiment(
            "11-accumulation",
            "Gradient accumulation or the larger batch",
            "accumulation lets a small GPU train as if with a larger batch (03.03.2025); it must be equal.",
            {
                f"batch {batch}": Change({"train.mixed_precision": "no"}),
                f"batch {batch // 2}, accumulation 2": Change(
                    {
                        "train.mixed_precision": "no",
                        "train.batch_size": batch // 2,
                        "train.grad_accumulation": 2,
                    }
                ),
            },
        ),
    )


def _representations(conf: Settings) -> tuple[Experiment, ...]:
    n_fft = 2 * round(conf.spectrogram.hop_length * 5 / 6)  # the origin's window of 5/3 hops, such as 480/288
    short = {
        "spectrogram.n_fft": n_fft,
        "spectrogram.win_length": n_fft,
        "spectrogram.max_frequency": conf.spectrogram.sample_rate / 2,
    }
    # a learned phase fits only the preset's magnitudes
    plain = {"spectrogram.phase": "pghi"} if conf.spectrogram.phase == "learned" else {}
    short |= plain
    mdct = plain | {
        "spectrogram.compression": 0.5,
        "spectrogram.max_frequency": conf.spectrogram.sample_rate / 2,
    }
    return (
        Experiment(
            "12-representation",
            "Magnitudes, mel, complex values and MDCT, with the same network and steps",
            "mel reconstructs badly and compresses no better, so magnitudes of 480/288 (05.03.2025).",
            {
                "bands": PRESET,
                "magnitude": Change({"spectrogram.representation": "magnitude", **short}),
                "mel": Change({"spectrogram.representation": "mel", **plain}),
                "complex": Change({"spectrogram.representation": "complex", **short}),
                "MDCT": Change({"spectrogram.representation": "mdct", **mdct}),
            },
        ),
    )


def _costs(conf: Settings) -> tuple[Experiment, ...]:
    patches = {
        f"{size}x{size}": Change({"network.patch_size": (size, size)}, ("time",))
        for size in (1, 2, 4)
        if (size, size) != conf.network.patch_size
    }
    rows, frames = conf.network.patch_size
    unet_v0 = {"network": journal_network("unet_v0", conf.network.num_classes)}
    return (
        Experiment(
            "13-patches",
            "Patches of the stem at equal time",
            "the model is too large for the memory, and a sample took 47 minutes (03.03.2025).",
            {f"{rows}x{frames}": PRESET, **patches},
        ),
        Experiment(
            "14-unet-v0",
            "UNetV0 against this repository's network",
            "a new network after Flavio Schneider's had issues of size and memory (23.04.2025).",
            {
                "the preset": PRESET,
                "UNetV0, equal parameters": Change(unet_v0, ("parameters",)),
                "UNetV0, equal parameters and time": Change(unet_v0, ("parameters", "time")),
            },
        ),
    )
