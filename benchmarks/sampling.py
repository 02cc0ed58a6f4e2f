"""How fast a clip is sampled: BASE and ORIGIN against diffusers' UNet2DModel and DDIMScheduler.

    python benchmarks/sampling.py [--device cuda] [--batch-size 16] [--precision bf16] [--full]

All models sample a 1x224x416 tensor with DDIM. The weights are untrained, which does not affect the time. A
step is timed a few times, the models in turn, and its median multiplied by the number of steps, unless --full
asks for whole trajectories. Decoding to audio is timed on the example in Data. If other processes use the
same cores, OMP_NUM_THREADS=1 keeps the threads from waiting for each other.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from common import (
    PEER,
    PRECISION_NAMES,
    REPOSITORY,
    SHAPE,
    Peer,
    machine_line,
    parse_with_device,
    place,
    print_table,
    size_of,
)
from torch import Tensor

from Conf import BASE, ORIGIN
from Libraries.Diffusion import NoiseSchedule
from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.DiffusionTraining import diffusion_recipe
from Libraries.Runs.Run import open_spectrogram
from Libraries.Runs.Settings import Settings
from Libraries.Runs.Spaces import open_codec
from Libraries.Sampling.Loop import SamplerConfig, inference_timesteps, run_sampler
from Libraries.Sound.Audio import load_audio
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Training.Timing import median_in_turns, time_call
from Libraries.Utils import SampleNoise, autocast, resolve_precision

STEPS = (20, 50)  # of DDIM
CLIP_SECONDS = SHAPE[2] * BASE.spectrogram.hop_length / BASE.spectrogram.sample_rate  # the same in ORIGIN

Sample = Callable[[int, int | None], Tensor]  # (steps of the trajectory, how many of them to run) -> x


@dataclass(frozen=True)
class Row:
    """A model in one precision."""

    name: str
    precision: str
    sample: Sample
    size: tuple[float, float]  # millions of parameters, GFLOP per pass
    decode_seconds: float | None  # per clip; None: no audio


def main() -> None:
    """Parse the arguments, time all models, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timed-steps", type=int, default=5, help="of each model, after one to warm up")
    parser.add_argument("--full", action="store_true", help="time whole trajectories, once each")
    args = parse_with_device(parser, batch_sizes=(1, 16))
    print(machine_line(args.device))
    rows = make_rows(args)
    seconds = time_full(rows, args) if args.full else time_steps(rows, args)
    how = "whole trajectories" if args.full else f"the median of {args.timed_steps} steps, times their number"
    print(f"DDIM, batch {args.batch_size}, untrained weights; seconds are {how}\n")
    print_rows(rows, seconds, args.batch_size)


def make_rows(args: argparse.Namespace) -> list[Row]:
    """Return ours and the peer in the requested precision, then ours in the one that `auto` picks."""
    presets = (BASE, ORIGIN)
    sizes = {s.preset: size_of(diffusion_recipe(s).network) for s in presets}
    decoding = {s.preset: time_decoding(s) for s in presets}
    rows = []
    for precision in dict.fromkeys((args.precision, resolve_precision("auto"))):
        for s in presets:
            sample = our_sampler(s, args.device, precision, args.batch_size)
            rows.append(Row(s.preset, precision, sample, sizes[s.preset], decoding[s.preset]))
        if precision == args.precision:
            sample = peer_sampler(args.device, precision, args.batch_size)
            rows.append(Row(PEER, precision, sample, size_of(Peer), None))
    return rows


def our_sampler(settings: Settings, device: torch.device, precision: str, batch_size: int) -> Sample:
    """Return DDIM as `DiffusionRun` runs it."""
    schedule = NoiseSchedule(settings.diffusion)
    spectrogram = Spectrogram(settings.spectrogram)
    network = place(diffusion_recipe(settings).network(), device)
    model = DiffusionRun(network, schedule, spectrogram, open_codec(settings), device)
    model.precision = precision

    def sample(num_steps: int, most: int | None) -> Tensor:
        ddim = SamplerConfig("ddim", num_steps, settings.sampler.spacing, clip_x0=1.0, eta=0.0)
        timesteps = inference_timesteps(schedule, num_steps, ddim.spacing)[:most]
        noise = SampleNoise(range(batch_size), device)
        return run_sampler(model.denoiser(), schedule, ddim, noise, SHAPE, timesteps)

    return sample


def peer_sampler(device: torch.device, precision: str, batch_size: int) -> Sample:
    """Return DDIM as diffusers does it."""
    from diffusers import DDIMScheduler

    network, scheduler = place(Peer(), device).eval(), DDIMScheduler(num_train_timesteps=1000)

    @torch.no_grad()
    def sample(num_steps: int, most: int | None) -> Tensor:
        scheduler.set_timesteps(num_steps)
        x = SampleNoise(range(batch_size), device)(SHAPE)
        for t in scheduler.timesteps[:most]:
            with autocast(device, precision):
                output = network(x, t)
            x = scheduler.step(output.float(), t, x).prev_sample
        return x

    return sample


def time_decoding(settings: Settings) -> float:
    """Return the seconds to decode the example from x0, after a first call that compiles."""
    config, cpu = settings.spectrogram, torch.device("cpu")
    waveform = load_audio(REPOSITORY / "Data" / "music_file.wav", config.sample_rate)
    spectrogram = open_spectrogram(config, settings.models_dir / "phase", settings.phase.run, device=cpu)
    x0, gain = spectrogram.encode_with_gain(waveform[None, :, : config.clip_samples])
    call = partial(spectrogram.decode, x0, gain)
    return median_in_turns({"decode": call}, 3, cpu)["decode"]


def time_steps(rows: list[Row], args: argparse.Namespace) -> list[dict[int, float]]:
    """Return seconds per batch by number of steps, from single steps with the models in turn."""
    calls = {str(i): partial(row.sample, STEPS[-1], 1) for i, row in enumerate(rows)}
    step = median_in_turns(calls, args.timed_steps, args.device)
    return [{count: step[str(i)] * count for count in STEPS} for i in range(len(rows))]


def time_full(rows: list[Row], args: argparse.Namespace) -> list[dict[int, float]]:
    """Return seconds per batch by number of steps, from whole trajectories."""
    for row in rows:
        row.sample(STEPS[-1], 1)  # warm up
    return [
        {count: time_call(partial(row.sample, count, None), args.device) for count in STEPS} for row in rows
    ]


def print_rows(rows: list[Row], seconds: list[dict[int, float]], batch_size: int) -> None:
    """Print one row per model: seconds per clip, seconds of audio per second, speed relative to the peer."""
    peer = next(s for row, s in zip(rows, seconds, strict=True) if row.name == PEER)
    header = ["model", "precision", "M param.", "GFLOP"]
    for count in STEPS:
        header += [f"{count} steps, s/clip", "audio s/s", "x peer"]
    lines = []
    for row, batch in zip(rows, seconds, strict=True):
        precision = PRECISION_NAMES.get(row.precision, row.precision)
        line = [row.name, precision, f"{row.size[0]:.1f}", f"{row.size[1]:.1f}"]
        for count in STEPS:
            clip = batch[count] / batch_size
            rate = CLIP_SECONDS / (clip + (row.decode_seconds or 0.0))
            line += [f"{clip:.3g}", f"{rate:.3g}", f"{peer[count] / batch[count]:.2f}"]
        lines.append([*line, "-" if row.decode_seconds is None else f"{row.decode_seconds:.3f}"])
    print_table([*header, "decode, s/clip"], lines)
    print(f"\nA clip is {CLIP_SECONDS} s. s/clip and x peer are for sampling; audio s/s includes decoding,")
    print(f"which the peer does not do. x peer is relative to {PEER} in the precision of its row.")


if __name__ == "__main__":
    main()
