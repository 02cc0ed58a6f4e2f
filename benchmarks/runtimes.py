"""Sample the released diffusion in every runtime that is installed: seconds, rounding, what int8 costs.

    python benchmarks/runtimes.py [--turns 9] [--per-class 9] [--root folder]

A clip of batch 1 with the model's own sampler and guidance, decoded to a spectrogram, on one thread, in one
runtime after the other, turn by turn, with a matrix product of torch between them. Seconds are those of the
processor, so that other work on the machine, which takes turns with this, hardly counts; the product says how
fast the processor was. Runtimes: torch in float32 and, where the CPU has it,
bf16; torch.compile, with a C++ compiler; onnxruntime, and with weights in int8 (`quantize_dynamic`);
OpenVINO, after `pip install openvino`, in float32. ONNX needs `pip install onnx onnxscript`.

With --per-class, as many clips of every ensemble are then measured against music of these ensembles, which is
rendered below --root first.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import machine_line, print_table
from pretraining import DATASET, DIFFUSION, MUSIC
from released import clips_of_every_class
from tqdm.auto import tqdm

from Conf import CPU
from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset, build_dataset
from Libraries.DemoMusic import render_demo_music
from Libraries.Evaluation.Reference import SHOWN
from Libraries.Measures import POOL, Yardstick, sets_table
from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.OnnxRun import OnnxRun, open_session
from Libraries.Runs.Run import RELEASED
from Libraries.Utils import resolve_precision

BATCH = 24  # clips, when they are measured
SIDE = 1024  # of the matrices of the product
CLIPS = 11 * 40  # of reference music, 4 s each
REFERENCE = "runtimes-reference"
REFERENCE_RUNTIME = "torch fp32"


class Int8Run(OnnxRun):
    """A run with weights in int8 and activations that are quantised as they come."""

    @staticmethod
    def open_session(path: Path):
        from onnxruntime.quantization import quantize_dynamic  # needs onnx

        with tempfile.TemporaryDirectory() as folder:
            quantised = Path(folder) / path.name
            quantize_dynamic(path, quantised)
            return open_session(quantised)


class OpenVinoSession:
    """A network in OpenVINO with the two methods of an onnxruntime session that are used."""

    def __init__(self, path: Path):
        import openvino

        options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
        self.network = openvino.Core().compile_model(path, "CPU", options)
        self.inputs = open_session(path).get_inputs()

    def get_inputs(self) -> list:
        """Return the inputs, with name and shape."""
        return self.inputs

    def run(self, _: None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Return all outputs."""
        return list(self.network(feed).values())


class OpenVinoRun(OnnxRun):
    """A run in OpenVINO."""

    open_session = OpenVinoSession


def in_torch(precision: str) -> DiffusionRun:
    """Return the released model in torch at this precision."""
    model = DiffusionRun.load(RELEASED / DIFFUSION, torch.device("cpu"))
    model.precision = model.codec.precision = precision
    return model


def compiled() -> DiffusionRun:
    """Return it in float32, with its three networks compiled."""
    model = in_torch("no")
    model.load_guide(model.run.settings.guidance.guide_at)
    model.network, model.guide = torch.compile(model.network), torch.compile(model.guide)
    model.codec.vae.decoder = torch.compile(model.codec.vae.decoder)
    return model


def runtimes() -> dict[str, Callable[[], DiffusionRun]]:
    """Return what loads the model in each runtime that is here."""
    found = {REFERENCE_RUNTIME: lambda: in_torch("no")}
    if resolve_precision("auto") == "bf16":
        found["torch bf16"] = lambda: in_torch("bf16")
    if shutil.which("g++") or shutil.which("clang++"):
        found["torch compiled"] = compiled
    found["onnxruntime"] = lambda: OnnxRun.load(RELEASED / DIFFUSION)
    found["onnxruntime int8"] = lambda: Int8Run.load(RELEASED / DIFFUSION)
    try:
        import openvino  # noqa: F401
    except ImportError:
        print("OpenVINO is not installed: it is left out")
    else:
        found["OpenVINO"] = lambda: OpenVinoRun.load(RELEASED / DIFFUSION)
    return found


def generate(model: DiffusionRun, seeds: range, batch_size: int) -> torch.Tensor:
    """Return clips x0 with the model's own sampler and guidance, labels in turn."""
    settings = model.run.settings
    options = {"labels": model.labels_in_turn(len(seeds)), "guidance": settings.guidance}
    return model.generate(seeds, settings.sampler, batch_size, progress=False, **options)


def processor_seconds(calls: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Return the median processor time of each call in s; after one untimed turn, they take turns."""
    seconds = {name: [] for name in calls}
    for turn in tqdm(range(turns + 1), desc="timing", unit="turn", leave=False):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def timing_table(models: dict[str, DiffusionRun], turns: int) -> None:
    """Time a clip in every runtime and print the table."""
    a, b = torch.randn(2, SIDE, SIDE)
    ours = models[REFERENCE_RUNTIME]
    x0 = generate(ours, range(3), 1)
    calls = {name: lambda model=model: generate(model, range(1), 1) for name, model in models.items()}
    calls |= {"product": lambda: a @ b, "sound": lambda: ours.to_audio(x0[:1])}
    seconds = processor_seconds(calls, turns)
    print(f"matrix product: {2 * SIDE**3 / seconds['product'] / 1e9:.0f} GFLOP/s")
    print(f"spectrogram to sound, the same for all: {seconds['sound']:.3f} s/clip")
    lines = []
    for name, model in models.items():
        error = (generate(model, range(3), 1) - x0).abs()  # of clips of three seeds
        speed = seconds[REFERENCE_RUNTIME] / seconds[name]
        lines.append(
            [name, f"{seconds[name]:.3f}", f"{speed:.2f}", f"{error.max():.2g}", f"{error.mean():.2g}"]
        )
    print_table(["runtime", "CPU s/clip", "x torch fp32", "largest difference of x0", "mean"], lines)


def make_yardstick(model: DiffusionRun, root: Path, per_class: int) -> Yardstick:
    """Describe music of the model's ensembles, through its own decoder."""
    music, dataset = root / "Data" / f"music-{REFERENCE}", root / "Data" / REFERENCE
    render_demo_music(music, replace(MUSIC, clips=CLIPS), CPU.score_cache_dir)
    build_dataset(music, dataset, model.spectrogram.config, replace(DATASET, name=REFERENCE))
    clips = SpectrogramDataset(dataset, "train")
    reference, others = clips_of_every_class(clips.labels, per_class)
    sound = [model.to_audio(clips.__getitems__(part)[0]) for part in (reference, others)]
    assert len(others) >= POOL * len(reference), "too few clips for a floor: raise CLIPS"
    rate = model.spectrogram.config.sample_rate
    return Yardstick(*sound, rate, [clips.sources[i] for i in reference], 0)


def main() -> None:
    """Parse the arguments and print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=CPU.root, help="parent of Data")
    parser.add_argument("--turns", type=int, default=9, help="clips that are timed in each runtime")
    parser.add_argument("--per-class", type=int, help="clips that are measured in each runtime")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine_line(torch.device("cpu")))
    models = {name: load() for name, load in runtimes().items()}
    timing_table(models, args.turns)
    if args.per_class is None:
        return
    yardstick, found = make_yardstick(models[REFERENCE_RUNTIME], args.root, args.per_class), {}
    seeds = range(args.per_class * models[REFERENCE_RUNTIME].network.config.num_classes)
    for name in ("onnxruntime", "onnxruntime int8"):  # the others make the same clips to rounding
        model = models[name]
        found[name] = yardstick.measure(model.to_audio(generate(model, seeds, BATCH)))
    print(f"\n{len(seeds)} clips of all labels in turn, seeds 0 to {len(seeds) - 1}\n")
    print(sets_table("clips", found, SHOWN))


if __name__ == "__main__":
    main()
