"""Run everything on demo music: corpus -> dataset -> trained models -> new music and figures.

    make demo                                                    # or: ma-ddpm demo
    ma-ddpm demo --preset SMOKE

Before that, so that there is something to hear at once, twelve clips of the released model. The preset is CPU
if neither `--preset` nor CONF_PRESET names another. A second call trains another run on the same dataset and
autoencoder; `--resume` resumes the newest run.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from Commands.Options import RELEASED_MODEL, AllSettings, read_settings
from Libraries.Dataset import SpectrogramDataset, build_dataset
from Libraries.Evaluation import evaluate, example_input, save_clips
from Libraries.Plots import plot_waveform_spectrograms, save_figure
from Libraries.Runs import DiffusionRun, find_diffusion, new_run_dir, prepare_space, train_diffusion
from Libraries.Runs.Preparation import render_demo
from Libraries.Runs.Run import RELEASED
from Libraries.Training import export_graphs, save_json
from Libraries.Utils import get_logger

logger = get_logger("demo")
FIRST_CLIPS = 12


@dataclass(frozen=True)
class Demo:
    """The options."""

    settings: AllSettings
    resume: bool = False  # resume the newest run instead of starting a new one


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
    prepare_space(conf)
    logger.info("5/6 training the diffusion")
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
