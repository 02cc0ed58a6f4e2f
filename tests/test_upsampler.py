"""The upsampler and its cascade: what it is told in training, what its results hang on, edits through it."""

import functools
import json
from dataclasses import replace

import pytest
import torch
from conftest import QUICK

from Conf import in_space
from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Diffusion import NoiseSchedule
from Libraries.Evaluation.Samples import evaluate, spread_clips
from Libraries.Evaluation.UpsamplerEvaluation import (
    cascade_table,
    compare_cascade,
    errors_by_strength,
    same_seeds,
    view_error,
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
from Libraries.Sampling.Editing import known_outside
from Libraries.Sampling.Guidance import GuidanceConfig
from Libraries.Sampling.Samplers import SAMPLERS, switch_sampler
from Libraries.Sound.LowResolution import LowResolution
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Training.Checkpoint import CheckpointError
from Libraries.Upsampler import Upsampler, UpsamplerLoss


@pytest.fixture(scope="module", params=["smaller", "lower_bands"])
def settings(request, chords):
    small, precise = in_space(chords, "small"), {**QUICK, "mixed_precision": "no"}
    return changed(
        small,
        {
            "preset": request.param,
            "train": changed(small.train, QUICK),
            "upsampler.train": changed(small.upsampler.train, precise),
            "upsampler.view.kind": request.param,
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


def test_a_seed_and_its_view_make_a_clip_in_any_batch(upsampler, clips):
    view = upsampler.low.view(clips)
    together = upsampler.upsample(view, [5, 6, 7])
    assert together.shape == clips.shape
    for batch in (upsampler.upsample(view, [5, 6, 7], batch_size=1), upsampler.upsample(view[1:2], [6])):
        assert torch.allclose(batch[-1], together[len(batch) - 1 if len(batch) > 1 else 1], atol=1e-4)
    assert (upsampler.upsample(view, [5, 6, 8])[2] - together[2]).abs().max() > 0.01


@pytest.mark.parametrize("name", SAMPLERS)
def test_with_every_sampler_the_view_of_the_result_is_the_view_given(upsampler, clips, name, monkeypatch):
    """However little the network has learned, for x0 is held to it at every step."""
    monkeypatch.setattr(upsampler, "sampler", switch_sampler(upsampler.sampler, name, 4))
    view = upsampler.low.view(clips)
    assert view_error(upsampler.low, view, upsampler.upsample(view, range(3), strength=0.0)) < 1e-4


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample", "edm"])
def test_a_network_that_outputs_nothing_interpolates(settings, clips, prediction_type):
    """Zero is what a new network outputs, so in one step it makes the guess that its residuals are of."""
    new = changed(
        settings,
        {
            "diffusion.prediction_type": prediction_type,
            "upsampler.conditioning.consistent": False,
            "upsampler.sampler.num_inference_steps": 1,
        },
    )
    low = LowResolution(new.upsampler.view, new.spectrogram)
    upsampler = Upsampler(
        upsampler_recipe(new).network(), NoiseSchedule(new.diffusion), low, new.upsampler.conditioning,
        new.upsampler.sampler, Spectrogram(new.spectrogram), torch.device("cpu"),
    )  # fmt: skip
    view = low.view(clips)
    plain = low.spread(view) if low.config.kind == "smaller" else low.fill(view)
    assert torch.allclose(upsampler.upsample(view, [1, 2, 3], strength=0.0), low.limit(plain), atol=0.02)


def test_a_view_under_noise_of_full_strength_is_ignored(upsampler, clips):
    view = upsampler.low.view(clips)
    made = upsampler.upsample(view, [1, 2, 3], strength=1.0)
    assert torch.equal(made, upsampler.upsample(-view, [1, 2, 3], strength=1.0))
    assert not torch.equal(made, upsampler.upsample(view, [1, 2, 3], strength=0.9))


def test_errors_by_strength_are_of_a_network_that_is_not_held(upsampler, clips):
    errors = errors_by_strength(upsampler, clips, (0.0, 1.0))
    assert list(errors) == [0.0, 1.0] and min(errors.values()) > 0.01 and upsampler.config.consistent


def test_training_is_told_by_position_and_not_by_batch(settings, upsampler, clips):
    low, config = upsampler.low, replace(settings.upsampler.conditioning, restored_share=0.5)
    loss_fn = UpsamplerLoss(NoiseSchedule(settings.diffusion), 0, low, config)
    seeds = list(range(100, 140))
    told = loss_fn.told(clips[:1].expand(40, -1, -1, -1), seeds)
    assert told.shape == (40, 2, *clips.shape[2:])
    assert torch.equal(told[7:9], loss_fn.told(clips[:1].expand(2, -1, -1, -1), seeds[7:9]))
    trust = told[:, 1].amax((1, 2))
    assert 0 < trust.min() < 0.3 and trust.max() > 0.95 and (trust > 0.75).float().mean() > 0.4
    rows = (told[:, 1] > 0).all(dim=2).sum(dim=1)  # that are told
    assert rows.min() >= low.fewest_rows and len(rows.unique()) > 10
    varied = loss_fn.varied(clips[:1].expand(40, -1, -1, -1), seeds)
    changed = (varied != clips[:1]).flatten(1).any(dim=1)
    assert changed[rows != rows.mode().values].all() and 0.2 < changed.float().mean() < 0.8  # of rows alone
    assert (varied <= clips[:1]).all() and len(varied[changed].mean((1, 2, 3)).unique()) == changed.sum()
    views = replace(config, restored_share=0.0)
    told = UpsamplerLoss(NoiseSchedule(settings.diffusion), 0, low, views).told(clips, [1, 2, 3])
    assert len((told[:, 1] > 0).all(dim=2).sum(dim=1).unique()) == 1


def test_residuals_have_about_unit_variance_however_much_is_told(settings, upsampler, clips):
    """So the schedule's noise covers them at every strength, and few steps find them."""
    low, view = upsampler.low, upsampler.low.view(clips)
    noise = torch.randn(view.shape, generator=torch.Generator().manual_seed(0))
    said = low.config.kept_rows if low.config.kind == "lower_bands" else 0  # rows that have no residual
    for strength in (0.0, 0.3, 1.0):
        guess, error = low.expected(low.told_of_view(view, torch.full((3,), strength), noise))
        residual = ((clips - guess) / error)[:, :, said:]
        assert 0.4 < residual.square().mean().sqrt() < 2.5, strength


def test_run_holds_its_settings_and_goes_on_to_the_same_weights(
    settings, run_dir, tmp_path, goes_on_to_the_same
):
    conf = json.loads((run_dir / "conf.json").read_text())
    assert conf["settings"]["upsampler"]["view"]["kind"] == settings.upsampler.view.kind
    assert conf["requires"] == {}
    results = settings.results_dir / "upsampler" / run_dir.name
    assert sorted(path.name for path in results.iterdir()) == ["loss.png", "upsampled-00000004.png"]
    other = changed(settings, {"upsampler.view.frame_factor": 4})
    with pytest.raises(ValueError, match="frame_factor is 2 there and 4 here"):
        train_upsampler(other, run_dir)
    again = tmp_path / "Models" / "upsampler" / "00000-again"
    train = functools.partial(train_upsampler, settings)
    assert goes_on_to_the_same(train, run_dir, again, "Runs.Upsampling.save_upsampler_preview")


def test_longer_views_become_longer_music(upsampler, clips, monkeypatch):
    view = upsampler.low.view(clips)
    long = torch.cat([view, view], dim=-1)
    made = upsampler.upsample(long, [0, 1, 2], strength=0.0)
    T = clips.shape[-1]
    assert made.shape == (*clips.shape[:3], 2 * T)
    assert view_error(upsampler.low, long, made) < 1e-4
    with pytest.raises(ValueError, match="n_frames=64 at least 128"):
        upsampler.upsample(view[..., : view.shape[-1] // 2], [0, 1, 2])


def test_samples_of_a_cascade_are_full_spectrograms_in_any_batch(settings, model):
    together = model.generate([5, 6, 7], settings.sampler, 3, progress=False)
    alone = model.generate([6], settings.sampler, 1, progress=False)
    assert together.shape == (3, *settings.spectrogram.shape) and model.shape == model.codec.shape
    assert torch.allclose(together[1:2], alone, atol=1e-3)
    made = same_seeds(model, settings, [5, 6, 7])
    view = model.codec.low.view(made["interpolated"])
    assert torch.allclose(made["upsampled"], together, atol=1e-3)
    assert torch.allclose(model.codec.low.view(made["small"]), view, atol=1e-5)


def test_guidance_of_the_first_model_works_through_the_cascade(settings, model):
    auto = GuidanceConfig("autoguidance", scale=3.0, rescale=0.0, weaker_at=0.5)
    free, guided = (
        model.generate([1], settings.sampler, 1, guidance=guidance, progress=False)
        for guidance in (None, auto)
    )
    assert guided.shape == free.shape and (guided - free).abs().max() > 1e-3


def test_edits_through_the_cascade_keep_what_is_known(settings, model, clips):
    editor = model.editor(settings.sampler, rounds=1)
    C, F, T = settings.spectrogram.shape
    assert isinstance(editor, CascadeEditor)
    for box in ({"frames": (T // 3, T // 2)}, {"rows": (5, F // 2)}, {"rows": (F // 2, F)}):
        known = known_outside((C, F, T), **box)
        made = editor.inpaint(clips, known, [1, 2, 3])
        assert torch.equal(made[:, known], clips[:, known]) and (made[:, ~known] != clips[:, ~known]).any()
    long = editor.extend(clips, 2 * T + 5, T // 2, [1, 2, 3])
    assert long.shape == (3, C, F, 2 * T + 5) and torch.equal(long[..., :T], clips)
    loop = editor.loop(clips, 2 * T, T // 2, [1, 2, 3])
    assert loop.shape == (3, C, F, 2 * T) and torch.equal(loop[..., :T], clips)
    view = model.codec.low.view(clips)
    varied = editor.vary(clips, 0.0, [1, 2, 3])
    assert torch.allclose(varied, model.codec.decode(view, [1, 2, 3]), atol=1e-5)
    between = model.interpolate(clips[:2], torch.tensor([0.0, 1.0]), 4, iterations=3)
    assert between.shape == clips[:2].shape


def test_evaluation_and_the_table_work_through_the_cascade(settings, model, clips, tmp_path):
    splits = [SpectrogramDataset(settings.dataset_dir, split) for split in ("train", "test")]
    assert evaluate(model, *splits, settings, tmp_path)["samples_to_test"] > 0
    few = changed(settings, {"evaluation.compared_clips": 3})
    rows = compare_cascade(model, few, clips, beside={"directly at full size": model})
    assert [row.name for row in rows] == [
        "interpolation", "upsampler, 1 step", "upsampler, 2 steps", "directly at full size"
    ]  # fmt: skip
    assert rows[-1].spectral_distance is None and min(row.distance for row in rows) > 0
    assert cascade_table(rows, "way").count("\n") == 4


def test_a_first_model_without_an_upsampler_interpolates_and_finds_the_one_of_its_view(settings, model):
    low = model.codec.low
    view = replace(low.config, row_factor=4, frame_factor=4, kept_rows=8)
    alone = LowResolutionCodec.open(changed(settings, {"upsampler.view": view}))
    nothing = LowResolutionCodec.open(replace(settings, root=settings.root / "nothing"))
    assert alone.upsampler is None and nothing.upsampler is None
    small = torch.rand(1, *alone.low.shape)
    assert torch.equal(alone.decode(small), LowResolution(view, low.spectrogram).spread(small))
    assert LowResolutionCodec.open(settings).upsampler.low.config == low.config
    assert isinstance(model.codec, LowResolutionCodec)


def test_an_upsampler_is_trained_for_a_cascade_that_has_none_and_only_then(settings, run_dir, monkeypatch):
    trained = []
    monkeypatch.setattr("Libraries.Runs.Upsampling.train_upsampler", trained.append)
    elsewhere = replace(settings, root=settings.root / "elsewhere")
    for own in (settings, replace(elsewhere, space="spectrogram")):
        prepare_space(own)
    assert not trained
    prepare_space(elsewhere)
    assert len(trained) == 1


def test_a_run_of_a_cascade_does_not_go_on_without_one(settings, model):
    plain = replace(settings, space="spectrogram")
    with pytest.raises(ValueError, match="space is small there and spectrogram here"):
        train_diffusion(plain, model.run.folder)
    with pytest.raises(CheckpointError, match="name a run's own folder"):
        load_upsampler(settings.root)


def test_what_does_not_fit_is_refused_in_a_sentence(upsampler, clips):
    view = upsampler.low.view(clips)
    with pytest.raises(ValueError, match="2 seeds for 3 small spectrograms"):
        upsampler.upsample(view, [1, 2])
    with pytest.raises(ValueError, match=r"strength=2 must be within \[0, 1\]"):
        upsampler.upsample(view, [1, 2, 3], strength=2)
    with pytest.raises(ValueError, match="a view has shape"):
        upsampler.upsample(clips[:, :, :-1], [1, 2, 3])
    with pytest.raises(ValueError, match="rows=5 must be 24 to 95"):
        upsampler.complete(clips, 5, [1, 2, 3])
