"""A trained run that makes music: its labels, its guidance, its earlier weights, averages of any length."""

from dataclasses import replace

import pytest
import torch
from conftest import QUICK

from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Diffusion import Parameterisation
from Libraries.Evaluation.Comparison import (
    compare_ema_lengths,
    compare_guidance,
    compare_samplers,
    variant_table,
)
from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.DiffusionTraining import train_diffusion
from Libraries.Runs.Settings import changed
from Libraries.Sampling.Guidance import GuidanceConfig
from Libraries.Training.Checkpoint import (
    CheckpointError,
    find_checkpoints,
    load_checkpoint,
    save_checkpoint,
)

AUTO = GuidanceConfig("autoguidance", scale=2.0, rescale=0.0, guide_at=0.5)
BY_LABEL = replace(AUTO, method="classifier_free")


@pytest.fixture(scope="module")
def settings(chords):
    return replace(chords, train=changed(chords.train, QUICK))


@pytest.fixture(scope="module")
def run_dir(settings):
    return train_diffusion(settings)


@pytest.fixture(scope="module")
def model(run_dir):
    model = DiffusionRun.load(run_dir)
    model.precision = "no"
    return model


@pytest.fixture(scope="module")
def conditional(settings):
    """A run of two classes, as the dataset's folders are."""
    model = DiffusionRun.load(train_diffusion(changed(settings, {"network.num_classes": 2})))
    model.precision = "no"
    return model


def make(model, settings, **options):
    return model.generate([5, 6, 7], settings.sampler, 2, progress=False, **options)


def test_same_clip_for_the_same_seed_in_any_batch(settings, model):
    together = model.generate([5, 6, 7], settings.sampler, batch_size=3, progress=False)
    alone = model.generate([6], settings.sampler, batch_size=1, progress=False)
    assert together.shape == (3, *settings.spectrogram.shape)
    assert torch.allclose(together[1:2], alone, atol=1e-4)


def test_scale_one_and_no_guidance_are_the_same(settings, model):
    assert torch.equal(make(model, settings), make(model, settings, guidance=replace(AUTO, scale=1.0)))


def test_autoguidance_is_away_from_the_earlier_weights(settings, model, run_dir):
    plain, guided = make(model, settings), make(model, settings, guidance=AUTO)
    assert not torch.allclose(plain, guided, atol=1e-3)
    assert model.load_guide(0.5) == find_checkpoints(run_dir, "ema")[0][0] == 2
    x_t, t = torch.randn(2, *settings.spectrogram.shape), torch.tensor([10, 900])
    with torch.no_grad():
        denoiser_of = Parameterisation(model.schedule).denoiser
        x0, x0_guide = (denoiser_of(own)(x_t, t) for own in (model.network, model.guide))
        guided = model.denoiser(guidance=AUTO)(x_t, t)
        assert torch.allclose(guided, x0_guide + 2 * (x0 - x0_guide), atol=1e-5)


@pytest.mark.parametrize(("guide_at", "step"), [(0.1, 1), (0.5, 2), (0.7, 3), (0.95, 3)])
def test_guide_model_is_the_one_of_the_settings(run_dir, tmp_path, guide_at, step):
    """Saved weights whose first parameter is their step, so that the network shows which were loaded."""
    (tmp_path / "conf.json").write_bytes((run_dir / "conf.json").read_bytes())
    weights = load_checkpoint(find_checkpoints(run_dir, "ema")[0][1])["weights"]
    first = next(iter(weights))
    for number in (1, 2, 3, 4):
        weights[first].fill_(number)
        save_checkpoint(tmp_path / f"ema-{number:08d}.pth", {"step": number, "weights": weights})
    model = DiffusionRun.load(tmp_path)
    model.denoiser(guidance=replace(AUTO, guide_at=guide_at))
    assert (model.guide.state_dict()[first] == step).all()
    assert (model.network.state_dict()[first] == 4).all()


def test_every_seed_keeps_its_own_label_whatever_the_batches(settings, conditional):
    labels = torch.tensor([0, 1, 0])
    many = make(conditional, settings, labels=labels, guidance=BY_LABEL)
    one = conditional.generate(
        [6], settings.sampler, 1, labels=labels[1:2], guidance=BY_LABEL, progress=False
    )
    assert torch.allclose(many[1:2], one, atol=1e-4)
    other = conditional.generate(
        [6], settings.sampler, 1, labels=labels[:1], guidance=BY_LABEL, progress=False
    )
    assert not torch.equal(one, other)
    assert conditional.labels_in_turn(5).tolist() == [0, 1, 0, 1, 0]


def test_guidance_that_cannot_be_says_so(settings, model, conditional):
    assert model.labels_in_turn(3) is None
    with pytest.raises(ValueError, match="needs labels; give them, or use autoguidance"):
        make(conditional, settings, guidance=BY_LABEL)
    with pytest.raises(ValueError, match="2 labels for 3 seeds"):
        make(conditional, settings, labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="network without classes"):
        make(model, settings, labels=torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match="set num_classes of the network"):
        replace(settings, guidance=BY_LABEL)
    with pytest.raises(ValueError, match="none, classifier_free, autoguidance"):
        replace(AUTO, method="clip")


def test_a_run_with_one_set_of_weights_has_no_weaker_one(model, run_dir, tmp_path):
    for name in ("conf.json", find_checkpoints(run_dir, "ema")[-1][1].name):
        (tmp_path / name).write_bytes((run_dir / name).read_bytes())
    with pytest.raises(CheckpointError, match="no weights before its last"):
        DiffusionRun.load(tmp_path).load_guide(0.3)


def test_weights_of_any_step_and_averages_of_any_length(settings, run_dir):
    found = {
        name: next(DiffusionRun.load(run_dir, **options).network.parameters()).detach()
        for name, options in {
            "last": {}, "step 4": {"step": 4}, "step 2": {"step": 2}, "short": {"ema_length": 0.05},
            "long": {"ema_length": 0.2},
        }.items()
    }  # fmt: skip
    assert torch.equal(found["last"], found["step 4"])
    different = [found[name] for name in ("last", "step 2", "short", "long")]
    assert all(not torch.equal(a, b) for i, a in enumerate(different) for b in different[:i])
    with pytest.raises(CheckpointError, match="does not exist"):
        DiffusionRun.load(run_dir, step=3)


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": "edm", "prediction_type": "edm", "timestep_sampling": "log_normal"},
        {"loss_weighting": "uncertainty"},
        {"learned_variance": True},
        {"loss_weighting": "min_snr", "zero_terminal_snr": True},
    ],
    ids=lambda change: "-".join(map(str, change.values())),
)
def test_every_way_of_training_gives_a_run_that_samples(settings, change):
    sampler = settings.sampler
    if "learned_variance" in change:
        sampler = replace(sampler, name="ddpm", eta=None, variance="learned")
    settings = replace(settings, diffusion=replace(settings.diffusion, **change), sampler=sampler)
    model = DiffusionRun.load(train_diffusion(settings))
    x0 = model.generate([0, 1], settings.sampler, 2, progress=False)
    assert x0.shape == (2, *settings.spectrogram.shape) and x0.isfinite().all()
    assert model.to_audio(x0).isfinite().all()


def test_comparisons_cover_what_the_settings_name(settings, model, run_dir):
    test = model.to_audio(SpectrogramDataset(settings.dataset_dir, "test")[0][0][None]).expand(4, -1, -1)
    found = compare_samplers(model, settings, test)
    assert [v.name for _, v in found] == ["ddim, 2 steps", "ddim, 4 steps", "heun, 2 steps", "heun, 4 steps"]
    assert [v.name for v in compare_guidance(model, settings, test)] == [
        "autoguidance, scale 1", "autoguidance, scale 2",
    ]  # fmt: skip
    lengths = compare_ema_lengths(run_dir, settings, test)
    assert [v.name for v in lengths] == ["as trained", *map("{:g}".format, settings.evaluation.ema_lengths)]
    assert len(variant_table(lengths, "length").splitlines()) == 1 + len(lengths)


def test_edits_of_a_run_keep_what_is_known_and_can_be_heard(settings, model):
    x0 = make(model, settings)[:1]
    editor = model.editor(settings.sampler, resamplings=1)
    T = settings.spectrogram.n_frames
    long = editor.extend(x0, 2 * T + 3, T // 2, [0])
    assert long.shape[-1] == 2 * T + 3 and torch.equal(long[..., :T], x0)
    waveform = model.to_audio(long, any_length=True)
    assert waveform.shape[-1] == (2 * T + 2) * settings.spectrogram.hop_length and waveform.isfinite().all()
    between = model.interpolate(torch.cat([x0, -x0]), torch.tensor([0.0, 1.0]), 4, iterations=2)
    assert between.shape == (2, *settings.spectrogram.shape)
