"""Measure clips of a run against the test split, beside what real clips reach.

    ma-ddpm evaluate                                             # the newest run
    ma-ddpm evaluate --run Models/diffusion/00003-CPU --evaluation.num-samples 256
    ma-ddpm evaluate --sampler.num-inference-steps 2 --guidance.method none

Everything begins as in the run's own settings. Tables, figures, pictures and sound go to the run's `Results`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from Commands.Options import read_of_run
from Libraries.Dataset import SpectrogramDataset
from Libraries.Evaluation import evaluate
from Libraries.Runs import DiffusionRun, EvaluationConfig, new_run_dir
from Libraries.Sampling import GuidanceConfig, SamplerConfig
from Libraries.Training import save_json


@dataclass(frozen=True)
class Evaluate:
    """The options."""

    sampler: SamplerConfig
    guidance: GuidanceConfig
    evaluation: EvaluationConfig
    music_dir: Path | None  # the recordings of the dataset; None: as for `train`
    run: Path = Path("newest")  # or the folder or name of another
    ema_length: float | None = None  # of the averaged weights, relative to the training; None: as kept


def main(arguments: Sequence[str]) -> None:
    """Generate, measure, and print the table."""
    options = read_of_run(Evaluate, arguments, __doc__)
    model = DiffusionRun.load(options.run, ema_length=options.ema_length)
    settings = replace(
        model.run.settings, sampler=options.sampler, guidance=options.guidance,
        evaluation=options.evaluation, music_dir=options.music_dir,
    )  # fmt: skip
    train, test = (SpectrogramDataset(settings.dataset_dir, split) for split in ("train", "test"))
    results = new_run_dir(model.run.results_dir, "eval")
    metrics = evaluate(model, train, test, settings, results)
    save_json(results / "metrics.json", {"run": model.run.name, **metrics})
    print((results / "measures.md").read_text(encoding="utf-8"))
    print(f"pictures, sound and figures: {results}")
