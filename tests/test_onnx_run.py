"""A run in onnxruntime: the same clips from the same seeds, in every space, and refusals."""

import re
import shutil
import sys
from dataclasses import replace
from importlib.util import find_spec

import generate
import onnxruntime
import pytest
import soundfile
import torch
from conftest import QUICK

from Conf import in_space
from Libraries.Runs import DiffusionRun, OnnxRun, export_run, make_music, train_diffusion, train_upsampler
from Libraries.Runs.Autoencoding import train_vae
from Libraries.Runs.Run import RELEASED
from Libraries.Runs.Settings import changed
from Libraries.Sampling.Guidance import GuidanceConfig
from Libraries.Training.Checkpoint import CheckpointError
from Libraries.Training.Graphs import weights_hash

MODEL = "diffusion-cpu"
pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxscript"))),
    reason="onnx and onnxscript, which write .onnx, are not installed",
)


def both(run_dir):
    """A run in torch, in float32, and in onnxruntime."""
    models = DiffusionRun.load(run_dir, torch.device("cpu")), OnnxRun.load(run_dir)
    for model in models:
        model.precision = model.codec.precision = "no"
    return models


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A copy of the released model, since its networks are exported beside its weights."""
    folder = tmp_path_factory.mktemp("root") / "Models" / "diffusion" / MODEL
    shutil.copytree(RELEASED / MODEL, folder, ignore=shutil.ignore_patterns("onnx"))
    return folder


@pytest.mark.slow
def test_the_released_model_makes_the_same_music_from_the_same_seed(released):
    torch_model, onnx_model = both(released)
    settings = torch_model.run.settings
    sampler, label = replace(settings.sampler, num_inference_steps=4), torch_model.label_of("choir")
    options = {"label": label, "guidance": settings.guidance}  # autoguidance: the guide is exported too
    clips = [model.generate([3, 4], sampler, 2, labels=label.expand(2), guidance=settings.guidance)
             for model in (torch_model, onnx_model)]  # fmt: skip
    assert (clips[0] - clips[1]).abs().max() < 1e-3 < clips[0].std()
    music = [
        make_music(model, 3, 3.0, sampler, settings.edit, **options) for model in (torch_model, onnx_model)
    ]
    assert (music[0] - music[1]).square().mean() < 1e-4 * music[0].square().mean()
    names = {path.name for path in (released / "onnx").iterdir()}
    assert names == {"network-00016000.onnx", "network-00001500.onnx", "encoder.onnx", "decoder.onnx"}


@pytest.mark.slow
def test_each_network_is_within_1e_4_of_torch_in_any_batch(released):
    torch_model, onnx_model = both(released)
    torch.manual_seed(0)
    for size in (1, 3):
        x, x0 = torch.randn(size, *torch_model.shape), torch.rand(size, 1, 128, 128) * 2 - 1
        t, cond = torch.randint(0, 1000, (size,)), torch.randint(0, 12, (size,))
        with torch.no_grad():
            pairs = [
                (torch_model.network(x, t, cond), onnx_model.network(x, t, cond)),
                (torch_model.network(x, t), onnx_model.network(x, t)),  # no label
                (torch_model.encode(x0), onnx_model.encode(x0)),
                (torch_model.decode(x), onnx_model.decode(x)),
            ]
        assert all((ours - theirs).abs().max() < 1e-4 for ours, theirs in pairs)
    with pytest.raises(ValueError, match=r"got \(3, 1, 128, 128\)"):
        onnx_model.network(x0, t)


@pytest.mark.slow
def test_other_programs_find_the_networks_by_name_and_need_no_torch(released):
    files = export_run(DiffusionRun.load(released))
    sessions = {name: onnxruntime.InferenceSession(path) for name, path in files.items()}
    inputs = {name: [(there.name, there.type, there.shape[0]) for there in session.get_inputs()]
              for name, session in sessions.items()}  # fmt: skip
    assert inputs == {
        "network": [("x", "tensor(float)", "batch"), ("t", "tensor(int64)", "batch"),
                    ("cond", "tensor(int64)", "batch")],
        "encoder": [("x0", "tensor(float)", "batch")],
        "decoder": [("z", "tensor(float)", "batch")],
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("space", ["spectrogram", "small", "latent"])
def test_a_run_of_every_space_makes_the_same_clips(space, chords):
    quick = changed(in_space(chords, space), {"train": changed(chords.train, QUICK)})
    if space == "small":
        train_upsampler(changed(quick, {"upsampler.train": changed(quick.upsampler.train, QUICK)}))
    if space == "latent":
        train_vae(changed(quick, {"vae.train": changed(quick.vae.train, QUICK)}))
    models = both(train_diffusion(quick))
    if space == "small":
        for model in models:
            model.codec.upsampler.precision = "no"
    ours, theirs = (model.generate([5, 6, 7], quick.sampler, 2, progress=False) for model in models)
    assert (ours - theirs).abs().max() < 1e-3 < ours.std()


@pytest.fixture(scope="module")
def run_dir(chords):
    return train_diffusion(replace(chords, train=changed(chords.train, QUICK)))


@pytest.mark.slow
def test_guidance_away_from_an_earlier_checkpoint_is_computed_in_onnxruntime(run_dir, chords):
    model = OnnxRun.load(run_dir)
    auto = GuidanceConfig("autoguidance", scale=2.0, rescale=0.0, guide_at=0.5)
    model.generate([0], chords.sampler, 1, guidance=auto, progress=False)
    assert type(model.guide) is type(model.network)
    assert (run_dir / "onnx" / "network-00000002.onnx").exists()


@pytest.mark.slow
def test_a_network_is_exported_once_and_again_when_its_weights_are_others(run_dir, tmp_path):
    copy = tmp_path / "Models" / "diffusion" / run_dir.name
    shutil.copytree(run_dir, copy)
    model = DiffusionRun.load(copy)
    path = export_run(model)["network"]
    before = path.stat().st_mtime_ns
    assert export_run(model)["network"] == path == copy / "onnx" / "network-00000004.onnx"
    assert path.stat().st_mtime_ns == before
    with torch.no_grad():
        model.network.out.bias.add_(1.0)
    export_run(model)
    x, t = torch.randn(1, *model.shape), torch.tensor([7])
    session = onnxruntime.InferenceSession(path)
    output = session.run(None, {"x": x.numpy(), "t": t.numpy()})[0]
    assert session.get_modelmeta().custom_metadata_map["weights"] == weights_hash(model.network)
    assert (torch.from_numpy(output) - model.network(x, t)).abs().max() < 1e-4


@pytest.mark.slow
def test_music_is_generated_in_onnxruntime_from_a_terminal(run_dir, tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    options = ["-o", str(path), "--run", str(run_dir), "--steps", "2", "--runtime", "onnx"]
    monkeypatch.setattr("sys.argv", ["generate.py", *options])
    assert generate.main() == 0
    assert abs(soundfile.read(path)[0]).max() > 0.01


@pytest.mark.slow
def test_what_onnxruntime_cannot_do_is_refused_in_a_sentence(run_dir, monkeypatch):
    with pytest.raises(ValueError, match="device='cuda' is unknown; choose one of cpu"):
        OnnxRun.load(run_dir, torch.device("cuda"))
    with pytest.raises(ValueError, match="labels were given to a network without classes"):
        OnnxRun.load(run_dir).network(torch.zeros(1, 1, 32, 64), torch.tensor([0]), torch.tensor([0]))
    path = run_dir / "onnx" / "network-00000004.onnx"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(
        CheckpointError, match=rf"{re.escape(str(path))} cannot be read as ONNX .*: delete it"
    ):
        OnnxRun.load(run_dir)
    path.unlink()
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match="writing ONNX needs onnx: `pip install onnx onnxscript`"):
        OnnxRun.load(run_dir)
