"""How many clips of the demo music are nearly the same, with and without human playing, and what it costs.

    python benchmarks/duplicates.py [--preset BASE] [--clips 7800] [--root folder]

Renders the preset's demo music twice, as its notes stand in the scores and as the `playing` of BASE plays
them, with one SoundFont and room, and looks for each clip's nearest other clip of the same ensemble: the root
mean square difference of 32 mel bands at the best shift in time, in units of 40 dB, as the check for copies
has it (Libraries/Measures/Copies.py). A tune repeats its parts, and by the score they sound the same.
"""

import argparse
import resource
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import REPOSITORY  # noqa: F401 - puts the repository on the path

from Conf import PRESETS
from Libraries.DemoMusic import DemoMusicConfig, render_demo_music
from Libraries.Measures.Copies import level_pictures, nearest_within
from Libraries.Sound.Audio import load_audio

NEAR = (0.05, 0.1, 0.2)  # of 40 dB


def nearest_of_ensemble(folder: Path, music: DemoMusicConfig) -> np.ndarray:
    """Return the distance of each clip to the nearest other: (N,)."""
    pictures = []
    for file in sorted(folder.glob("*.flac")):
        waveform = load_audio(file, music.sample_rate)  # (1, L)
        clips = waveform.unfold(1, music.clip_samples, music.clip_samples).transpose(0, 1)
        pictures.append(level_pictures(clips, music.sample_rate))
    return nearest_within(torch.cat(pictures))


def measure(name: str, folder: Path, music: DemoMusicConfig, scores: Path) -> None:
    """Render a corpus and print its row."""
    wall, cpu = time.perf_counter(), time.process_time()
    pieces = render_demo_music(folder, music, scores)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    distances = np.concatenate([
        nearest_of_ensemble(folder / ensemble, music) for ensemble in music.ensembles
    ])  # fmt: skip
    near = " | ".join(f"{100 * (distances < limit).mean():.1f} %" for limit in NEAR)
    cost = f"{wall:.0f} s | {cpu:.0f} s | {memory:.0f} MB"
    print(f"| {name} | {len(pieces)} | {len(distances)} | {near} | {np.median(distances):.2f} | {cost} |")


def main() -> None:
    """Parse the arguments and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="BASE")
    parser.add_argument("--clips", type=int, help="default: as many as the preset has")
    parser.add_argument("--root", type=Path, default=PRESETS["BASE"].root, help="parent of Data")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = PRESETS[args.preset]
    music = replace(settings.demo_music, clips=args.clips or settings.demo_music.clips)
    near = " | ".join(f"nearer than {limit}" for limit in NEAR)
    print(f"| playing | pieces | clips | {near} | median | rendering | of CPU | peak memory |")
    print("|" + "---|" * (len(NEAR) + 7))
    data = args.root / "Data"
    for name, playing in (("as written", None), ("human", PRESETS["BASE"].demo_music.playing)):
        folder = data / f"duplicates-{args.preset}-{music.clips}-{name.replace(' ', '-')}"
        measure(name, folder, replace(music, playing=playing), data / "scores")


if __name__ == "__main__":
    main()
