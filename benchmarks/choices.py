"""What to choose for a trained run: sampler and steps, guidance, EMA length, and the space to diffuse in.

    CONF_ROOT=folder python benchmarks/choices.py [--clips 256] [--only samplers guidance ema space]
                                [--samplers ddpm dpmpp_2m_sde] [--steps 10 20 50] [--minutes 6]
                                [--seeds 0 1 2]

The run is the newest of CONF_ROOT in the preset's space (CONF_PRESET, without it CPU). Everything is measured
against the validation split, through the run's own decoder; every variant has the same seeds, and the classes
in turn. What is not compared, sampler and guidance, is today's of Conf.py. Samplers without noise on the way
(ODE): ddim, dpmpp_2m, heun, unipc; with noise (SDE): ddpm, dpmpp_2m_sde.

`space` trains anew, for each seed and as many minutes each: a diffusion on spectrograms, and an autoencoder
with a diffusion in its latents; with the preset's settings and without leaving a run behind.
"""

import argparse
import functools
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from common import machine_line
from peers import from_scratch, train_ours, train_ours_in_latents
from torch import Tensor

os.environ.setdefault("CONF_PRESET", "CPU")
from Conf import conf, in_space
from Libraries.Evaluation.Comparison import (
    compare,
    compare_ema_lengths,
    compare_guidance,
    compare_samplers,
    validation_yardstick,
    variant_table,
)
from Libraries.Measures import Yardstick
from Libraries.Runs.DiffusionRun import DiffusionRun, find_diffusion
from Libraries.Runs.Settings import Settings
from Libraries.Sampling.Steps import SAMPLERS
from Libraries.Utils import pick_device

PARTS = ("samplers", "guidance", "ema", "space")


def main() -> None:
    """Parse the arguments; print a table for each part as soon as it is measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=256, help="per variant")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=conf.evaluation.samplers)
    parser.add_argument("--steps", type=int, nargs="+", default=conf.evaluation.steps)
    parser.add_argument("--minutes", type=float, default=6.0, help="of training, for `space`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the trainings, for `space`")
    args = parser.parse_args()
    model = DiffusionRun.load(find_diffusion(conf))
    evaluation = replace(
        conf.evaluation, compared_clips=args.clips, samplers=tuple(args.samplers), steps=tuple(args.steps)
    )
    today = {"sampler": conf.sampler, "guidance": conf.guidance, "evaluation": evaluation}
    settings = replace(model.run.settings, **today)
    yardstick = validation_yardstick(model, settings)
    real = f"{len(yardstick.reference)} of the validation split ({len(set(yardstick.pieces))} pieces)"
    print(f"\n{machine_line(pick_device())}\n{model.run.folder}: {args.clips} clips of each against {real}")
    for part in args.only:
        print(f"\n{table(part, model, settings, yardstick, args)}", flush=True)


def table(
    part: str, model: DiffusionRun, settings: Settings, yardstick: Yardstick, args: argparse.Namespace
) -> str:
    """Measure one part and return its table."""
    if part == "samplers":
        found = [variant for _, variant in compare_samplers(model, settings, yardstick)]
    elif part == "guidance":
        found = compare_guidance(model, settings, yardstick)
    elif part == "ema":
        found = compare_ema_lengths(model.run.folder, settings, yardstick)
    else:
        makers = trained_in_both_spaces(settings, args.minutes, args.seeds)
        found = compare(model, makers, yardstick)
    return variant_table(found, part)


def trained_in_both_spaces(
    settings: Settings, minutes: float, seeds: list[int]
) -> dict[str, Callable[[], Tensor]]:
    """Train in both spaces for as many minutes; return what samples the compared seeds, by name."""
    makers, clips = {}, range(settings.evaluation.compared_clips)
    ways = {"spectrogram": train_ours, "latent": train_ours_in_latents}
    for seed in seeds:
        for space, way in ways.items():
            own = in_space(from_scratch(settings, seed), space)
            with tempfile.TemporaryDirectory() as folder:
                trained = way(own, minutes * 60, Path(folder), pick_device())
            size = f"{trained.parameters / 1e6:.1f} M parameters, {trained.train_seconds:.0f} s"
            steps = own.sampler.num_inference_steps
            makers[f"{space}, seed {seed}: {size}"] = functools.partial(trained.sample, clips, steps)
    return makers


if __name__ == "__main__":
    main()
