"""Run everything on demo music: corpus -> dataset -> trained models -> new music and figures.

    make demo                                                    # or: ma-ddpm demo
    ma-ddpm demo --steps 2000
    ma-ddpm demo --preset SMOKE

Before that, so that there is something to hear at once, twelve clips of the released model. The preset is CPU
if neither `--preset` nor CONF_PRESET names another. On a slow machine the trainings get fewer steps than the
preset's and fewer clips are measured, so that all ends in about `--minutes`; `--steps` makes it exact. A
second call trains another run on the same dataset and autoencoder; `--resume` resumes the newest run.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from Commands.Options import AllSettings, read_settings
from Libraries.Dataset import SpectrogramDataset, build_dataset
from Libraries.Evaluation import evaluate, example_input, save_clips
from Libraries.Plots import plot_waveform_spectrograms, save_figure
from Libraries.Runs import (
    DiffusionRun,
    Settings,
    changed,
    diffusion_recipe,
    find_diffusion,
    new_run_dir,
    prepare_space,
    train_diffusion,
    upsampler_recipe,
    vae_recipe,
)
from Libraries.Runs.Budget import in_time, with_steps
from Libraries.Runs.Preparation import render_demo
from Libraries.Runs.Run import RELEASED, RELEASED_MODEL
from Libraries.Training import export_graphs, save_json
from Libraries.Utils import get_logger

logger = get_logger("demo")
FIRST_CLIPS = 12
FEWEST_CLIPS = 24  # to measure
# of the time that is left, as the whole demo divides it on any machine
SHARE_BEFORE, SHARE_OF_DIFFUSION = 0.2, 0.65
BEFORE = {"latent": (vae_recipe, "vae.train"), "small": (upsampler_recipe, "upsampler.train")}


@dataclass(frozen=True)
class Demo:
    """The options."""

    settings: AllSettings
    resume: bool = False  # resume the newest run instead of starting a new one
    minutes: float = 10.0  # that all may take; no effect with steps
    steps: int | None = None  # of the diffusion, and of what comes before it in proportion; None: in time


def main(arguments: Sequence[str]) -> None:
    """Run all steps and print where the results are."""
    options = read_settings(Demo, arguments, __doc__, preset=os.environ.get("CONF_PRESET", "CPU"))
    conf = options.settings
    start = time.perf_counter()
    logger.info("1/6 generating with the released model")
    folder = first_clips(conf.results_dir)
    print(f"{FIRST_CLIPS} clips to listen to, after {time.perf_counter() - start:.0f} seconds: {folder}")
    logger.info("2/6 rendering the demo corpus")
    render_demo(conf)
    logger.info("3/6 building the dataset")
    print(build_dataset(conf.demo_music_dir, conf.dataset_dir, conf.spectrogram, conf.dataset))
    logger.info("4/6 training the autoencoder or upsampler, if the space needs one")
    conf = shortened_space(conf, options, start)
    prepare_space(conf)
    logger.info("5/6 training the diffusion")
    conf = shortened_diffusion(conf, options, start)
    run_dir = train_diffusion(conf, find_diffusion(conf, "conf.json") if options.resume else None)
    logger.info("6/6 sampling and measuring")
    model = DiffusionRun.load(run_dir)
    results = new_run_dir(model.run.results_dir, "eval")
    splits = {split: SpectrogramDataset(conf.dataset_dir, split) for split in ("train", "test")}
    metrics = evaluate(model, splits["train"], splits["test"], conf, results)
    save_json(results / "metrics.json", {"run": run_dir.name, **metrics})
    export_graphs(model.network.cpu(), example_input(model), run_dir)
    minutes = (time.perf_counter() - start) / 60
    print(f"""
Done in {minutes:.1f} minutes.
  generated beside real   {results / "samples.png"}
  sound                   {results / "audio"}
  during training         {results.parent / "loss.png"}, samples-*.png beside it
  figures                 {results / "metrics.json"}, {results / "measures.png"}
  model and its graph     {run_dir}

{(results / "measures.md").read_text(encoding="utf-8")}
Seconds per clip: {metrics["seconds_per_clip"]:.2f}""")


def shortened_space(conf: Settings, options: Demo, start: float) -> Settings:
    """Return the settings with as many steps of the autoencoder or upsampler as the demo has time for."""
    if conf.space not in BEFORE:
        return conf
    make_recipe, part = BEFORE[conf.space]
    if options.steps is None:
        return in_time(conf, make_recipe, part, SHARE_BEFORE * left(options, start))
    planned = make_recipe(conf).train
    steps = max(1, round(planned.num_steps * options.steps / conf.train.num_steps))
    return changed(conf, {part: with_steps(planned, steps)})


def shortened_diffusion(conf: Settings, options: Demo, start: float) -> Settings:
    """Return the settings with as many steps of the diffusion, and clips to measure, as there is time for."""
    if options.steps is not None:
        return changed(conf, {"train": with_steps(conf.train, options.steps)})
    shorter = in_time(conf, diffusion_recipe, "train", SHARE_OF_DIFFUSION * left(options, start))
    share = shorter.train.num_steps / conf.train.num_steps
    clips = max(min(FEWEST_CLIPS, conf.evaluation.num_samples), round(share * conf.evaluation.num_samples))
    return changed(shorter, {"evaluation.num_samples": clips})


def left(options: Demo, start: float) -> float:
    """Return the seconds that are left of the demo's minutes."""
    return 60 * options.minutes - (time.perf_counter() - start)


def first_clips(results_dir: Path) -> Path:
    """Generate clips of every class with the released model; return the folder of sound and picture."""
    model = DiffusionRun.load(RELEASED / RELEASED_MODEL)
    settings, rate, seeds = model.run.settings, model.spectrogram.config.sample_rate, range(FIRST_CLIPS)
    labels = model.labels_in_turn(FIRST_CLIPS)
    x0 = model.generate(seeds, settings.sampler, FIRST_CLIPS, labels=labels, guidance=settings.guidance)
    music = model.to_audio(x0)
    names = [f"{model.run.conf['classes'][label]}, seed {seed}" for seed, label in enumerate(labels.tolist())]
    folder = new_run_dir(results_dir / "released", RELEASED_MODEL)
    save_clips(music, [name.replace(", seed ", "-") for name in names], folder, rate)
    figure = plot_waveform_spectrograms(list(music), names, rate, "The released model")
    save_figure(figure, folder / "clips.png")
    return folder
