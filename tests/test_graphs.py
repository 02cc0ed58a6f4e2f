"""Exported networks compute what the networks compute, in every format and for every batch."""

import sys
import warnings

import numpy as np
import pytest
import torch
from conftest import randomise
from torch import nn

from Conf import SMOKE, in_space
from Libraries.Networks import JOURNAL, journal_network
from Libraries.Networks.Catalogue import make_network
from Libraries.Phase import PhaseNet
from Libraries.Training.Graphs import export_graph, export_graphs, weights_hash
from Libraries.VAE import VAE


def loaded(path):
    """What was exported, as a function of tensors that returns a tensor or a tuple."""
    if path.suffix == ".pt":
        return torch.jit.load(path)
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [there.name for there in session.get_inputs()]

    def run(*inputs):
        feed = {name: part.numpy() for name, part in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(["output"], feed)[0])

    return run


def needs(suffix):
    if suffix == ".onnx":
        for name in ("onnx", "onnxscript"):
            pytest.importorskip(name, reason=f"{name}, which writes .onnx, is not installed")


@pytest.mark.parametrize("suffix", [".pt", ".pt2", ".onnx"])
def test_exported_graph_computes_what_the_network_computes(suffix, tmp_path):
    needs(suffix)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Dropout(0.5), nn.SiLU())
    x = torch.randn(1, 1, 8, 8)
    export_graph(network, (x,), tmp_path / f"graph{suffix}")
    assert network.training  # as it was before
    assert torch.allclose(loaded(tmp_path / f"graph{suffix}")(x), network.eval()(x), atol=1e-6)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("name", [None, *(name for name in JOURNAL if name != "attention_unet")])
@torch.no_grad()
def test_every_network_takes_any_batch(name, suffix, tmp_path):
    needs(suffix)
    torch.manual_seed(0)
    config = journal_network(name, 0, width=0.25) if name else in_space(SMOKE, "spectrogram").network
    network = randomise(make_network(config, 1, 1), 0.1).eval()
    example = torch.zeros(1, 1, 32, 64), torch.tensor([0])
    export_graph(network, example, tmp_path / f"graph{suffix}")
    run = loaded(tmp_path / f"graph{suffix}")
    for size in (1, 2, 5):
        x, t = torch.randn(size, 1, 32, 64), torch.randint(0, 1000, (size,))
        assert (run(x, t) - network(x, t)).abs().max() < 1e-4


@torch.no_grad()
def test_outputs_of_our_own_types_become_a_tuple_of_tensors(tmp_path):
    torch.manual_seed(0)
    vae = randomise(VAE(SMOKE.vae.network, SMOKE.spectrogram.shape), 0.1).eval()
    example = torch.zeros(1, *vae.shape), torch.zeros(1, *vae.latent_shape)
    export_graphs(vae, example, tmp_path)
    x0, noise = torch.randn(3, *vae.shape), torch.randn(3, *vae.latent_shape)
    reconstruction, posterior = vae(x0, noise)
    run = loaded(tmp_path / "graph.pt2")
    for ours, theirs in zip((reconstruction, *posterior), run(x0, noise), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.pt", "graph.pt2"]


@torch.no_grad()
def test_learned_phase_takes_any_batch(tmp_path):
    network = randomise(PhaseNet(SMOKE.phase.network, SMOKE.spectrogram), 0.1).eval()
    level = -80 * torch.rand(5, SMOKE.spectrogram.n_fft // 2 + 1, 32)
    export_graph(network, (level[:1],), tmp_path / "graph.pt2")
    run = loaded(tmp_path / "graph.pt2")
    for size in (1, 2, 5):
        assert torch.allclose(run(level[:size]), network(level[:size]), atol=1e-5)


def test_tracing_a_network_that_looks_at_its_shapes_warns_of_nothing(tmp_path):
    class Looks(nn.Module):
        def forward(self, x):
            return x * 2 if x.shape[0] * torch.ones(()) > 0 else x

    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        export_graph(Looks(), (torch.zeros(1, 2),), tmp_path / "graph.pt")


def test_an_onnx_file_says_of_which_weights_it_is_and_names_its_inputs(tmp_path, recwarn, capfd):
    needs(".onnx")
    import onnx

    network = make_network(in_space(SMOKE, "spectrogram").network, 1, 1)
    export_graph(network, (torch.zeros(1, 1, 32, 64), torch.tensor([0])), tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [there.name for there in model.graph.input] == ["x", "t"]
    assert [there.name for there in model.graph.output] == ["output"]
    assert {there.key: there.value for there in model.metadata_props}["weights"] == weights_hash(network)
    assert not list(recwarn) and capfd.readouterr() == ("", "")


def test_weights_have_another_hash_when_one_value_differs():
    network = nn.Linear(2, 3)
    before = weights_hash(network)
    assert weights_hash(network) == before
    with torch.no_grad():
        network.weight[0, 0] = np.nextafter(network.weight[0, 0].item(), np.inf, dtype=np.float32).item()
    assert weights_hash(network) != before


def test_what_cannot_be_exported_is_refused_in_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"suffix='.h5' is unknown; choose one of .pt, .pt2, .onnx"):
        export_graph(nn.Linear(1, 1), (torch.zeros(1, 1),), tmp_path / "a.h5")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"writing ONNX needs .*onnxscript: `pip install onnx onnxscript`"):
        export_graph(nn.Linear(1, 1), (torch.zeros(1, 1),), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
