"""Imports go one way: a module of Libraries uses only those above it, and none knows Conf."""

import ast
from pathlib import Path

import pytest

LIBRARIES = Path(__file__).parent.parent / "Libraries"

# From the ground up; each may import those before it.
ORDER = (
    "Utils", "Interrupt", "RunLog",
    "Audio", "FilterBanks", "PhaseRetrieval", "SpectrogramConfig", "Spectrogram", "LowResolution",
    "Metrics", "Seams",
    "SoundFont", "Scores", "DemoMusic",
    "DatasetManifest", "DatasetShards", "DatasetBuild", "Augmentation", "Batches", "Dataset",
    "Conditioning", "Layers", "Phase", "OriginVAE", "VAE", "VAELoss", "VAEChecks",
    "U_Net", "UNetV0", "AttentionUNet", "Networks",
    "Schedules", "Diffusion", "Likelihood", "Objective", "Solvers", "Samplers", "Windows", "Guidance",
    "Editing",
    "Checkpoint", "PostHocEMA", "TrainConfig", "Training", "Timing",
    "ImagesConfig", "Images", "ImageClassifier",
    "Settings", "TrainedNetwork", "Plots", "CurvePlots", "ImagePlots", "Preparation", "Runs",
    "PhaseRuns", "PhaseTraining",
    "Autoencoding", "LatentEditing", "Upsampler", "Restoration", "Cascade", "Generator", "Pipeline",
    "Evaluation", "Comparison", "VAEEvaluation", "UpsamplerEvaluation",
    "ImageRuns", "ImageEvaluation",
    "Experiments", "ExperimentPlots", "ExperimentReport",
)  # fmt: skip


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_every_module_has_its_place():
    assert {path.stem for path in LIBRARIES.glob("*.py")} == {*ORDER, "__init__"}


@pytest.mark.parametrize("module", ORDER)
def test_module_imports_only_from_above(module):
    names = list(imported_modules(LIBRARIES / f"{module}.py"))
    assert not [name for name in names if name.split(".")[0] in ("Conf", "MainScripts")]
    used = {name.split(".")[1] for name in names if name.startswith("Libraries.")}
    assert used <= set(ORDER[: ORDER.index(module)])


def test_only_the_process_knows_the_schedule_and_only_the_network_the_layers():
    assert "Libraries.U_Net" not in list(imported_modules(LIBRARIES / "Diffusion.py"))
    assert "Libraries.Diffusion" not in list(imported_modules(LIBRARIES / "U_Net.py"))
