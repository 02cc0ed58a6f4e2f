"""The benchmarks: peers are the ones named, exact networks make them exact, models are timed in turns."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch

from benchmarks.common import Peer, machine_line, print_table, size_of
from Conf import SMOKE, in_space
from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Evaluation.Reference import make_yardstick
from Libraries.Runs.Settings import changed
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Training.Timing import median_in_turns

CPU = torch.device("cpu")


def test_peer_has_19_million_parameters_and_172_gflop_a_pass():
    pytest.importorskip("diffusers")
    parameters, gflop = size_of(Peer)
    assert (round(parameters, 1), round(gflop)) == (19.0, 172)


def test_models_are_timed_in_turns_after_a_warm_up():
    called = []
    calls = {name: lambda name=name: called.append(name) for name in "ABC"}
    seconds = median_in_turns(calls, 2, CPU)
    assert "".join(called) == "ABC" * 3
    assert list(seconds) == ["A", "B", "C"]


def test_table_is_markdown(capsys):
    print_table(["model", "s"], [["BASE", "0.25"]])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["| model | s    |", "| ----- | ---- |", "| BASE  | 0.25 |"]


def test_machine_line_names_the_version_of_torch():
    assert torch.__version__ in machine_line(CPU)


def test_an_autoencoder_is_trained_once_and_measured(chords, monkeypatch, few_draws):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import vae as benchmark

    monkeypatch.setitem(benchmark.VAES, "residual_16", replace(SMOKE.vae.network, channels=(8, 16)))
    first, again = (benchmark.trained("residual_16", chords, minutes=0.001) for _ in range(2))
    train, real = (SpectrogramDataset(chords.dataset_dir, split) for split in ("train", "validation"))
    yardstick = make_yardstick(Spectrogram(chords.spectrogram, train.typical_gain).decode, train, real, 3)
    found = benchmark.measure(first, yardstick, real)
    row, floor = benchmark.row("residual_16", found), benchmark.floor(found)
    assert first == again and len(row) == len(floor) == len(benchmark.HEADER)
    assert row[2:4] == ["4x12x16", "16"]
    journal = benchmark.variant("conv", chords, 1)
    assert (journal.vae.train.batch_size, journal.vae.train.learning_rate) == (32, 1e-4)


def test_a_cascade_and_its_rival_are_trained_once_and_shown(chords, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import upsampler as benchmark

    settings = changed(chords, {"evaluation.compared_clips": 2, "evaluation.upsampler_steps": (1,)})
    direct, again = (benchmark.train_directly(settings, 0.001) for _ in range(2))
    assert direct == again
    cascade = in_space(settings, "small")
    first, again = (benchmark.train_cascade(cascade, 0.001) for _ in range(2))
    assert first == again and len(list((cascade.models_dir / "upsampler").iterdir())) == 1
    newer = benchmark.train_cascade(cascade, 0.002)  # of the same view
    model = benchmark.load_cascade(first, cascade)
    used = model.codec.upsampler.run_dir.name
    assert used.endswith("-0.001min") and newer != first
    said = benchmark.save_examples(model, cascade)
    assert said.startswith("piece") and "LSD above" in said
    folder = cascade.results_dir / "diffusion" / first.name / "benchmark"
    assert {path.name for path in folder.glob("*.png")} == {"cascade.png", "restored.png"}
    assert soundfile.info(folder / "audio" / "8khz.wav").samplerate == 8_000
    assert {"lost", "restored", "original", "upsampled-0000"} <= {p.stem for p in folder.glob("audio/*.wav")}


SHAPE, CONSTANT = (1, 32, 64), 0.3  # of data that are the same everywhere, whose best network is known


@pytest.fixture
def peer_systems():
    pytest.importorskip("a_unet")
    return pytest.importorskip("benchmarks.peer_systems")


@pytest.mark.parametrize("parameters", [1_800_000, 2_845_636, 7_100_000])
def test_peers_are_about_the_size_they_are_asked_for(peer_systems, parameters):
    for make in peer_systems.PEERS.values():
        size = peer_systems.count_parameters(make((1, 96, 128), parameters, 100, 1e-4, "cpu").network)
        assert 0.6 * parameters < size < 1.4 * parameters


def test_v_diffusion_is_exact_with_an_exact_network(peer_systems):
    peer = peer_systems.UNetV0Peer(SHAPE, 100_000, 10, 1e-4, "cpu")

    def exact(x, sigma):
        angle = sigma[:, None, None, None] * torch.pi / 2
        noise = (x - angle.cos() * CONSTANT) / angle.sin()
        return angle.cos() * noise - angle.sin() * CONSTANT

    del peer.network, peer.ema
    peer.network = peer.ema = exact
    generator = torch.Generator().manual_seed(0)
    assert peer.loss(torch.full((16, *SHAPE), CONSTANT), generator) < 1e-4
    for steps in (1, 7):
        samples = peer.sample(torch.randn(2, *SHAPE, generator=generator), steps)
        assert torch.allclose(samples, torch.full_like(samples, CONSTANT), atol=1e-4)


def test_ddpm_of_diffusers_is_exact_with_an_exact_network(peer_systems, monkeypatch):
    peer = peer_systems.UNet2DPeer(SHAPE, 100_000, 10, 1e-4, "cpu")
    abar = peer.noising.alphas_cumprod

    def exact(self, x, t):
        signal = abar[t].sqrt().reshape(-1, 1, 1, 1)
        return argparse.Namespace(sample=(x - signal * CONSTANT) / (1 - signal**2).sqrt())

    monkeypatch.setattr(type(peer.network), "forward", exact)
    generator = torch.Generator().manual_seed(0)
    assert peer.loss(torch.full((16, *SHAPE), CONSTANT), generator) < 1e-4
    samples = peer.sample(torch.randn(2, *SHAPE, generator=generator), 7)
    assert torch.allclose(samples, torch.full_like(samples, CONSTANT), atol=1e-3)


def test_the_average_of_unet_v0_follows_its_authors(peer_systems):
    peer = peer_systems.UNetV0Peer(SHAPE, 100_000, 200, 1e-4, "cpu")
    weight, averaged = next(peer.network.parameters()), next(peer.ema.parameters())
    expected = averaged[0].item() if averaged.ndim == 1 else averaged.flatten()[0].item()
    for step in range(1, 131):
        with torch.no_grad():
            weight.fill_(step)
        peer.average(step)
        if step % 10 == 0:
            kept = 0.0 if step <= 100 else 1 - (step - 99) ** -0.7
            expected = kept * expected + (1 - kept) * step
        assert averaged.flatten()[0].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("system", ["ours", "ours, in latents", "UNetV0, 1e-4", "UNet2DModel, 1e-3"])
def test_a_peer_is_trained_sampled_and_judged_once(
    chords, peer_systems, monkeypatch, tmp_path, capsys, few_draws, system
):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import peers

    monkeypatch.setattr(peers, "TIMED_STEPS", 4)
    args = argparse.Namespace(measure=system, seeds=[1], minutes=1e-4, clips=3, steps=2, root=tmp_path)
    peers.generate(chords, args)
    path = peers.result_path(args, system, 1)
    peers.judge(chords, [path])
    found = json.loads(path.read_text())
    assert (found["system"], found["seed"], found["train_steps"], found["clips"]) == (system, 1, 10, 3)
    positive = ("parameters", "train_seconds", "seconds_per_step", "seconds_per_clip", "peak_gigabytes")
    assert all(found[name] > 0 for name in positive)
    monkeypatch.setattr(peers, "make_dataset", lambda settings: None)
    monkeypatch.setattr(peers, "run_in_fresh_process", lambda *_: pytest.fail("it was measured already"))
    options = ["--seeds", "1", "--minutes", "1e-4", "--clips", "3", "--steps", "2", "--only", system]
    monkeypatch.setattr("sys.argv", ["peers.py", "--root", str(tmp_path), *options])
    peers.main()
    table = capsys.readouterr().out.splitlines()
    value = peers.number(found["kernel distance"]["value"])
    assert f"| {value} " in next(line for line in table if line.startswith(f"| {system}"))
    assert any(line.startswith("| real training music: the floor") for line in table)
    assert json.loads(path.read_text()) == found


def test_the_nearer_learning_rate_of_a_peer_is_marked(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import peers

    values = {"ours": 9.0, "UNetV0, 1e-4": 5.0, "UNetV0, 1e-3": 3.0, "UNet2DModel, 1e-3": 1.0}
    results = {system: [{"kernel distance": {"value": value}}] for system, value in values.items()}
    assert [peers.named(system, results) for system in results] == [
        "ours", "UNetV0, 1e-4", "UNetV0, 1e-3 (its better one)", "UNet2DModel, 1e-3",
    ]  # fmt: skip


def test_other_options_of_the_peers_are_other_files(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import peers

    usual = argparse.Namespace(minutes=5, clips=48, steps=50, root=tmp_path)
    others = [{"minutes": 3}, {"clips": 8}, {"steps": 20}]
    namespaces = [usual, *(argparse.Namespace(**(vars(usual) | other)) for other in others)]
    paths = {
        peers.result_path(args, system, seed)
        for args in namespaces for system in peers.SYSTEMS for seed in (0, 1)
    }  # fmt: skip
    assert len(paths) == len(namespaces) * len(peers.SYSTEMS) * 2


def test_learned_phase_is_trained_once_and_measured(chords, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import phase as benchmark

    changes = {"preset": "bands", "phase.train.num_steps": 2, "phase.train.save_every": 1}
    settings = changed(chords, changes)
    first, again = (benchmark.train_or_find(settings, chords.music_dir) for _ in range(2))
    clips = 0.1 * torch.randn(2, 1, settings.spectrogram.clip_samples)
    tables = list(benchmark.rows_of({"noise": clips}, {"bands": (settings, first)}))
    assert first == again and [name for name, _ in tables] == ["noise, 2 clips"]
    assert len(tables[0][1].splitlines()) == 2 + 2  # the inverses of bands alone


def test_the_whole_way_goes_from_a_folder_of_music_to_a_row_of_figures(
    chords, monkeypatch, few_draws, tmp_path
):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import own_music as benchmark

    monkeypatch.setattr(benchmark, "CPU", in_space(chords, "spectrogram"))
    settings = benchmark.settings_of(chords.music_dir, tmp_path, seed=1, clips=2)
    settings = changed(settings, {"train.num_steps": 2, "train.save_every": 2, "guidance.method": "none"})
    first, again = (benchmark.whole_way(settings) for _ in range(2))
    assert first == again and len(list((settings.models_dir / "diffusion").iterdir())) == 1
    assert len(benchmark.cells(first)) == len(benchmark.HEADER) - 2  # no autoencoder on spectrograms
