"""The notebooks: thin, stripped, and running from top to bottom on demo music and on somebody's own files."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import soundfile

SCRIPTS = Path(__file__).parent.parent / "MainScripts"
NOTEBOOKS = sorted(SCRIPTS.glob("*.ipynb"))
IN_ORDER = (
    "Preprocessing.ipynb",
    "Train VAE.ipynb",
    "Eval VAE.ipynb",
    "Train Phase.ipynb",
    "Train Diffusion.ipynb",
    "Train Upsampler.ipynb",
    "Eval Diffusion.ipynb",
    "CIFAR10.ipynb",
    "Experiments.ipynb",
    "Learn Diffusion.ipynb",
)


def code_cells(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_thin_and_stripped(path):
    cells = code_cells(path)
    assert len(cells) <= 15
    for cell in cells:
        source = "".join(cell["source"])
        assert not cell["outputs"] and cell["execution_count"] is None
        assert len(source.splitlines()) <= 14
        assert not any(line.startswith(("def ", "class ")) for line in source.splitlines())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_code_cell_is_introduced(path):
    kinds = [cell["cell_type"] for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    assert all(kinds[i - 1] == "markdown" for i, kind in enumerate(kinds) if kind == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_begins_with_the_cell_that_fetches_the_repository(path):
    title, _, first = json.loads(path.read_text(encoding="utf-8"))["cells"][:3]
    assert first["source"] == code_cells(NOTEBOOKS[0])[0]["source"]
    project = tomllib.loads((SCRIPTS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if address := project.get("urls", {}).get("Repository"):  # then the cell need not ask, and Colab opens it
        assert address in "".join(first["source"]) and "colab.research.google.com" in "".join(title["source"])


def begin(folder, **environment):
    """Run the first cell of a notebook in a folder; return where the next cell finds Conf.py."""
    cell = code_cells(NOTEBOOKS[0])[0]
    where = {**cell, "id": "where", "source": "print('at', find_spec('Conf').origin)"}
    notebook = {"cells": [cell, where], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "alone.ipynb").write_text(json.dumps(notebook))
    settings = {"PIP_NO_INDEX": "1", "IPYTHONDIR": str(folder), **environment}
    result = subprocess.run(
        [sys.executable, "-m", "IPython", "alone.ipynb"], cwd=folder, env={**os.environ, **settings},
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    found = re.findall(r"^at (.*)$", result.stdout, re.MULTILINE)
    assert found, result.stdout + result.stderr
    return Path(found[0])


@pytest.mark.slow
@pytest.mark.skipif(not (SCRIPTS.parent / ".git").exists(), reason="this copy is not a git repository")
def test_a_notebook_that_lies_alone_fetches_the_repository_once(tmp_path):
    there = tmp_path / "ma_ddpm" / "MainScripts" / "Conf.py"
    assert begin(tmp_path, MA_DDPM_REPOSITORY=f"file://{SCRIPTS.parent}") == there
    assert begin(tmp_path, MA_DDPM_REPOSITORY="file:///nowhere") == there


def test_a_notebook_fetches_nothing_where_the_repository_is_at_hand_or_installed(tmp_path):
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "ma_ddpm").symlink_to(SCRIPTS.parent)  # as pip installs it
    for path in (tmp_path / "packages", SCRIPTS):
        found = begin(tmp_path, MA_DDPM_REPOSITORY="file:///nowhere", PYTHONPATH=str(path))
        assert found == SCRIPTS / "Conf.py" and not (tmp_path / "ma_ddpm").exists()


def run_notebooks(folder, **environment):
    """Execute copies of the notebooks in order, and return the outputs of each by name."""
    copies = [shutil.copy(SCRIPTS / name, folder) for name in IN_ORDER]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--rootdir",
        folder,
    ]
    settings = {"CONF_PRESET": "SMOKE", "CONF_TRIALS": "SMOKE", "CONF_ROOT": str(folder)}
    settings |= {"PYTHONPATH": str(SCRIPTS), **environment}
    result = subprocess.run(
        [*command, "--nbmake", "--overwrite", "--nbmake-timeout=600", *copies],
        capture_output=True,
        text=True,
        env={**os.environ, **settings},
    )
    assert result.returncode == 0, result.stdout[-4000:]
    return {
        Path(copy).stem: [out for cell in code_cells(Path(copy)) for out in cell["outputs"]]
        for copy in copies
    }


def count_outputs(outputs, kind):
    return sum(kind in output.get("data", {}) for output in outputs)


def assert_pictures_and_sound_are_in_the_page(outputs):
    pictures = {name: count_outputs(cells, "image/png") for name, cells in outputs.items()}
    diffusion = {"Preprocessing": 4, "Train Diffusion": 4, "Train Upsampler": 4, "Eval Diffusion": 11}
    rest = {"Train VAE": 3, "Eval VAE": 5, "Train Phase": 2, "Experiments": 1, "CIFAR10": 3}
    assert pictures == {**diffusion, **rest, "Learn Diffusion": 6}
    players = {
        name: sum("<audio" in str(cell.get("data")) for cell in cells) for name, cells in outputs.items()
    }
    diffusion = {"Preprocessing": 3, "Train Diffusion": 0, "Train Upsampler": 6, "Eval Diffusion": 16}
    rest = {"Train VAE": 0, "Eval VAE": 5, "Train Phase": 3, "Experiments": 2, "CIFAR10": 0}
    assert players == {**diffusion, **rest, "Learn Diffusion": 0}


def assert_run_is_complete(root):
    run = root / "Models" / "diffusion" / "00000-SMOKE"
    results = root / "Results" / "diffusion" / "00000-SMOKE"
    for name in ("conf.json", "metrics.csv", "log.txt", "ema-00000020.pth", "state-00000020.pth", "graph.pt"):
        assert (run / name).stat().st_size > 0
    for name in (
        "loss.png",
        "00000-eval/samples.png",
        "00000-eval/trajectory.png",
        "00000-eval/samplers.png",
        "00000-eval/guidance.png",
        "00000-eval/measures.json",
        "00000-eval/measures.png",
        "00000-eval/audio/continued.wav",
        "00000-eval/metrics.json",
    ):
        assert (results / name).stat().st_size > 0
    sound, rate = soundfile.read(results / "00000-eval" / "audio" / "sample-0000.wav")
    assert rate == 16_000 and len(sound) > rate and np.isfinite(sound).all() and np.abs(sound).max() <= 1
    assert_vae_run_is_complete(root)
    assert_cascade_is_complete(root)
    assert_phase_run_is_complete(root)
    assert_experiment_is_complete(root)
    assert_image_runs_are_complete(root)


def assert_image_runs_are_complete(root):
    for number, name in enumerate(("classifier", "unet", "unet_v0")):
        run = root / "Models" / "images" / f"{number:05d}-{name}"
        assert all(
            (run / file).stat().st_size > 0 for file in ("conf.json", "metrics.csv", "ema-00000020.pth")
        )
    metrics = json.loads((root / "Results" / "images" / "00000-SMOKE" / "metrics.json").read_text())
    assert metrics["images"] == "digits, not CIFAR-10" and len(metrics["scores"]) == 4


def assert_cascade_is_complete(root):
    run, results = (root / folder / "upsampler" / "00000-SMOKE" for folder in ("Models", "Results"))
    files = [run / name for name in ("conf.json", "ema-00000020.pth", "graph.pt")]
    files += [root / "Models" / "diffusion" / "00001-SMOKE" / "ema-00000020.pth"]
    files += [results / name for name in ("loss.png", "upsampled-00000020.png")]
    made = ("cascade.png", "restored.png", "metrics.json", "audio/restored.wav", "audio/upsampled-0000.wav")
    files += [results / "00000-eval" / name for name in made]
    assert all(path.stat().st_size > 0 for path in files)


def assert_phase_run_is_complete(root):
    run, results = (root / folder / "phase" / "00000-SMOKE" for folder in ("Models", "Results"))
    files = [run / name for name in ("conf.json", "metrics.csv", "ema-00000020.pth", "graph.pt")]
    files += [results / name for name in ("loss.png", "inverses-00000020.png", "inverses.png")]
    assert all(path.stat().st_size > 0 for path in files)


def assert_vae_run_is_complete(root):
    run, results = (root / folder / "vae" / "00000-SMOKE" for folder in ("Models", "Results"))
    files = [run / name for name in ("conf.json", "ema-00000020.pth", "latent-00000020.pth", "graph.pt")]
    pictures = ("reconstructions", "bands", "latents", "walk", "prior")
    files += [results / "loss.png", *(results / "00000-eval" / f"{name}.png" for name in pictures)]
    files += [
        results / "00000-eval" / "metrics.json",
        results / "00000-eval" / "audio" / "reconstruction-0000.wav",
    ]
    assert all(path.stat().st_size > 0 for path in files)


def assert_experiment_is_complete(root):
    folder = root / "Results" / "Experiments" / "SMOKE"
    assert (folder / "06-norm.png").stat().st_size > 0
    assert "| BatchNorm |" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_notebooks_run_on_demo_music(tmp_path):
    assert_pictures_and_sound_are_in_the_page(run_notebooks(tmp_path))
    assert_run_is_complete(tmp_path)


def write_music(folder):
    """Somebody's music: four formats, two rates, mono and stereo, nested, with broken files among them."""
    rng = np.random.default_rng(0)
    formats = [("wav", 44_100, 2), ("flac", 48_000, 1), ("ogg", 44_100, 2), ("mp3", 48_000, 2)]
    for number, (suffix, rate, channels) in enumerate(formats * 2):
        seconds = np.arange(12 * rate) / rate
        tones = sum(
            np.sin(2 * np.pi * f * seconds) * np.exp(-(seconds % 0.5) * 6) for f in rng.uniform(100, 3000, 4)
        )
        path = folder / ("Дискъ 1" if number % 2 else "live/été") / f"{number} – песня.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.2 * np.stack([tones] * channels, axis=1), rate)
    (folder / "broken.mp3").write_bytes(b"not music at all")
    (folder / "empty.wav").touch()
    soundfile.write(folder / "short.wav", np.zeros(100), 44_100)
    soundfile.write(folder / "silent.flac", np.zeros(12 * 44_100), 44_100)
    (folder / "cover.jpg").write_bytes(b"\xff\xd8")
    whole = (folder / "live/été" / "0 – песня.wav").read_bytes()
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])


@pytest.mark.slow
def test_notebooks_run_on_somebodys_own_mixed_files(tmp_path):
    write_music(tmp_path / "music")
    outputs = run_notebooks(tmp_path, CONF_MUSIC=str(tmp_path / "music"))
    assert_pictures_and_sound_are_in_the_page(outputs)
    assert_run_is_complete(tmp_path)
    manifest = json.loads((tmp_path / "Data" / "smoke" / "manifest.json").read_text(encoding="utf-8"))
    skipped = {source["file"] for source in manifest["sources"] if source["skipped"]}
    assert skipped == {"broken.mp3", "empty.wav", "short.wav", "silent.flac", "cut.wav"}
    assert len(manifest["sources"]) == 8 + len(skipped)
