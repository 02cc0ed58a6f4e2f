"""Compare autoencoders trained for the same minutes on the demo corpus: the origin's three and ours.

    python benchmarks/vae.py [--minutes 5] [--root folder] [--only residual_16 conv]
                              [--clips 256]

Every variant of `Journal.VAES` is trained for the same time on the CPU preset's dataset, which is built first
if it is missing: the origin's with the journal's loss, batch and learning rate, ours with the preset's. A
timed step finds how many steps fit into the minutes, so that the learning-rate schedule ends with them. Runs
are in `Models/vae`: a second call resumes interrupted runs and keeps finished ones. Pictures and audio are in
`Results/vae`. Quality is measured on the validation split, through the same decoder to audio; the floor is
real training music, which reconstructions without loss are nearer than.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from common import machine_line, make_dataset, print_table, train_or_find

from Conf import CPU, ORIGIN
from Journal import VAES
from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Evaluation.Reference import make_yardstick
from Libraries.Evaluation.VAEEvaluation import evaluate_vae
from Libraries.Measures import Yardstick
from Libraries.Measures.Outcome import Row
from Libraries.Measures.Table import FLOOR, HOW_TO_READ, cell, floor_cell, not_seen
from Libraries.Runs.Autoencoding import LatentCodec, vae_recipe
from Libraries.Runs.Run import Run
from Libraries.Runs.Settings import Settings, changed
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Utils import pick_device

VARIANTS = ("linear", "conv", "conv_v2", "residual_8", "residual_16", "residual_32")
COMPARED = ("kernel distance", "note length", "note steadiness", "log-mel distance")
HEADER = [
    *("variant", "M param.", "latent", "compression", "steps"),
    *("LSD dB", "kernel distance", "note length, s", "steadiness, cents", "log-mel", "encode s", "decode s"),
]


def main() -> None:
    """Parse the arguments, train what is not trained yet, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="of training per variant")
    parser.add_argument("--root", type=Path, default=CPU.root, help="parent of Data and Models")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--clips", type=int, default=256, help="measured, at most the validation split")
    args = parser.parse_args()
    settings = replace(CPU, root=args.root)
    make_dataset(settings)
    line = machine_line(pick_device())
    train, real = (SpectrogramDataset(settings.dataset_dir, split) for split in ("train", "validation"))
    decode, count = Spectrogram(settings.spectrogram, train.typical_gain).decode, min(args.clips, len(real))
    runs = {name: trained(name, settings, args.minutes) for name in args.only}
    yardstick = make_yardstick(decode, train, real, count)
    found = {name: measure(run_dir, yardstick, real) for name, run_dir in runs.items()}
    print(f"\n{line}\n{args.minutes:g} minutes each, {settings.spectrogram.shape}\n")
    print_table(HEADER, [*(row(name, own) for name, own in found.items()), floor(next(iter(found.values())))])
    kernel = (Row.read(own["kernel distance"]) for own in found.values())
    print(f"\n{HOW_TO_READ}{not_seen(count, kernel)}")


def variant(name: str, settings: Settings, minutes: float) -> Settings:
    """Return the settings of a variant, whose preset names its runs."""
    settings = changed(
        settings, {"preset": f"{name}-{minutes:g}min", "vae.network": VAES[name], "vae.start": None}
    )
    if settings.vae.network.kind == "residual":
        return settings
    names = ("batch_size", "learning_rate", "lr_schedule")
    journal = {f"vae.train.{name}": getattr(ORIGIN.vae.train, name) for name in names}
    return changed(settings, {"vae.loss": ORIGIN.vae.loss, **journal})


def trained(name: str, settings: Settings, minutes: float) -> Path:
    """Return the variant's trained run."""
    return train_or_find(vae_recipe, variant(name, settings, minutes), "vae.train", minutes)


def measure(run_dir: Path, yardstick: Yardstick, real: SpectrogramDataset) -> dict:
    """Return the figures of a run and its size; pictures and audio go to the run's results."""
    codec, run = LatentCodec.load(run_dir), Run(run_dir)
    found = evaluate_vae(codec, yardstick, real, run.results_dir / "benchmark")
    return found | {"shape": codec.shape, "steps": run.config("vae.train").num_steps}


def row(name: str, found: dict) -> list[str]:
    """Return a line of the table."""
    latent = "x".join(map(str, found["shape"]))
    size = [f"{found['parameters'] / 1e6:.2f}", latent, f"{found['compression']:g}", str(found["steps"])]
    measures = [cell(Row.read(found[of])) for of in COMPARED]
    seconds = [f"{found[kind]:.4f}" for kind in ("encode_seconds", "decode_seconds")]
    return [name, *size, f"{found['log_spectral_distance']:.2f}", *measures, *seconds]


def floor(found: dict) -> list[str]:
    """Return the last line, what real training music reaches: the same for every variant."""
    measures = [floor_cell(Row.read(found[of])) for of in COMPARED]
    return [FLOOR, *[""] * 5, *measures, "", ""]


if __name__ == "__main__":
    main()
