"""Run everything on demo music: corpus -> dataset -> trained models -> new music, figures and pictures.

    make demo            # or: python MainScripts/demo.py; CONF_PRESET chooses another preset than CPU

A second call trains another run on the same dataset and autoencoder; `--resume` resumes the newest run.
"""

import argparse
import os
import time

os.environ.setdefault("CONF_PRESET", "CPU")
from Conf import conf
from Libraries.Dataset import SpectrogramDataset, build_dataset
from Libraries.DemoMusic import render_demo_music
from Libraries.Disk import exit_with_the_sentence
from Libraries.Evaluation import evaluate, example_input
from Libraries.Runs import DiffusionRun, find_diffusion, new_run_dir, prepare_space, train_diffusion
from Libraries.Training import export_graph, save_json
from Libraries.Utils import get_logger

logger = get_logger("demo")


def main() -> None:
    """Run all steps and print where the results are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--resume", action="store_true", help="resume the newest run instead of starting a new one"
    )
    arguments = parser.parse_args()
    start = time.perf_counter()
    logger.info("1/5 rendering the demo corpus")
    render_demo_music(conf.demo_music_dir, conf.demo_music, conf.score_cache_dir)
    logger.info("2/5 building the dataset")
    print(build_dataset(conf.demo_music_dir, conf.dataset_dir, conf.spectrogram, conf.dataset))
    logger.info("3/5 training the autoencoder or upsampler, if the space needs one")
    prepare_space(conf)
    logger.info("4/5 training the diffusion")
    run_dir = train_diffusion(conf, find_diffusion(conf, "conf.json") if arguments.resume else None)
    logger.info("5/5 sampling and measuring")
    model = DiffusionRun.load(run_dir)
    results = new_run_dir(model.run.results_dir, "eval")
    splits = {split: SpectrogramDataset(conf.dataset_dir, split) for split in ("train", "test")}
    metrics = evaluate(model, splits["train"], splits["test"], conf, results)
    save_json(results / "metrics.json", {"run": run_dir.name, **metrics})
    export_graph(model.network.cpu(), example_input(model), run_dir / "graph.pt")
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


if __name__ == "__main__":
    with exit_with_the_sentence():
        main()
