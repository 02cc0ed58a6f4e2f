"""From settings to a trained run and back to music: what fits together, what is refused, what is written."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import QUICK

from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Evaluation.Reference import (
    against_recordings,
    make_yardstick,
    missing_music,
    recordings_table,
    spread_clips,
)
from Libraries.Evaluation.Samples import copying, evaluate, nearest_in_training
from Libraries.Networks.Catalogue import journal_network
from Libraries.Runs.Autoencoding import vae_recipe
from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.DiffusionTraining import (
    diffusion_recipe,
    overfit_one_batch,
    require_classes,
    train_diffusion,
)
from Libraries.Runs.Preparation import compare_representations, find_music, load_example_clips, music_folder
from Libraries.Runs.Recipe import clip_loaders, open_run, resumable
from Libraries.Runs.Run import Run
from Libraries.Runs.Settings import changed
from Libraries.Runs.Upsampling import upsampler_recipe
from Libraries.Sampling.Loop import SamplerConfig
from Libraries.Sound.Audio import AudioError, save_audio
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Training.Checkpoint import CheckpointError, load_checkpoint


@pytest.fixture(scope="module")
def settings(chords):
    return replace(chords, train=changed(chords.train, QUICK))


@pytest.fixture(scope="module")
def run_dir(settings):
    return train_diffusion(settings)


def test_run_records_what_it_was_made_of(settings, run_dir):
    conf = json.loads((run_dir / "conf.json").read_text())
    assert conf["settings"]["train"]["num_steps"] == 4
    assert len(conf["dataset"]["hash"]) == 64 and len(conf["gain"]) == 2
    assert {"commit", "torch"} <= conf["provenance"].keys()
    results = settings.results_dir / "diffusion" / run_dir.name
    assert sorted(path.name for path in results.iterdir()) == ["loss.png", "samples-00000004.png"]


def test_evaluation_writes_sound_and_pictures(settings, run_dir, tmp_path, few_draws):
    splits = [SpectrogramDataset(settings.dataset_dir, split) for split in ("train", "test")]
    metrics = evaluate(DiffusionRun.load(run_dir), *splits, settings, tmp_path)
    assert len(list((tmp_path / "audio").glob("*.wav"))) == 4
    stages = metrics.pop("stages")
    measured = {name: value for name, value in metrics.items() if isinstance(value, dict)}
    assert {"kernel distance", "log-mel distance"} <= measured.keys()
    assert all(row["low"] <= row["value"] <= row["high"] for row in measured.values() if row["value"])
    assert metrics["seconds_per_clip"] > 0 and metrics["clips"] == 4
    assert json.loads((tmp_path / "measures.json").read_text())["clips"] == 4
    assert list(stages) == ["real clips through the spectrogram", "generated"]
    assert "Against the recordings themselves" in (tmp_path / "measures.md").read_text()
    assert (tmp_path / "samples.png").stat().st_size > 10_000


def test_resuming_with_other_settings_is_refused(settings, run_dir):
    with pytest.raises(ValueError, match=r"learning_rate is 0.001 there and 0.5 here"):
        train_diffusion(changed(settings, {"train.learning_rate": 0.5}), run_dir)


@pytest.fixture(scope="module")
def longer(settings):
    """Two trainings at a constant learning rate, of which the second has twice the steps."""
    short = changed(settings, {"train.lr_schedule": "constant"})
    return short, changed(short, {"train.num_steps": 8})


def test_more_steps_at_a_constant_learning_rate_are_the_same_run_continued(longer):
    short, long = longer
    run_dir, whole = train_diffusion(short), train_diffusion(long)
    assert resumable(diffusion_recipe(long)) == whole  # the newer, which needs no more steps
    assert train_diffusion(long, run_dir) == run_dir and Run(run_dir).is_finished("train")
    weights, expected = Run(run_dir).weights(8), Run(whole).weights(8)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    conf = Run(run_dir).conf
    assert conf["settings"]["train"]["num_steps"] == 8 and conf["earlier_num_steps"] == [4]


def test_a_run_is_continued_neither_to_fewer_steps_nor_on_another_schedule(longer, settings, run_dir):
    short, long = longer
    run = open_run(diffusion_recipe(long), None)
    with pytest.raises(ValueError, match=r"num_steps is 8 there and 4 here"):
        open_run(diffusion_recipe(short), run.folder)
    with pytest.raises(ValueError, match=r"num_steps is 4 there and 8 here"):
        open_run(diffusion_recipe(changed(settings, {"train.num_steps": 8})), run_dir)
    with pytest.raises(ValueError, match=r"lr_schedule is cosine there and constant here"):
        open_run(diffusion_recipe(long), run_dir)


AUGMENTATION = {"time_shift": False, "random_polarity": False, "random_gain_db": 3.0}


@pytest.mark.parametrize("name", AUGMENTATION)
@pytest.mark.parametrize("recipe_of", [diffusion_recipe, vae_recipe, upsampler_recipe])
def test_resuming_with_other_augmentation_is_refused(settings, tmp_path, recipe_of, name):
    recipe = recipe_of(settings)
    run = open_run(replace(recipe, parent=tmp_path), None)
    assert open_run(recipe, run.folder).folder == run.folder
    other = recipe_of(changed(settings, {f"dataset.{name}": AUGMENTATION[name]}))
    with pytest.raises(ValueError, match=rf"dataset.{name} is \S+ there and {AUGMENTATION[name]} here"):
        open_run(other, run.folder)


def test_dataset_of_another_spectrogram_is_refused(settings):
    with pytest.raises(ValueError, match=r"db_range is 80.0 there and 60.0 here"):
        train_diffusion(changed(settings, {"spectrogram.db_range": 60.0}))


def test_a_run_without_weights_is_refused(settings, run_dir, tmp_path):
    (tmp_path / "conf.json").write_text((run_dir / "conf.json").read_text())
    with pytest.raises(CheckpointError, match="never saved"):
        DiffusionRun.load(tmp_path)


def test_a_folder_that_is_no_run_is_refused(settings, tmp_path):
    for use in (DiffusionRun.load, lambda folder: train_diffusion(settings, folder)):
        with pytest.raises(CheckpointError, match=r"name a run's own folder"):
            use(tmp_path)


def test_a_run_of_an_earlier_version_is_refused(settings, run_dir, tmp_path):
    conf = json.loads((run_dir / "conf.json").read_text())
    (tmp_path / "conf.json").write_text(json.dumps({**conf, "format": 1}))
    for use in (DiffusionRun.load, lambda folder: train_diffusion(settings, folder)):
        with pytest.raises(CheckpointError, match="made by an earlier version of this repository"):
            use(tmp_path)


def test_overfitting_one_batch_lowers_the_loss(settings):
    losses = overfit_one_batch(settings, num_steps=40)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_same_seed_gives_the_same_network_and_leaves_the_generator_alone(settings):
    torch.manual_seed(1)
    recipe = diffusion_recipe(settings)
    a = recipe.network()
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), recipe.network().parameters(), strict=True))


def test_a_network_of_the_journal_trains_loads_and_goes_on_by_its_name(settings):
    journal, unet_v0 = (
        journal_network(name, settings.network.num_classes) for name in ("conv_unet_450k", "unet_v0")
    )
    run_dir = train_diffusion(replace(settings, network=journal))
    assert DiffusionRun.load(run_dir).network.config == journal
    with pytest.raises(ValueError, match="type is JournalUNetConfig there and UNetConfig here"):
        train_diffusion(settings, run_dir)
    with pytest.raises(ValueError, match="type is JournalUNetConfig there and UNetV0Config here"):
        train_diffusion(replace(settings, network=unet_v0), run_dir)
    assert train_diffusion(replace(settings, network=journal), run_dir) == run_dir


def test_conditional_training_uses_the_labels(settings):
    recipe = diffusion_recipe(changed(settings, {"network.num_classes": 2}))
    network = recipe.network()
    batch = torch.randn(2, *settings.spectrogram.shape), torch.tensor([0, 1])
    recipe.loss(network, batch, torch.arange(2)).mean().backward()
    network.out.weight.grad.zero_()
    assert network.embed_class.weight.grad is not None


def test_fewer_classes_than_the_dataset_has_are_refused():
    for enough in (0, 2, 3):
        require_classes(enough, ["bach", "haydn"])
    with pytest.raises(ValueError, match="num_classes=1, but the dataset has 2 classes: bach, haydn"):
        require_classes(1, ["bach", "haydn"])


def test_validation_clips_are_spread_and_limited(settings):
    _, validation = clip_loaders(
        settings, replace(settings.train, num_validation_clips=2), batch_size=8, seed=0
    )
    x0, label = next(iter(validation))
    assert len(x0) == 2 and label.shape == (2,)


def test_nearest_training_clip_of_a_training_clip_is_itself(settings):
    train = SpectrogramDataset(settings.dataset_dir, "train")
    x0 = spread_clips(train, 3)
    distance, index = nearest_in_training(x0, train, batch_size=5)
    assert (distance < 1e-3).all() and torch.equal(train[int(index[1])][0], x0[1])
    assert copying(x0, x0 + 0.1, train)["test_to_nearest_train"] == pytest.approx(0.1, rel=0.01)


def test_real_clips_are_spread_over_their_split_and_have_their_piece(settings):
    splits = [SpectrogramDataset(settings.dataset_dir, split) for split in ("train", "test")]
    decode = Spectrogram(settings.spectrogram, splits[0].typical_gain).decode
    yardstick = make_yardstick(decode, *splits, 2)
    test = splits[1]
    assert yardstick.pieces == [test.sources[0], test.sources[-1]] and len(yardstick.training) == 4
    ends = yardstick.describe(decode(torch.stack([test[0][0], test[len(test) - 1][0]])))
    assert np.allclose(yardstick.reference.embedding, ends.embedding, atol=1e-4)


def test_music_that_is_not_here_any_more_is_said_in_one_sentence(settings, run_dir):
    test = SpectrogramDataset(settings.dataset_dir, "test")
    assert missing_music(settings, test) == ""
    moved = replace(settings, music_dir=settings.root / "moved")
    assert music_folder(moved) == moved.music_dir  # not the demo music, which is other music
    stages = against_recordings(DiffusionRun.load(run_dir), moved, None, None, test)
    said = recordings_table(stages, moved, test)
    assert said == (
        f"Not measured against the recordings: {test.sources[0]} of the dataset's music is not in "
        f"{moved.music_dir}."
    )


def test_a_split_that_is_too_small_to_measure_against_is_named(settings, monkeypatch):
    splits = [SpectrogramDataset(settings.dataset_dir, split) for split in ("train", "validation")]
    monkeypatch.setattr(SpectrogramDataset, "__len__", lambda self: 9 if self.split == "train" else 1)
    with pytest.raises(ValueError, match=r"the validation split of .* has 1 clips; measuring needs two"):
        make_yardstick(Spectrogram(settings.spectrogram).decode, *splits, 4)


def test_training_clips_are_augmented_and_validation_clips_are_as_stored(settings):
    assert settings.dataset.time_shift
    stored = {split: SpectrogramDataset(settings.dataset_dir, split) for split in ("train", "validation")}
    train, validation = clip_loaders(settings, settings.train, batch_size=8, seed=0)
    rows = [index for index, _ in train.batch_sampler.batch(0)]
    x0, plain = next(iter(train))[0], stored["train"].__getitems__(rows)[0]
    assert (x0 != plain).flatten(1).any(dim=1).sum() >= 2  # the last clip of a file cannot be shifted
    for x0, _ in validation:
        distance, _ = nearest_in_training(x0, stored["validation"])
        assert distance.max() < 1e-6
    still = changed(settings, {"dataset.time_shift": False})
    assert torch.equal(next(iter(clip_loaders(still, settings.train, batch_size=8, seed=0)[0]))[0], plain)


def test_own_music_is_preferred_and_a_wrong_folder_is_an_error(settings, tmp_path):
    assert find_music(settings) == settings.music_dir
    with pytest.raises(AudioError, match="correct CONF_MUSIC"):
        find_music(replace(settings, music_dir=tmp_path / "nowhere"))
    (tmp_path / "Data" / "music").mkdir(parents=True)
    assert find_music(replace(settings, root=tmp_path, music_dir=None)) == tmp_path / "Data" / "music"


def test_example_clips_pass_over_broken_files(settings, tmp_path):
    (tmp_path / "a.wav").write_bytes(b"broken")
    files = [tmp_path / "a.wav", *sorted(settings.music_dir.iterdir())]
    clips = load_example_clips(settings.spectrogram, files, count=7)
    assert clips.shape[0] >= 3 and clips.shape[1:] == (1, settings.spectrogram.clip_samples)
    with pytest.raises(AudioError, match=r"no readable file of .* among the 1"):
        load_example_clips(settings.spectrogram, files[:1], count=1)


def test_one_shots_are_examples_where_they_are_padded(settings, tmp_path):
    config, rate = settings.spectrogram, settings.spectrogram.sample_rate
    save_audio(tmp_path / "kick.wav", 0.5 * torch.ones(1, rate // 4), rate)
    with pytest.raises(AudioError, match=r"no readable file of .* among the 1"):
        load_example_clips(config, [tmp_path / "kick.wav"], count=1)
    clips = load_example_clips(config, [tmp_path / "kick.wav"], count=1, pad_short=True)
    assert clips.shape == (1, 1, config.clip_samples) and not clips[..., rate // 4 :].any()


def test_chosen_representation_comes_first_and_is_better_than_short_windows(settings):
    clips = load_example_clips(settings.spectrogram, sorted(settings.music_dir.iterdir()), count=2)
    rows = compare_representations(Spectrogram(settings.spectrogram), clips)
    assert next(iter(rows)) == "chosen: bands"
    assert rows["chosen: bands"].spectral_convergence < rows["magnitude, PGHI"].spectral_convergence
    assert rows["complex"].spectral_convergence < 0.1


@pytest.fixture(scope="module")
def for_two_steps(settings, run_dir):
    return changed(
        settings,
        {
            "start": run_dir.name, "diffusion.objective": "consistency",
            "diffusion.timestep_sampling": "log_normal", "diffusion.log_normal_mean": -0.41,
            "diffusion.log_normal_std": 2.0,
            "sampler": SamplerConfig("consistency", 2, "trailing", clip_x0=1.0),
        },
    )  # fmt: skip


def test_consistency_tuning_begins_with_a_run_and_makes_music_in_two_steps(for_two_steps, run_dir):
    begun = diffusion_recipe(for_two_steps).network().state_dict()
    for name, value in load_checkpoint(Run(run_dir).weights_path())["weights"].items():
        assert torch.equal(begun[name], value)
    tuned = train_diffusion(for_two_steps)
    model, calls = DiffusionRun.load(tuned), []
    handle = model.network.register_forward_hook(lambda *_: calls.append(1))
    x0 = model.generate(range(2), for_two_steps.sampler, batch_size=2, progress=False)
    handle.remove()
    assert len(calls) == 2 and x0.isfinite().all()


def test_consistency_tuning_of_nothing_is_refused(for_two_steps):
    with pytest.raises(ValueError, match="tunes a trained diffusion: set start"):
        diffusion_recipe(replace(for_two_steps, start=None))
