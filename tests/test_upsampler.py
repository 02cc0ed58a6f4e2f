"""The upsampler and its cascade: its conditioning, what its results depend on, edits through it."""

import functools
import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import QUICK

from Conf import in_space
from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Diffusion import NoiseSchedule
from Libraries.Evaluation.Comparison import validation_yardstick
from Libraries.Evaluation.Reference import spread_clips
from Libraries.Evaluation.Samples import evaluate
from Libraries.Evaluation.UpsamplerEvaluation import (
    cascade_table,
    compare_cascade,
    errors_by_augmentation,
    low_resolution_error,
    same_seeds,
)
from Libraries.Runs.CodecEditing import CascadeEditor
from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.DiffusionTraining import train_diffusion
from Libraries.Runs.Settings import changed
from Libraries.Runs.Spaces import prepare_space
from Libraries.Runs.Upsampling import (
    LowResolutionCodec,
    load_upsampler,
    train_upsampler,
    upsampler_recipe,
)
from Libraries.Sampling.Editing import mask_outside
from Libraries.Sampling.Guidance import GuidanceConfig
from Libraries.Sampling.Loop import switch_sampler
from Libraries.Sampling.Steps import SAMPLERS
from Libraries.Sound.LowResolution import LowResolution
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Training.Checkpoint import CheckpointError, find_checkpoints
from Libraries.Upsampler import Upsampler, UpsamplerLoss
from Libraries.Utils import derive_seed


@pytest.fixture(scope="module", params=["smaller", "lower_bands"])
def settings(request, chords):
    small, precise = in_space(chords, "small"), {**QUICK, "mixed_precision": "no"}
    return changed(
        small,
        {
            "preset": request.param,
            "train": changed(small.train, QUICK),
            "upsampler.train": changed(small.upsampler.train, precise),
            "upsampler.low_resolution.kind": request.param,
        },
    )


@pytest.fixture(scope="module")
def run_dir(settings):
    return train_upsampler(settings)


@pytest.fixture(scope="module")
def upsampler(run_dir):
    upsampler = load_upsampler(run_dir)
    upsampler.precision = "no"
    return upsampler


@pytest.fixture(scope="module")
def model(settings, upsampler):
    model = DiffusionRun.load(train_diffusion(settings))
    model.precision = model.codec.upsampler.precision = "no"
    return model


@pytest.fixture(scope="module")
def clips(settings):
    return spread_clips(SpectrogramDataset(settings.dataset_dir, "test"), 3)


def test_a_seed_and_its_low_resolution_make_a_clip_in_any_batch(upsampler, clips):
    y = upsampler.low.downsample(clips)
    together = upsampler.upsample(y, [5, 6, 7])
    assert together.shape == clips.shape
    for batch in (upsampler.upsample(y, [5, 6, 7], batch_size=1), upsampler.upsample(y[1:2], [6])):
        assert torch.allclose(batch[-1], together[len(batch) - 1 if len(batch) > 1 else 1], atol=1e-4)
    assert (upsampler.upsample(y, [5, 6, 8])[2] - together[2]).abs().max() > 0.01


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_keeps_the_low_resolution_it_was_given(upsampler, clips, name, monkeypatch):
    """However little the network has learned, because x0 is made consistent at every step."""
    monkeypatch.setattr(upsampler, "sampler", switch_sampler(upsampler.sampler, name, 4))
    y = upsampler.low.downsample(clips)
    upsampled = upsampler.upsample(y, range(3), augmentation=0.0)
    assert low_resolution_error(upsampler.low, y, upsampled) < 1e-4


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample", "edm"])
def test_a_network_that_outputs_nothing_interpolates(settings, clips, prediction_type):
    """Zero is what a new network outputs, so in one step it makes the guess that its residuals are of."""
    new = changed(
        settings,
        {
            "diffusion.prediction_type": prediction_type,
            "upsampler.conditioning.data_consistency": False,
            "upsampler.sampler.num_inference_steps": 1,
        },
    )
    low = LowResolution(new.upsampler.low_resolution, new.spectrogram)
    upsampler = Upsampler(
        upsampler_recipe(new).network(), NoiseSchedule(new.diffusion), low, new.upsampler.conditioning,
        new.upsampler.sampler, Spectrogram(new.spectrogram), torch.device("cpu"),
    )  # fmt: skip
    y = low.downsample(clips)
    plain = low.interpolate(y) if new.upsampler.low_resolution.kind == "smaller" else low.pseudo_inverse(y)
    assert torch.allclose(upsampler.upsample(y, [1, 2, 3], augmentation=0.0), low.limit(plain), atol=0.02)


def test_conditioning_at_augmentation_level_one_is_ignored(upsampler, clips):
    y = upsampler.low.downsample(clips)
    made = upsampler.upsample(y, [1, 2, 3], augmentation=1.0)
    assert torch.equal(made, upsampler.upsample(-y, [1, 2, 3], augmentation=1.0))
    assert not torch.equal(made, upsampler.upsample(y, [1, 2, 3], augmentation=0.9))


def test_errors_by_augmentation_are_without_data_consistency(upsampler, clips):
    errors = errors_by_augmentation(upsampler, clips, (0.0, 1.0))
    assert list(errors) == [0.0, 1.0] and min(errors.values()) > 0.01 and upsampler.config.data_consistency


def test_conditioning_in_training_depends_on_the_position_and_not_on_the_batch(settings, upsampler, clips):
    low, config = upsampler.low, replace(settings.upsampler.conditioning, restored_fraction=0.5)
    loss_fn = UpsamplerLoss(NoiseSchedule(settings.diffusion), 0, low, config)
    seeds = list(range(100, 140))
    conditioning = loss_fn.conditioning(clips[:1].expand(40, -1, -1, -1), seeds)
    assert conditioning.shape == (40, 2, *clips.shape[2:])
    assert torch.equal(conditioning[7:9], loss_fn.conditioning(clips[:1].expand(2, -1, -1, -1), seeds[7:9]))
    reliability = conditioning[:, 1].amax((1, 2))
    assert 0 < reliability.min() < 0.3 and reliability.max() > 0.95
    assert (reliability > 0.75).float().mean() > 0.4
    rows = (conditioning[:, 1] > 0).all(dim=2).sum(dim=1)  # with conditioning
    assert rows.min() >= low.fewest_rows and len(rows.unique()) > 10
    attenuated = loss_fn.attenuated(clips[:1].expand(40, -1, -1, -1), seeds)
    changed = (attenuated != clips[:1]).flatten(1).any(dim=1)
    assert changed[rows != rows.mode().values].all() and 0.2 < changed.float().mean() < 0.8  # of rows alone
    assert (attenuated <= clips[:1]).all()
    assert len(attenuated[changed].mean((1, 2, 3)).unique()) == changed.sum()
    views = replace(config, restored_fraction=0.0)
    loss_fn = UpsamplerLoss(NoiseSchedule(settings.diffusion), 0, low, views)
    conditioning = loss_fn.conditioning(clips, [1, 2, 3])
    assert len((conditioning[:, 1] > 0).all(dim=2).sum(dim=1).unique()) == 1


def test_training_conditions_on_quieter_pieces_and_asks_for_the_same_quieter_pieces(
    settings, upsampler, clips, monkeypatch
):
    config = replace(settings.upsampler.conditioning, restored_fraction=1.0)
    loss_fn = UpsamplerLoss(NoiseSchedule(settings.diffusion), 0, upsampler.low, config)
    positions, label = torch.arange(len(clips)), torch.zeros(len(clips), dtype=torch.int64)
    seeds = [derive_seed(0, position) for position in positions.tolist()]
    quieter = loss_fn.attenuated(clips, seeds)
    network = upsampler_recipe(settings).network()
    with torch.no_grad():
        found = loss_fn(network, (clips, label), positions)
        monkeypatch.setattr(loss_fn, "attenuated", lambda x0, seeds: x0)
        as_they_are, already_quieter = (loss_fn(network, (x0, label), positions) for x0 in (clips, quieter))
    assert torch.equal(found, already_quieter) and (found != as_they_are).all()


def test_residuals_have_about_unit_variance_at_every_augmentation_level(settings, upsampler, clips):
    """So the schedule's noise covers them at every level, and few steps find them."""
    low, y = upsampler.low, upsampler.low.downsample(clips)
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    said = (
        settings.upsampler.low_resolution.kept_rows
        if settings.upsampler.low_resolution.kind == "lower_bands"
        else 0
    )  # rows that have no residual
    for augmentation in (0.0, 0.3, 1.0):
        levels = torch.full((3,), augmentation)
        estimate, error = low.estimate(low.conditioning_from_low_resolution(y, levels, noise))
        residual = ((clips - estimate) / error)[:, :, said:]
        assert 0.4 < residual.square().mean().sqrt() < 2.5, augmentation


def test_run_holds_its_settings_and_goes_on_to_the_same_weights(
    settings, run_dir, tmp_path, goes_on_to_the_same
):
    conf = json.loads((run_dir / "conf.json").read_text())
    assert conf["settings"]["upsampler"]["low_resolution"]["kind"] == settings.upsampler.low_resolution.kind
    assert conf["requires"] == {}
    results = settings.results_dir / "upsampler" / run_dir.name
    assert sorted(path.name for path in results.iterdir()) == ["loss.png", "upsampled-00000004.png"]
    other = changed(settings, {"upsampler.low_resolution.frame_factor": 4})
    with pytest.raises(ValueError, match="frame_factor is 2 there and 4 here"):
        train_upsampler(other, run_dir)
    again = tmp_path / "Models" / "upsampler" / "00000-again"
    train = functools.partial(train_upsampler, settings)
    assert goes_on_to_the_same(train, run_dir, again, "Runs.Upsampling.save_upsampler_preview")


def test_longer_small_spectrograms_become_longer_music(upsampler, clips, monkeypatch):
    y = upsampler.low.downsample(clips)
    long = torch.cat([y, y], dim=-1)
    made = upsampler.upsample(long, [0, 1, 2], augmentation=0.0)
    T = clips.shape[-1]
    assert made.shape == (*clips.shape[:3], 2 * T)
    assert low_resolution_error(upsampler.low, long, made) < 1e-4
    with pytest.raises(ValueError, match="n_frames=64 at least 128"):
        upsampler.upsample(y[..., : y.shape[-1] // 2], [0, 1, 2])


def test_samples_of_a_cascade_are_full_spectrograms_in_any_batch(settings, model):
    together = model.generate([5, 6, 7], settings.sampler, 3, progress=False)
    alone = model.generate([6], settings.sampler, 1, progress=False)
    assert together.shape == (3, *settings.spectrogram.shape) and model.shape == model.codec.shape
    assert torch.allclose(together[1:2], alone, atol=1e-3)
    made = same_seeds(model, settings, [5, 6, 7])
    y = model.codec.low.downsample(made["interpolated"])
    assert torch.allclose(made["upsampled"], together, atol=1e-3)
    assert torch.allclose(model.codec.low.downsample(made["small"]), y, atol=1e-5)


def test_guidance_of_the_first_model_works_through_the_cascade(settings, model):
    auto = GuidanceConfig("autoguidance", scale=3.0, rescale=0.0, guide_at=0.5)
    free, guided = (
        model.generate([1], settings.sampler, 1, guidance=guidance, progress=False)
        for guidance in (None, auto)
    )
    assert guided.shape == free.shape and (guided - free).abs().max() > 1e-3


def test_edits_through_the_cascade_keep_the_masked_part(settings, model, clips):
    editor = model.editor(settings.sampler, resamplings=1)
    C, F, T = settings.spectrogram.shape
    assert isinstance(editor, CascadeEditor)
    for box in ({"frames": (T // 3, T // 2)}, {"rows": (5, F // 2)}, {"rows": (F // 2, F)}):
        mask = mask_outside((C, F, T), **box)
        made = editor.inpaint(clips, mask, [1, 2, 3])
        assert torch.equal(made[:, mask], clips[:, mask]) and (made[:, ~mask] != clips[:, ~mask]).any()
    long = editor.extend(clips, 2 * T + 5, T // 2, [1, 2, 3])
    assert long.shape == (3, C, F, 2 * T + 5) and torch.equal(long[..., :T], clips)
    loop = editor.loop(clips, 2 * T, T // 2, [1, 2, 3])
    assert loop.shape == (3, C, F, 2 * T) and torch.equal(loop[..., :T], clips)
    y = model.codec.low.downsample(clips)
    varied = editor.vary(clips, 0.0, [1, 2, 3])
    assert torch.allclose(varied, model.codec.decode(y, [1, 2, 3]), atol=1e-5)
    between = model.interpolate(clips[:2], torch.tensor([0.0, 1.0]), 4, iterations=3)
    assert between.shape == clips[:2].shape


def test_evaluation_and_the_table_work_through_the_cascade(settings, model, tmp_path, few_draws):
    splits = [SpectrogramDataset(settings.dataset_dir, split) for split in ("train", "test")]
    assert evaluate(model, *splits, settings, tmp_path)["kernel distance"]["value"] > 0
    few = changed(settings, {"evaluation.compared_clips": 3})
    yardstick = validation_yardstick(model, few)
    rows = compare_cascade(model, few, yardstick, beside={"directly at full size": model})
    assert [row.variant.name for row in rows] == [
        "interpolation", "upsampler, 1 step", "upsampler, 2 steps", "directly at full size"
    ]  # fmt: skip
    figures = [row.figures() for row in rows]
    assert figures[-1]["log_spectral_distance"] is None and figures[0]["log_spectral_distance"] > 0
    assert all(own["seconds_per_clip"] > 0 and "kernel distance" in own for own in figures)
    table = cascade_table(rows, "way").splitlines()
    assert "LSD of real clips (dB)" in table[0] and table[6].startswith("| real training music")


def test_a_first_model_without_an_upsampler_interpolates_and_finds_the_one_of_its_view(settings, model):
    low = model.codec.low
    view = replace(low.config, row_factor=4, frame_factor=4, kept_rows=8)
    alone = LowResolutionCodec.open(changed(settings, {"upsampler.low_resolution": view}))
    nothing = LowResolutionCodec.open(replace(settings, root=settings.root / "nothing"))
    assert alone.upsampler is None and nothing.upsampler is None
    small = torch.rand(1, *alone.low.shape)
    assert torch.equal(alone.decode(small), LowResolution(view, low.spectrogram).interpolate(small))
    assert LowResolutionCodec.open(settings).upsampler.low.config == low.config
    assert isinstance(model.codec, LowResolutionCodec)


def test_an_upsampler_is_trained_for_a_cascade_that_has_none_and_only_then(settings, run_dir, monkeypatch):
    trained = []
    monkeypatch.setattr("Libraries.Runs.Upsampling.train_upsampler", lambda own, run: trained.append(run))
    elsewhere = replace(settings, root=settings.root / "elsewhere")
    for own in (settings, replace(elsewhere, space="spectrogram")):
        prepare_space(own)
    assert not trained
    prepare_space(elsewhere)
    assert trained == [None]


def test_an_unfinished_upsampler_is_resumed_and_not_used(settings, run_dir, monkeypatch, tmp_path):
    elsewhere, trained = replace(settings, root=tmp_path), []
    shutil.copytree(settings.dataset_dir, elsewhere.dataset_dir)
    unfinished = elsewhere.models_dir / "upsampler" / run_dir.name
    shutil.copytree(run_dir, unfinished, ignore=shutil.ignore_patterns("*-00000004.pth"))
    assert find_checkpoints(unfinished, "ema") and LowResolutionCodec.open(elsewhere).upsampler is None
    monkeypatch.setattr("Libraries.Runs.Upsampling.train_upsampler", lambda own, run: trained.append(run))
    prepare_space(elsewhere)
    assert trained == [unfinished]


def test_a_run_of_a_cascade_does_not_go_on_without_one(settings, model):
    plain = replace(settings, space="spectrogram")
    with pytest.raises(ValueError, match="space is small there and spectrogram here"):
        train_diffusion(plain, model.run.folder)
    with pytest.raises(CheckpointError, match="name a run's own folder"):
        load_upsampler(settings.root)


def test_what_does_not_fit_is_refused_in_a_sentence(upsampler, clips):
    y = upsampler.low.downsample(clips)
    with pytest.raises(ValueError, match="2 seeds for 3 small spectrograms"):
        upsampler.upsample(y, [1, 2])
    with pytest.raises(ValueError, match=r"augmentation=2 must be within \[0, 1\]"):
        upsampler.upsample(y, [1, 2, 3], augmentation=2)
    with pytest.raises(ValueError, match="a low-resolution spectrogram has shape"):
        upsampler.upsample(clips[:, :, :-1], [1, 2, 3])
    with pytest.raises(ValueError, match="rows=5 must be 24 to 95"):
        upsampler.complete(clips, 5, [1, 2, 3])
