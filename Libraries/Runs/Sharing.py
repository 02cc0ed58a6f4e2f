"""A trained diffusion with all models that its music passes through, in one folder to give away."""

from pathlib import Path

import torch

from Libraries.Disk import write_whole
from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.DiffusionTraining import release_diffusion
from Libraries.Runs.Release import write_conf
from Libraries.Runs.Run import RELEASED, Run
from Libraries.Training.Checkpoint import find_checkpoints

CARD = """---
license: other
pipeline_tag: text-to-audio
tags: [music, diffusion, spectrogram]
---

# {name}

A diffusion model of music, made with MA_DDPM: clips of {seconds:.1f} s at {rate} Hz, {channels}{classes}.

```sh
ma-ddpm generate -o music.flac --run {run}
```

Trained for {steps} steps of {batch} clips ({parameters:.1f} million parameters).

To be written by whoever gives it away: the licence, the music that it was trained on, and how good it is
(`ma-ddpm evaluate`).
"""


def share(run_dir: Path, folder: Path) -> Path:
    """Write all that a diffusion needs to play, and nothing else, to a new folder; return its run there.

    `folder` is laid out as a root of this repository, `Models/<kind>/<run>`, with a model card for the reader
    (`README.md`, in the form of the Hugging Face Hub). The diffusion's weights become float16
    (`release_diffusion`); those of its autoencoder, upsampler and learned phase stay bit for bit, for the
    diffusion knows them by their hash. Models that come with the repository are left out, as are the names of
    pieces and folders.

    Raises:
        FileExistsError: `folder` is there and not empty.
        CheckpointError: the run or a model that it needs cannot be loaded.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: name a new folder")
    model = DiffusionRun.load(run_dir, torch.device("cpu"))
    own, *others = model.runs
    for other in others:
        if other.folder.parent != RELEASED:
            _copy(other, folder / "Models" / other.folder.parent.name / other.name)
    shared = folder / "Models" / "diffusion" / own.name
    release_diffusion(own.folder, shared)
    write_whole(folder / "README.md", _card(model, folder.name, shared.relative_to(folder)).encode())
    return shared


def _copy(run: Run, folder: Path) -> None:
    """Copy a run's newest weights and what was measured of them, bit for bit."""
    newest = [find_checkpoints(run.folder, kind)[-1:] for kind in ("ema", "latent")]
    folder.mkdir(parents=True)
    for file in (*(path for found in newest for _, path in found), run.folder / "metrics.csv"):
        write_whole(folder / file.name, file.read_bytes())
    write_conf(run, folder, run.conf["settings"], [key for key in ("gain", "requires") if key in run.conf])


def _card(model: DiffusionRun, name: str, run: Path) -> str:
    settings, config = model.run.settings, model.spectrogram.config
    classes = model.run.conf["classes"] if settings.network.num_classes else []
    return CARD.format(
        name=name, run=run, seconds=config.clip_seconds, rate=config.sample_rate,
        channels="stereo" if config.channels == 2 else "mono",
        classes=f", of {', '.join(classes)}" if classes else "",
        steps=find_checkpoints(model.run.folder, "ema")[-1][0],
        batch=settings.train.batch_size * settings.train.grad_accumulation,
        parameters=sum(p.numel() for p in model.network.parameters()) / 1e6,
    )  # fmt: skip
