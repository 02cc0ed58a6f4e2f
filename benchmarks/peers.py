"""This repository against its peers: the same clips, minutes, machine and number of steps; three seeds.

    python benchmarks/peers.py [--minutes 5] [--seeds 0 1 2] [--clips 48] [--steps 50] [--root folder]
                               [--only ours UNetV0] [--peer-learning-rate 1e-3]

Systems: ours on spectrograms and ours in latents, both as the CPU preset trains, the autoencoder's training
counted in the minutes; UNetV0 of a-unet and UNet2DModel of diffusers, trained and sampled as their authors do
(peer_systems.py), at the size of our network on spectrograms. All get the same batches of the CPU preset's
dataset, which is made first if it is not there. A timed start says how many steps fit into the minutes, so
that the schedules of the learning rate end with them; what the training then took is in the table.

The authors' learning rates are made for days; `--peer-learning-rate` gives the peers another, in a table of
its own.

Every system and seed is a process of its own, so that the peak of memory is its own. Results lie one file
each below `Results/peers`: a second call measures only what is missing.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from common import machine_line, make_dataset, peak_gigabytes, print_table
from torch import Tensor

from Conf import CPU, in_space
from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Diffusion import NoiseSchedule
from Libraries.Evaluation.Samples import distances, spread_clips
from Libraries.Networks.Catalogue import count_parameters
from Libraries.Runs.Autoencoding import LatentCodec, measure_latents, vae_recipe
from Libraries.Runs.Codec import Codec
from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.DiffusionTraining import diffusion_recipe
from Libraries.Runs.Recipe import Recipe, clip_loaders
from Libraries.Runs.Run import provenance
from Libraries.Runs.Settings import Settings, changed
from Libraries.Runs.Spaces import open_codec
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Training.Checkpoint import save_json
from Libraries.Training.Loop import fit
from Libraries.Training.RunLog import read_metrics
from Libraries.Training.Timing import synchronise
from Libraries.Training.TrainConfig import TrainConfig
from Libraries.Utils import SampleNoise, pick_device

OURS, OURS_LATENT = "ours", "ours, in latents"
PEER_NAMES = ("UNetV0", "UNet2DModel")
SYSTEMS = (OURS, OURS_LATENT, *PEER_NAMES)
TIMED_STEPS = 16  # of the start that says how many steps fit
HEADER = [
    "system",
    "M param.",
    "steps",
    "s/step",
    "trained s",
    "distance",
    "of the seeds",
    "s/clip",
    "peak GB",
]


@dataclass
class Trained:
    """A trained system: (seeds, sampler's steps) -> x0 (N, C, F, T) on the CPU, and what it cost."""

    sample: Callable[[range, int], Tensor]
    parameters: int
    train_steps: int  # of the diffusion
    train_seconds: float  # all of it, an autoencoder included
    seconds_per_step: float  # of the diffusion


def main() -> None:
    """Parse the arguments, measure what is missing, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, each system and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clips", type=int, default=48, help="made by each, and compared")
    parser.add_argument("--steps", type=int, default=50, help="of every sampler")
    parser.add_argument("--root", type=Path, default=CPU.root, help="where Data and Results lie")
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--peer-learning-rate", type=float, default=1e-4, help="default: their authors'")
    parser.add_argument("--measure", choices=SYSTEMS, help=argparse.SUPPRESS)  # one system, the first seed
    args = parser.parse_args()
    settings = replace(CPU, root=args.root)
    if args.measure:
        save_json(result_path(args, args.measure, args.seeds[0]), measure(settings, args))
        return
    make_dataset(settings)
    line = machine_line(pick_device())
    for seed in args.seeds:  # seed by seed, so that what slows the machine for a while hits all systems
        for system in args.only:
            if not result_path(args, system, seed).exists():
                run_in_fresh_process(args, system, seed)
    print(f"\n{line}\n{args.minutes:g} minutes each, {args.clips} clips, {args.steps} steps of the sampler\n")
    results = {system: [read_result(args, system, seed) for seed in args.seeds] for system in args.only}
    print_table(HEADER, [row(system, found) for system, found in results.items()])
    floor = next(iter(results.values()))[0]["train_to_test"]
    print(f"\nDistance of real training music, the floor: {floor:.2f}")


def result_path(args: argparse.Namespace, system: str, seed: int) -> Path:
    """Return where the result of one system and seed is kept; other options are another folder."""
    options = f"{args.minutes:g}min-{args.clips}clips-{args.steps}steps"
    if args.peer_learning_rate != 1e-4:
        options += f"-lr{args.peer_learning_rate:g}"
    return (
        args.root
        / "Results"
        / "peers"
        / options
        / f"{system.replace(', ', '-').replace(' ', '-')}-{seed}.json"
    )


def read_result(args: argparse.Namespace, system: str, seed: int) -> dict:
    return json.loads(result_path(args, system, seed).read_text(encoding="utf-8"))


def run_in_fresh_process(args: argparse.Namespace, system: str, seed: int) -> None:
    """Measure one system with one seed; its progress bars are shown."""
    options = {
        "--measure": system, "--seeds": seed, "--minutes": args.minutes, "--clips": args.clips,
        "--steps": args.steps, "--root": args.root, "--peer-learning-rate": args.peer_learning_rate,
    }  # fmt: skip
    print(f"{system}, seed {seed}", flush=True)
    command = [sys.executable, __file__, *(str(part) for pair in options.items() for part in pair)]
    if subprocess.run(command).returncode:
        raise SystemExit(f"measuring {system} with seed {seed} failed; run again to go on from there")


def measure(settings: Settings, args: argparse.Namespace) -> dict:
    """Train one system, sample and judge it; return what its file of results holds."""
    system, seed, seconds = args.measure, args.seeds[0], args.minutes * 60
    space = "latent" if system == OURS_LATENT else "spectrogram"
    settings, device = in_space(with_seed(settings, seed), space), pick_device()
    with tempfile.TemporaryDirectory() as folder:
        if system == OURS:
            trained = train_ours(settings, seconds, Path(folder), device)
        elif system == OURS_LATENT:
            trained = train_ours_in_latents(settings, seconds, Path(folder), device)
        else:
            trained = train_a_peer(settings, system, seconds, args.peer_learning_rate, device)
    peak = peak_gigabytes(device)
    first = seed * args.clips
    start = time.perf_counter()
    x0 = trained.sample(range(first, first + args.clips), args.steps)
    sampling = (time.perf_counter() - start) / args.clips
    costs = {name: value for name, value in vars(trained).items() if name != "sample"}
    return {
        "system": system, "seed": seed, "minutes": args.minutes, "sampler_steps": args.steps, **costs,
        "seconds_per_clip": sampling, "peak_gigabytes": peak, **judge(settings, x0), **provenance(),
    }  # fmt: skip


def with_seed(settings: Settings, seed: int) -> Settings:
    """Return the settings with this seed for weights, batches and noise."""
    return changed(settings, {"train.seed": seed, "vae.train.seed": seed})


def judge(settings: Settings, x0: Tensor) -> dict[str, float]:
    """Return the log-mel Frechet distances to the test split of samples and of real training clips."""
    train, test = (SpectrogramDataset(settings.dataset_dir, split) for split in ("train", "test"))
    spectrogram = Spectrogram(settings.spectrogram, train.typical_gain)
    clips = x0, spread_clips(train, len(x0)), spread_clips(test, len(x0))
    sound = [spectrogram.decode(x0) for x0 in clips]
    sets = {"samples": sound[0], "train": sound[1]}
    return distances(sets, sound[2], settings.spectrogram.sample_rate)


def row(system: str, found: list[dict]) -> list[str]:
    """Return a line of the table: means over the seeds, and the distance of each."""

    def mean(name: str) -> float:
        return statistics.fmean(result[name] for result in found)

    of_seeds = ", ".join(f"{result['samples_to_test']:.1f}" for result in found)
    return [
        system, f"{mean('parameters') / 1e6:.2f}", f"{mean('train_steps'):.0f}",
        f"{mean('seconds_per_step'):.3f}", f"{mean('train_seconds'):.0f}", f"{mean('samples_to_test'):.1f}",
        of_seeds, f"{mean('seconds_per_clip'):.3f}", f"{mean('peak_gigabytes'):.2f}",
    ]  # fmt: skip


def train_ours(settings: Settings, seconds: float, folder: Path, device: torch.device) -> Trained:
    """Train our network on spectrograms with `fit`, as the preset does."""
    codec = open_codec(settings)
    start_diffusion = functools.partial(fit_diffusion, settings, codec)
    config = with_steps(settings.train, seconds / timed_fit(start_diffusion, settings.train))
    start = time.perf_counter()
    network = start_diffusion(config, folder / "diffusion")
    elapsed = time.perf_counter() - start
    model = make_model(settings, network, device, codec)
    return Trained(
        functools.partial(sample_ours, settings, model), count_parameters(model.network),
        config.num_steps, elapsed, elapsed / config.num_steps,
    )  # fmt: skip


def train_ours_in_latents(settings: Settings, seconds: float, folder: Path, device: torch.device) -> Trained:
    """Train an autoencoder and then a diffusion in its latents, with the preset's ratio of their steps."""
    start_vae = functools.partial(fit_vae, settings)
    untrained = make_codec(settings, vae_recipe(settings).network(), device)
    vae_step = timed_fit(start_vae, settings.vae.train)
    step = timed_fit(functools.partial(fit_diffusion, settings, untrained), settings.train)
    steps = settings.vae.train.num_steps, settings.train.num_steps
    share = seconds / (steps[0] * vae_step + steps[1] * step)
    start = time.perf_counter()
    codec = make_codec(
        settings, start_vae(with_steps(settings.vae.train, share * steps[0]), folder / "vae"), device
    )
    config, middle = with_steps(settings.train, share * steps[1]), time.perf_counter()
    network = fit_diffusion(settings, codec, config, folder / "diffusion")
    end = time.perf_counter()
    model = make_model(settings, network, device, codec)
    parameters = count_parameters(model.network) + count_parameters(codec.vae)
    return Trained(
        functools.partial(sample_ours, settings, model), parameters,
        config.num_steps, end - start, (end - middle) / config.num_steps,
    )  # fmt: skip


def fit_diffusion(settings: Settings, codec: Codec, config: TrainConfig, folder: Path):
    """Train a new diffusion network in `folder`; return it with its EMA weights."""
    return fit_in(folder, diffusion_recipe(changed(settings, {"train": config}), codec))


def fit_vae(settings: Settings, config: TrainConfig, folder: Path):
    """Train a new autoencoder in `folder`; return it with its EMA weights."""
    return fit_in(folder, vae_recipe(changed(settings, {"vae.train": config})))


def fit_in(folder: Path, recipe: Recipe):
    """Train by a recipe in `folder`, which is no run; return the network with its EMA weights."""
    folder.mkdir(exist_ok=True)
    return fit(recipe.network(), recipe.loss, recipe.loaders, recipe.train, folder)


def with_steps(config: TrainConfig, steps: float) -> TrainConfig:
    """Return the training with another number of steps, saved and validated at its end alone."""
    steps = max(10, round(steps))
    return replace(config, num_steps=steps, validate_every=steps, save_every=steps)


def timed_fit(train: Callable[[TrainConfig, Path], object], config: TrainConfig) -> float:
    """Return the median seconds of a step of `fit`, from the first steps of a training thrown away."""
    timed = replace(with_steps(config, TIMED_STEPS + 4), log_every=2, warmup_steps=TIMED_STEPS)
    with tempfile.TemporaryDirectory() as folder:
        train(timed, Path(folder))
        rows = read_metrics(Path(folder) / "metrics.csv")
    speeds = [row["samples_per_second"] for row in rows if "loss" in row][2:]  # the first ones are slow
    return config.batch_size * config.grad_accumulation / statistics.median(speeds)


def make_codec(settings: Settings, network, device: torch.device) -> LatentCodec:
    """Return the codec of an autoencoder with its statistics measured, as `train_vae` does."""
    train = SpectrogramDataset(settings.dataset_dir, "train")
    network = network.to(device).eval()
    spectrogram = Spectrogram(settings.spectrogram, train.typical_gain)
    return LatentCodec(network.vae, *measure_latents(network.vae, train), spectrogram, device)


def make_model(settings: Settings, network, device: torch.device, codec: Codec) -> DiffusionRun:
    """Return what makes clips with a network just trained."""
    spectrogram = Spectrogram(settings.spectrogram)
    return DiffusionRun(network, NoiseSchedule(settings.diffusion), spectrogram, codec, device)


def sample_ours(settings: Settings, model: DiffusionRun, seeds: range, steps: int) -> Tensor:
    """Make clips with the preset's sampler in so many steps."""
    sampler = replace(settings.sampler, num_inference_steps=steps)
    return model.generate(seeds, sampler, settings.evaluation.batch_size)


def train_a_peer(
    settings: Settings, name: str, seconds: float, learning_rate: float, device: torch.device
) -> Trained:
    """Train a peer by its authors' recipe on the batches that ours gets, at the size of ours."""
    from peer_systems import PEERS, train_peer  # seconds to import, and ours has no use for them

    size, seed = count_parameters(diffusion_recipe(settings).network()), settings.train.seed

    def start(steps: int) -> tuple[object, float]:
        loader, _ = clip_loaders(settings, settings.train, batch_size=settings.train.batch_size, seed=seed)
        torch.manual_seed(seed)  # of the weights
        peer = PEERS[name](settings.spectrogram.shape, size, steps, learning_rate, device)
        synchronise(device)
        begin = time.perf_counter()
        train_peer(peer, iter(loader), steps, seed)
        synchronise(device)
        return peer, time.perf_counter() - begin

    start(2)  # the first steps are slow
    step = start(TIMED_STEPS)[1] / TIMED_STEPS
    steps = max(10, round(seconds / step))
    peer, elapsed = start(steps)
    sample = functools.partial(sample_peer, peer, settings, device)
    return Trained(sample, count_parameters(peer.network), steps, elapsed, elapsed / steps)


def sample_peer(peer, settings: Settings, device: torch.device, seeds: range, steps: int) -> Tensor:
    """Make clips with a peer's own sampler from the noise that ours starts from."""
    batches, size = [], settings.evaluation.batch_size
    for first in range(0, len(seeds), size):
        noise = SampleNoise(seeds[first : first + size], device)(settings.spectrogram.shape)
        batches.append(peer.sample(noise, steps).cpu())
    return torch.cat(batches)


if __name__ == "__main__":
    main()
