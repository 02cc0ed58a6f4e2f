"""Measure the released diffusions against the music that they were trained on, all classes alike.

    python benchmarks/released.py [--preset CPU] [--root folder] [--scales 1 1.5 2] [--per-class 24]
                                  [--steps 1 2 4] [--runs diffusion-cpu diffusion-cpu-two-steps]

The dataset is that of `pretraining.py` with the same --root. Of every class, as many training clips as are
generated are the reference, and three times as many others give the floor. There is no unheard music of all
classes to compare with: nearly all scores for some of them are in the training.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from common import machine_line
from pretraining import PRETRAININGS

from Conf import CPU
from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Evaluation.Reference import SHOWN
from Libraries.Measures import POOL, Yardstick, sets_table
from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.Run import RELEASED

BATCH = 24  # clips


def clips_of_every_class(labels: torch.Tensor, per_class: int) -> tuple[list[int], list[int]]:
    """Return indices of the reference, `per_class` of every label, and of others for the floor."""
    generator, reference, others = torch.Generator().manual_seed(0), [], []
    for label in range(int(labels.max()) + 1):
        own = torch.where(labels == label)[0]
        own = own[torch.randperm(len(own), generator=generator)].tolist()
        reference += own[:per_class]
        others += own[per_class : (POOL + 2) * per_class]
    return reference, others


def variants(model: DiffusionRun, scales: list[float], steps: list[int]) -> dict[str, tuple]:
    """Return (sampler, guidance) by name: each scale of the guidance, or each number of steps without one."""
    sampler, guidance = model.run.settings.sampler, model.run.settings.guidance
    if sampler.name == "consistency":
        return {f"{n} steps": (replace(sampler, num_inference_steps=n), guidance) for n in steps}
    count = sampler.num_inference_steps
    return {f"{count} steps, scale {scale:g}": (sampler, replace(guidance, scale=scale)) for scale in scales}


def main() -> None:
    """Parse the arguments and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRETRAININGS, default="CPU")
    parser.add_argument("--root", type=Path, default=CPU.root, help="parent of Data")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.5, 2.0], help="of autoguidance")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4], help="of what is tuned for few")
    parser.add_argument("--per-class", type=int, default=24, help="clips")
    parser.add_argument("--runs", nargs="+", help="names or folders; without it all released of the preset")
    args = parser.parse_args()
    print(machine_line(torch.device("cpu")))
    what = PRETRAININGS[args.preset]
    runs = args.runs or [name for name in (what.diffusion, what.two_steps) if (RELEASED / name).is_dir()]
    models = [DiffusionRun.load(RELEASED / name) for name in runs]  # a path stays as it is
    model, rate = models[0], models[0].spectrogram.config.sample_rate
    train = SpectrogramDataset(args.root / "Data" / what.name, "train")
    reference, others = clips_of_every_class(train.labels, args.per_class)
    clips = {name: train.__getitems__(i)[0] for name, i in (("reference", reference), ("others", others))}
    sound = {name: model.to_audio(x0) for name, x0 in clips.items()}
    yardstick = Yardstick(*sound.values(), rate, [train.sources[i] for i in reference], 0)
    same_classes = clips["others"][:: POOL + 1]
    decoded = model.to_audio(model.decode(model.encode(same_classes)))
    found = {"training clips through the autoencoder": yardstick.measure(decoded)}
    labels, seeds = model.labels_in_turn(len(reference)), range(len(reference))
    for model in models:
        for name, (sampler, guidance) in variants(model, args.scales, args.steps).items():
            x0 = model.generate(seeds, sampler, BATCH, labels=labels, guidance=guidance)
            found[f"{model.run.name}, {name}"] = yardstick.measure(model.to_audio(x0))
    print(f"\n{len(reference)} clips of {len(set(labels.tolist()))} classes\n")
    print(sets_table("clips", found, SHOWN))


if __name__ == "__main__":
    main()
