"""Measure an autoencoder: what its reconstructions lose, what its latent holds and what it costs.

Originals and reconstructions pass through the same decoder to audio, so that the figures measure the
autoencoder and not the inverse transform.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Evaluation.Reference import spread_clips
from Libraries.Evaluation.Samples import save_clips, save_measures
from Libraries.Evaluation.VAEChecks import (
    Check,
    band_errors,
    check_bands,
    check_collapse,
    check_decoder,
    check_standard,
    kl_per_channel,
)
from Libraries.Measures import Yardstick
from Libraries.Networks.Catalogue import count_parameters
from Libraries.Plots.CurvePlots import plot_band_errors, plot_latents
from Libraries.Plots.SpectrogramPlots import plot_reconstructions, plot_tensors, save_figure
from Libraries.Runs.Autoencoding import LatentCodec
from Libraries.Sampling.Editing import slerp
from Libraries.Sound.Metrics import COMPARED_HZ, log_spectral_distance, mel_error
from Libraries.Utils import SampleNoise

WALK_STEPS = 6
PRIOR_SEEDS = range(8)


def reconstruct(codec: LatentCodec, x0: Tensor) -> Tensor:
    """Return x0 (N, C, F, T) encoded to posterior means and decoded."""
    return codec.decode(codec.encode(x0))


def walk(codec: LatentCodec, first: Tensor, last: Tensor, count: int = WALK_STEPS) -> Tensor:
    """Return `count` spectrograms, each (C, F, T), interpolated in the latent from one clip to another."""
    a, b = codec.encode(torch.stack([first, last]))
    return codec.decode(torch.stack([slerp(a, b, weight) for weight in torch.linspace(0, 1, count).tolist()]))


def from_prior(codec: LatentCodec, seeds=PRIOR_SEEDS) -> Tensor:
    """Decode standard normal latents, one per seed: what the codec generates without a latent model."""
    return codec.decode(SampleNoise(seeds)(codec.shape))


def run_checks(codec: LatentCodec, x0: Tensor) -> list[Check]:
    """Run every check of VAEChecks on two or more clips x0 (N, C, F, T)."""
    z = codec.encode(x0)
    return [
        check_collapse(codec.posterior(x0)),
        check_standard(z),
        check_decoder(codec.decode, z, x0),
        check_bands(x0, codec.decode(z), codec.spectrogram.config),
    ]


def reconstruction_metrics(
    codec: LatentCodec, sound: dict[str, Tensor], x0: Tensor, reconstruction: Tensor
) -> dict[str, float]:
    """Return what each reconstruction loses, and the compression that this buys.

    Args:
        sound: waveforms (N, channels, L) named "originals" and "reconstructions".
        x0, reconstruction: the same as spectrograms (N, C, F, T).

    Returns:
        log_spectral_distance and mel_error in dB, mean_absolute_error of normalised values, compression and
        parameters.
    """
    config = codec.spectrogram.config
    compared = config.sample_rate, min(COMPARED_HZ, config.kept_frequency)
    pair = sound["originals"], sound["reconstructions"]
    return {
        "log_spectral_distance": log_spectral_distance(*pair, *compared).mean().item(),
        "mel_error": mel_error(*pair, *compared).mean().item(),
        "mean_absolute_error": (reconstruction - x0).abs().mean().item(),
        "compression": codec.compression,
        "parameters": count_parameters(codec.vae),
    }


def codec_seconds(codec: LatentCodec, x0: Tensor, repeats: int = 5) -> dict[str, float]:
    """Return the median seconds to encode and to decode one clip of x0 (N, C, F, T), after a warm-up."""
    clip = x0[:1]
    z = codec.encode(clip)
    return {
        "encode_seconds": _median_seconds(lambda: codec.encode(clip), repeats),
        "decode_seconds": _median_seconds(lambda: codec.decode(z), repeats),
    }


def evaluate_vae(codec: LatentCodec, yardstick: Yardstick, real: SpectrogramDataset, folder: Path) -> dict:
    """Reconstruct real clips, write audio and pictures to `folder`, and return the figures.

    The keys are those of `reconstruction_metrics`, `Measures.summary` and `codec_seconds`, and `checks`, one
    sentence per check. All measures are in measures.md, measures.json and measures.png. Reconstructions are
    near to their own originals, so without loss they are below the floor, which other music gives.

    Args:
        yardstick: `make_yardstick` of this split, whose clips are reconstructed.
        real: the split.

    Raises:
        LeakageError: the autoencoder was trained on pieces of this split.
    """
    codec.require_unheard(real.folder)
    x0 = spread_clips(real, len(yardstick.reference))
    reconstruction = reconstruct(codec, x0)
    sound = {"originals": codec.to_audio(x0), "reconstructions": codec.to_audio(reconstruction)}
    rate = codec.spectrogram.config.sample_rate
    for kind, waveforms in sound.items():
        names = [f"{i:04d}-{kind.removesuffix('s')}" for i in range(len(x0))]
        save_clips(waveforms, names, folder / "audio", rate)
    save_pictures(codec, x0, reconstruction, folder)
    measures = yardstick.measure(sound["reconstructions"], yardstick.pieces)
    save_measures(measures, folder, "Reconstructions against real clips")
    return {
        **reconstruction_metrics(codec, sound, x0, reconstruction),
        **measures.summary(),
        **codec_seconds(codec, x0),
        "checks": [check.sentence for check in run_checks(codec, x0)],
    }


def save_pictures(codec: LatentCodec, x0: Tensor, reconstruction: Tensor, folder: Path) -> None:
    """Draw reconstructions, latents, errors by frequency, a walk and random latents to `folder`."""
    config, kl = codec.spectrogram.config, kl_per_channel(codec.posterior(x0))
    steps = walk(codec, x0[0], x0[-1])
    names = [f"{fraction:.0%} of the way" for fraction in torch.linspace(0, 1, len(steps)).tolist()]
    figures = {
        "reconstructions": plot_reconstructions(x0, reconstruction, config, "Originals and reconstructions"),
        "latents": plot_latents(codec.encode(x0), kl, "Latents of the test split"),
        "bands": plot_band_errors(*band_errors(x0, reconstruction, config), "Error by frequency"),
        "walk": plot_tensors(steps, names, config, "From one clip to another", columns=len(steps)),
        "prior": plot_tensors(
            from_prior(codec), [f"seed {seed}" for seed in PRIOR_SEEDS], config, "Random latents, decoded"
        ),
    }
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")


def _median_seconds(call: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
