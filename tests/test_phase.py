"""Learned phase: what the network sees and says, its training, and who may decode with it."""

import functools
import json
import shutil
import sys
from dataclasses import replace

import pytest
import soundfile
import torch
from conftest import QUICK
from torch.nn import functional as F

from Conf import BASE, ORIGIN, SMOKE, in_space
from Libraries.Dataset.Manifest import DatasetError
from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset, read_clip
from Libraries.Networks.Catalogue import count_parameters
from Libraries.Phase import LearnedPhase, PhaseLoss, PhaseNet, relative_level
from Libraries.Plots.CurvePlots import plot_phase_metrics
from Libraries.Plots.SpectrogramPlots import plot_inverses
from Libraries.Runs.Autoencoding import train_vae
from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.DiffusionTraining import train_diffusion
from Libraries.Runs.Phases import (
    PhaseDataset,
    compare_inverses,
    phase_loaders,
    release_phase,
    train_phase,
)
from Libraries.Runs.Run import RELEASED, find_phase, load_phase, open_spectrogram
from Libraries.Runs.Settings import changed
from Libraries.Runs.Spaces import open_codec
from Libraries.Sound.Audio import load_audio
from Libraries.Sound.Metrics import round_trip
from Libraries.Sound.PhaseRetrieval import heap_edges, stft
from Libraries.Sound.Spectrogram import Gain, Spectrogram
from Libraries.Training.Checkpoint import CheckpointError
from Libraries.Training.RunLog import read_metrics

BANDS = SMOKE.spectrogram
MAGNITUDE = replace(BANDS, representation="magnitude", n_fft=480, win_length=480, hop_length=288)


@pytest.fixture(scope="module")
def settings(chords):
    return changed(chords, {f"phase.train.{name}": value for name, value in QUICK.items()})


@pytest.fixture(scope="module")
def run_dir(settings):
    return train_phase(settings, settings.music_dir)


@pytest.fixture(scope="module")
def dataset(settings):
    return PhaseDataset(settings, settings.music_dir, "train")


def make_net(spectrogram=BANDS, seed=0):
    torch.manual_seed(seed)
    network = PhaseNet(SMOKE.phase.network, spectrogram)
    for parameter in network.parameters():  # a fresh one has layers of zeros
        torch.nn.init.normal_(parameter, std=0.05)
    return network


def tone_spectrum(spectrogram=BANDS, clips=1):
    seconds = torch.arange(spectrogram.clip_samples) / spectrogram.sample_rate
    pitches = 300 + 130 * torch.arange(clips)[:, None]
    waveform = sum(torch.sin(2 * torch.pi * k * pitches * seconds) / k for k in (1, 2, 3, 5)) / 3
    waveform = waveform * torch.exp(-4 * (seconds % 0.5))
    window = torch.hann_window(spectrogram.win_length)
    return stft(waveform, window, spectrogram.n_fft, spectrogram.hop_length)[..., : spectrogram.n_frames]


@pytest.mark.parametrize("level", [1e-6, 0.125, 512.0])
def test_phase_does_not_depend_on_the_level(level):
    magnitude = tone_spectrum(clips=2).abs()
    learned = LearnedPhase(make_net(), "no")
    apart = torch.polar(magnitude, learned(level * magnitude)) - torch.polar(magnitude, learned(magnitude))
    assert apart.norm() < 1e-3 * magnitude.norm()


def batch_of(spectrum):
    return relative_level(spectrum.abs()), spectrum.angle(), *heap_edges(spectrum.abs())


def unit_vectors(d_time, d_freq):
    """What the network would have to say to mean these differences, which lack a last frame and bin."""
    angles = (F.pad(d_time, (0, 1)), F.pad(d_freq, (0, 0, 0, 1)))
    return torch.stack([part for angle in angles for part in (angle.cos(), angle.sin())], dim=1)


def test_loss_does_not_depend_on_a_constant_phase_nor_on_the_level():
    spectrum, network = tone_spectrum(clips=2), make_net()
    turned = 3 * spectrum * torch.polar(torch.ones(1), torch.tensor([2.0]))
    loss, same = (
        PhaseLoss(SMOKE.phase.network)(network, batch_of(x), torch.arange(2)) for x in (spectrum, turned)
    )
    torch.testing.assert_close(loss, same, atol=1e-4, rtol=0)
    assert (loss > 0.01).all()


class Said(torch.nn.Module):
    """Gives the same answer to everything."""

    def __init__(self, network, answer):
        super().__init__()
        self.n_bins, self.residuals, self.answer = network.n_bins, network.residuals, answer
        self.parameter = torch.nn.Parameter(torch.zeros(1))

    def forward(self, level):
        return self.answer


def test_loss_is_zero_for_true_differences_and_one_for_chance():
    spectrum, network, loss_fn = tone_spectrum(), make_net(), PhaseLoss(SMOKE.phase.network)
    answer = unit_vectors(*network.residuals(spectrum.angle()))
    true = loss_fn.validate(Said(network, answer), [batch_of(spectrum)])
    assert list(true) == list(loss_fn.metric_names) and max(map(abs, true.values())) < 1e-5
    chance = torch.randn(answer.shape, generator=torch.Generator().manual_seed(0)).chunk(2, dim=1)
    chance = torch.cat([F.normalize(part, dim=1) for part in chance], dim=1)
    for value in loss_fn.validate(Said(network, chance), [batch_of(spectrum)]).values():
        assert abs(value - 1) < 0.2


def test_loss_counts_differences_along_time_and_along_frequency():
    spectrum, network, loss_fn = tone_spectrum(), make_net(), PhaseLoss(SMOKE.phase.network)
    d_time, d_freq = network.residuals(spectrum.angle())
    half_wrong = unit_vectors(d_time + torch.pi, d_freq), unit_vectors(d_time, d_freq + torch.pi)
    by_time, by_freq = (
        loss_fn(Said(network, answer), batch_of(spectrum), torch.arange(1)).item() for answer in half_wrong
    )
    assert min(by_time, by_freq) > 0.1
    assert by_time + by_freq == pytest.approx(2, abs=1e-4)  # an opposite vector has the error 2


def test_only_differences_that_the_heap_uses_count():
    spectrum, network, loss_fn = tone_spectrum(), make_net(), PhaseLoss(SMOKE.phase.network)
    residuals, edges = network.residuals(spectrum.angle()), heap_edges(spectrum.abs())
    wrong = [
        torch.where(used[:, : part.shape[1]], part, part + torch.pi)
        for part, used in zip(residuals, edges, strict=True)
    ]
    said = Said(network, unit_vectors(*wrong))
    assert loss_fn(said, batch_of(spectrum), torch.arange(1)).abs().max() < 1e-5


def test_a_fresh_network_says_what_pghi_says():
    magnitude = tone_spectrum().abs()
    network, level = PhaseNet(SMOKE.phase.network, BANDS), relative_level(magnitude)
    with torch.no_grad():
        d_time, d_freq = network.differences(network(level))
    per_bin, per_frame = torch.gradient(magnitude.double().log(), dim=(1, 2))
    reach = BANDS.hop_length * BANDS.n_fft / (0.25645 * BANDS.win_length**2)
    advance = 2 * torch.pi * BANDS.hop_length / BANDS.n_fft * torch.arange(BANDS.n_freqs)[:, None]
    by_time, by_freq = advance + reach * per_bin, -per_frame / reach - torch.pi
    loud = -F.max_pool2d(-level[:, None], 5, stride=1, padding=2)[:, 0] > -75  # the floor is far from there
    apart = (d_time - (by_time[..., 1:] + by_time[..., :-1]) / 2)[loud[..., 1:]]
    assert loud.sum() > 1_000 and apart.sin().abs().max() < 1e-3 and apart.cos().min() > 0
    apart = (d_freq - (by_freq[:, 1:] + by_freq[:, :-1]) / 2)[loud[:, 1:]]
    assert apart.sin().abs().max() < 1e-3 and apart.cos().min() > 0


@pytest.mark.parametrize("spectrogram", [BANDS, MAGNITUDE, BASE.spectrogram], ids=["bands", "short", "base"])
def test_true_residuals_decode_to_the_spectrum(spectrogram):
    spectrum, network = tone_spectrum(spectrogram), make_net(spectrogram)
    d_time, d_freq = network.residuals(spectrum.angle())
    said = network.differences(unit_vectors(d_time, d_freq))
    wanted = spectrum.angle().diff(dim=2), spectrum.angle().diff(dim=1)
    for found, true in zip(said, wanted, strict=True):
        rows = network.n_bins - (found.shape[1] < spectrum.shape[1])
        assert (found - true)[:, :rows].sin().abs().max() < 1e-3
        assert (found - true)[:, :rows].cos().min() > 0.999
        assert found.shape == true.shape


def test_clip_does_not_depend_on_its_batch():
    magnitude, learned = tone_spectrum(clips=10).abs(), LearnedPhase(make_net(), "no")
    both, alone = learned(magnitude)[9:], learned(magnitude[9:])
    assert (torch.polar(magnitude[9:], both) - torch.polar(magnitude[9:], alone)).norm() < 1e-3 * alone.norm()


@pytest.mark.parametrize("frames", [3, 37, 130])
def test_any_number_of_frames_has_a_phase(frames):
    magnitude = torch.rand(1, BANDS.n_freqs, frames)
    assert LearnedPhase(make_net(), "no")(magnitude).shape == magnitude.shape


def test_silence_has_a_phase():
    phase = LearnedPhase(make_net(), "no")(torch.zeros(1, BANDS.n_freqs, 16))
    assert phase.isfinite().all()


def test_magnitudes_of_another_transform_are_refused():
    with pytest.raises(ValueError, match=r"has shape \(1, 100, 16\); this phase network is for \(B, 385"):
        LearnedPhase(make_net(), "no")(torch.zeros(1, 100, 16))


@pytest.mark.parametrize("representation", ["complex", "mdct"])
def test_representations_that_carry_their_phase_are_refused(representation):
    signed = replace(BANDS, representation=representation)
    with pytest.raises(ValueError, match="carries its own"):
        PhaseNet(SMOKE.phase.network, signed)
    with pytest.raises(ValueError, match="set phase='pghi', which it leaves unused"):
        replace(signed, phase="learned")
    with pytest.raises(ValueError, match="no magnitudes without phase"):
        Spectrogram(signed).magnitude(torch.zeros(1, *signed.shape))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"channels": ()}, "one or more widths"),
        ({"channels": (12, 16)}, "multiples of norm_groups=8"),
        ({"fold_bins": 0}, "fold_bins=0 must be 1 or more"),
        ({"activation": "relu"}, "choose one of silu, gelu"),
        ({"crop_frames": 1}, "2 or more"),
        ({"mix": 1.5}, r"mix=1.5 must be within \[0, 1\]"),
        ({"weight_power": -1}, "0 or more"),
        ({"blocks_per_level": 0}, "1 or more"),
        ({"frequency_features": -1}, "0 or more"),
    ],
)
def test_impossible_settings_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(SMOKE.phase.network, **change)


def test_network_of_the_presets_has_about_three_million_parameters():
    for preset in (ORIGIN, BASE):
        with torch.device("meta"):
            network = PhaseNet(preset.phase.network, preset.spectrogram)
        assert 2.5e6 < count_parameters(network) < 4e6


def test_magnitudes_of_a_clip_are_those_that_it_is_decoded_from():
    seen = []
    spectrogram = Spectrogram(
        replace(BANDS, phase="learned", griffin_lim_iterations=0),
        phase_model=lambda magnitude: seen.append(magnitude) or torch.zeros_like(magnitude),
    )
    x0, gain = spectrogram.encode_with_gain(0.1 * torch.randn(2, 1, BANDS.clip_samples))
    spectrogram.decode(x0, gain)
    assert torch.equal(spectrogram.magnitude(x0, gain), seen[0])
    torch.testing.assert_close(spectrogram.magnitude(x0[..., 8:40], gain), seen[0][..., 8:40])


def test_waveforms_are_those_of_the_dataset(settings, dataset):
    stored = SpectrogramDataset(settings.dataset_dir, "train")
    for i in (0, len(dataset) - 1):
        x0 = dataset.spectrogram.encode(dataset.waveform(i)[None])
        torch.testing.assert_close(x0[0], stored[i][0], atol=1e-3, rtol=0)
    level, phase, time_edges, freq_edges = dataset[1]
    assert level.shape == phase.shape == (BANDS.n_freqs, BANDS.n_frames)
    assert level.max() == 0 and level.min() >= -80
    assert time_edges.shape == (BANDS.n_freqs, BANDS.n_frames - 1)
    assert freq_edges.shape == (BANDS.n_freqs - 1, BANDS.n_frames)


def test_an_item_depends_on_its_seed_alone(dataset):
    frames = SMOKE.phase.network.crop_frames
    both = dataset.__getitems__([(0, 5), (1, 6)])
    assert both[0].shape == (2, BANDS.n_freqs, frames)
    assert all(torch.equal(a[1], b) for a, b in zip(both, dataset[1, 6], strict=True))
    assert not torch.equal(dataset[1, 6][0], dataset[1, 7][0])


def test_loaders_give_the_batches_of_a_run_that_was_never_stopped(settings):
    options = {"batch_size": 2, "seed": 3}
    first = iter(phase_loaders(settings, settings.music_dir, **options)[0])
    steps = [next(first) for _ in range(3)]
    resumed = next(iter(phase_loaders(settings, settings.music_dir, start_step=2, **options)[0]))
    assert all(torch.equal(a, b) for a, b in zip(steps[2], resumed, strict=True))
    _, validation = phase_loaders(settings, settings.music_dir, **options)
    assert [batch[0].shape[2] for batch in validation] == [BANDS.n_frames] * len(validation)


def test_run_records_what_it_was_made_of(settings, run_dir):
    conf = json.loads((run_dir / "conf.json").read_text())
    assert run_dir.parent == settings.models_dir / "phase"
    assert conf["settings"]["phase"]["network"]["fold_bins"] == 8
    results = settings.results_dir / "phase" / run_dir.name
    assert sorted(path.name for path in results.iterdir()) == ["inverses-00000004.png", "loss.png"]
    assert {"loss", "val_loss", "val_time", "val_frequency"} <= set().union(
        *read_metrics(run_dir / "metrics.csv")
    )


def test_an_interrupted_run_goes_on_to_the_same_weights(settings, run_dir, tmp_path, goes_on_to_the_same):
    train = functools.partial(train_phase, settings, settings.music_dir)
    assert goes_on_to_the_same(train, run_dir, tmp_path / "00007-again", "Runs.Phases.save_phase_preview")


def test_a_clip_is_the_sound_that_was_encoded_and_refused_where_its_file_changed(settings, dataset, tmp_path):
    stored = SpectrogramDataset(settings.dataset_dir, "train")
    again = dataset.spectrogram.encode(torch.stack([dataset.waveform(i) for i in range(2)]))
    assert torch.allclose(again, stored.__getitems__([0, 1])[0], atol=2e-3)  # kept as float16
    clip, config = dataset.clips[-1], dataset.spectrogram.config
    with pytest.raises(DatasetError, match="it was readable when the dataset was built"):
        read_clip(clip, tmp_path, config)
    sound, rate = soundfile.read(settings.music_dir / clip["source"])
    soundfile.write(tmp_path / clip["source"], sound[: int((clip["offset"] + 0.1) * rate)], rate)
    with pytest.raises(DatasetError, match="is shorter than when the dataset was built"):
        read_clip(clip, tmp_path, config)


def test_music_that_is_gone_is_said_before_there_is_a_run(settings, run_dir, tmp_path):
    with pytest.raises(DatasetError, match=r"audio files of .* are not in .* \(piece\d.wav, ...\)"):
        train_phase(settings, tmp_path)
    assert [run.name for run in (settings.models_dir / "phase").iterdir()] == [run_dir.name]


def test_decoding_without_a_model_says_what_to_do(settings, tmp_path):
    learned = replace(BANDS, phase="learned")
    spectrogram = Spectrogram(learned)
    x0 = spectrogram.encode(torch.zeros(1, 1, BANDS.clip_samples))
    with pytest.raises(ValueError, match=r"train one \(Train Phase\).* or set phase='pghi'"):
        spectrogram.decode(x0, Gain(torch.zeros(1), torch.ones(1)))
    with pytest.raises(CheckpointError, match=r"no learned phase for this spectrogram in .*: train one"):
        open_spectrogram(learned, tmp_path, "latest")
    with pytest.raises(CheckpointError, match="name a run's own folder"):
        open_spectrogram(learned, settings.models_dir / "phase", "00009-SMOKE")
    assert open_spectrogram(BANDS, tmp_path, "latest").phase_model is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sample_rate": 22_050}, "sample_rate is 16000 there and 22050 here"),
        ({"n_fft": 512, "win_length": 512}, "n_fft is 768 there and 512 here"),
        ({"hop_length": 192}, "hop_length is 256 there and 192 here"),
        ({"representation": "mel"}, "representation is bands there and mel here"),
        ({"n_bands": 128}, "n_bands is 96 there and 128 here"),
    ],
)
def test_foreign_magnitudes_are_refused(run_dir, change, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        load_phase(run_dir, replace(BANDS, **change))


def test_what_does_not_change_magnitudes_may_differ(run_dir):
    other = replace(BANDS, clip_seconds=1.1, value_range="zero_to_one", griffin_lim_iterations=3)
    assert isinstance(load_phase(run_dir, other), LearnedPhase)


def test_decoding_by_setting_uses_the_network(settings, run_dir, dataset):
    spectrogram = open_spectrogram(replace(BANDS, phase="learned"), settings.models_dir / "phase", "latest")
    x0, gain = spectrogram.encode_with_gain(dataset.waveform(0)[None])
    learned, by_pghi = (Spectrogram.decode(s, x0, gain) for s in (spectrogram, Spectrogram(BANDS)))
    assert learned.shape == by_pghi.shape and learned.isfinite().all()
    assert not torch.allclose(learned, by_pghi, atol=1e-3)
    sound = compare_inverses(BANDS, dataset.waveform(0)[None], spectrogram.phase_model)
    assert list(sound) == ["original", "PGHI", "learned"] and torch.allclose(sound["learned"], learned)


def test_a_released_run_says_the_same_in_half_the_bytes_and_not_where_it_was_trained(
    settings, run_dir, dataset, tmp_path, monkeypatch
):
    release_phase(run_dir, tmp_path / "released" / "phase-bands")
    files = {path.name for path in (tmp_path / "released" / "phase-bands").iterdir()}
    assert files == {"conf.json", "metrics.csv", "ema-00000004.safetensors"}
    assert str(settings.root) not in (tmp_path / "released" / "phase-bands" / "conf.json").read_text()
    monkeypatch.setattr(sys.modules["Libraries.Runs.Run"], "RELEASED", tmp_path / "released")
    nowhere = tmp_path / "phase"
    found = [find_phase(BANDS, nowhere, name) for name in ("latest", "phase-bands")]
    assert [path.name for path in found] == ["phase-bands"] * 2
    assert find_phase(BANDS, settings.models_dir / "phase", "latest") == run_dir  # one's own comes first
    magnitude = dataset.spectrogram.magnitude(
        *dataset.spectrogram.encode_with_gain(dataset.waveform(0)[None])
    )
    ours, theirs = (load_phase(run, BANDS)(magnitude) for run in (run_dir, found[0]))
    assert (magnitude * (ours - theirs).cos()).sum() / magnitude.sum() > 0.99
    with pytest.raises(CheckpointError, match="no learned phase for this spectrogram"):
        find_phase(MAGNITUDE, nowhere, "latest")


@pytest.mark.parametrize(
    "conf",
    [
        {"format": 1},
        {"format": 2},
        {"format": 2, "settings": {"spectrogram": {"sample_rate": 16_000}}},
        {"format": 2, "settings": {"spectrogram": None, "phase": {"train": 7}}},
        ["not", "settings"],
    ],
)
def test_a_run_that_cannot_be_read_is_passed_over(conf, tmp_path):
    broken = tmp_path / "phase" / "00003-BASE"
    broken.mkdir(parents=True)
    (broken / "ema-00000001.pth").touch()
    (broken / "conf.json").write_text(json.dumps(conf))
    assert find_phase(BASE.spectrogram, tmp_path / "phase", "latest").parent == RELEASED


def test_an_unfinished_phase_is_passed_over(settings, run_dir, tmp_path):
    unfinished = tmp_path / "phase" / "00001-unfinished"
    shutil.copytree(run_dir, unfinished, ignore=shutil.ignore_patterns("*-00000004.pth"))
    assert load_phase(unfinished, BANDS)
    with pytest.raises(CheckpointError, match="train one to its end"):
        find_phase(BANDS, tmp_path / "phase", "latest")
    shutil.copytree(run_dir, tmp_path / "phase" / "00000-finished")
    assert find_phase(BANDS, tmp_path / "phase", "latest").name == "00000-finished"


@pytest.mark.parametrize("preset", [BASE, ORIGIN], ids=lambda preset: preset.preset)
def test_what_comes_with_the_repository_fits_the_presets_and_is_nearer_than_pghi(preset, tmp_path):
    config = preset.spectrogram
    run = find_phase(config, tmp_path, preset.phase.run)
    assert config.phase == "learned" and run.parent == RELEASED
    clip = load_audio(RELEASED.parents[1] / "Data" / "music_file.wav", config.sample_rate)
    clip = clip[None, :, : config.clip_samples]
    learned = open_spectrogram(config, tmp_path, preset.phase.run)
    by_pghi = Spectrogram(replace(config, phase="pghi"))
    ours, theirs = (round_trip(each, clip).log_spectral_distance for each in (learned, by_pghi))
    assert ours < theirs


def test_generator_and_codec_decode_with_it_when_the_settings_say_so(settings, run_dir):
    vae_run = train_vae(changed(settings, {"vae.train.num_steps": 1}))
    changes = {"spectrogram.phase": "learned", "vae.run": vae_run.name, "train.num_steps": 1}
    learned = changed(in_space(settings, "latent"), changes)
    assert open_codec(learned).spectrogram.phase_model is None  # its own run's settings have PGHI
    run = train_diffusion(learned)
    assert isinstance(DiffusionRun.load(run).spectrogram.phase_model, LearnedPhase)
    assert DiffusionRun.load(run, inverse=BANDS).spectrogram.phase_model is None


def test_pictures_share_their_colours_and_are_labelled(dataset):
    waveforms = torch.stack([dataset.waveform(0), dataset.waveform(1)])
    sound = {"original": waveforms, "PGHI": waveforms * 0.5, "learned": waveforms}
    figure = plot_inverses(sound, BANDS.sample_rate, "title")
    axes = [axis for axis in figure.axes if axis.images]
    assert len(axes) == 10
    assert len({axis.images[0].get_clim() for axis in axes if " - " in axis.get_title()}) == 1
    assert len({axis.images[0].get_clim() for axis in axes if " - " not in axis.get_title()}) == 1
    assert all("(s)" in axis.get_xlabel() and "Hz" in axis.get_ylabel() for axis in axes)
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "val_loss": 0.9, "val_time": 0.5, "val_frequency": 1.3}]
    for axis in plot_phase_metrics(rows, "run").axes:
        assert axis.get_xlabel() and axis.get_ylabel() and axis.get_title() and axis.lines
