"""A trained run that makes music: its labels, its guidance, its earlier weights, averages of any length."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import QUICK, randomise

from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Diffusion import NoiseSchedule, Parameterisation
from Libraries.Evaluation import Comparison
from Libraries.Evaluation.Comparison import (
    compare_ema_lengths,
    compare_guidance,
    compare_samplers,
    sampler_curves,
    validation_yardstick,
    variant_table,
)
from Libraries.Evaluation.Samples import bits_of_clips, record_trajectory, spread_clips, spread_labels
from Libraries.Runs.DiffusionRun import DiffusionRun, guide_step
from Libraries.Runs.DiffusionTraining import (
    diffusion_recipe,
    first_network,
    for_classes,
    release_diffusion,
    save_preview,
    train_diffusion,
)
from Libraries.Runs.Music import make_music
from Libraries.Runs.Recipe import open_run
from Libraries.Runs.Run import Run
from Libraries.Runs.Settings import changed
from Libraries.Runs.Spaces import open_codec
from Libraries.Sampling.Guidance import GuidanceConfig
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Training.Checkpoint import (
    CheckpointError,
    find_checkpoints,
    load_checkpoint,
    save_checkpoint,
    save_json,
)
from Libraries.Utils import spread_indices

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


@pytest.fixture
def labelled(settings):
    """A network that never had a label hidden; whatever its row for "no label" touches becomes NaN."""
    diffusion = replace(settings.diffusion, label_dropout=0.0, num_train_timesteps=8)
    own = changed(settings, {"network.num_classes": 2, "diffusion": diffusion})
    recipe = diffusion_recipe(own)
    network = randomise(recipe.network())
    network.embed_class.weight.data[2] = torch.nan
    codec, schedule = open_codec(own), NoiseSchedule(own.diffusion)
    model = DiffusionRun(network, schedule, Spectrogram(own.spectrogram), codec, torch.device("cpu"))
    model.precision = "no"
    return model


def test_a_label_that_was_never_trained_is_never_used(settings, labelled, tmp_path, monkeypatch):
    monkeypatch.setattr(labelled, "guide", labelled.network)
    monkeypatch.setattr(labelled, "to_audio", lambda x0: x0)
    unmeasured = SimpleNamespace(measure=lambda _: None)
    test = SpectrogramDataset(settings.dataset_dir, "test")
    clips, own = spread_clips(test, 2), labelled.required(spread_labels(test, 2))
    made = [
        make(labelled, settings),
        *(states[2] for states in record_trajectory(labelled, settings.sampler, 0)),
    ]
    few = changed(settings, {"evaluation.compared_clips": 2, "evaluation.batch_size": 2})
    made += [v.x0 for _, v in compare_samplers(labelled, few, unmeasured)]
    made += [v.x0 for v in compare_guidance(labelled, few, unmeasured)]
    editor = labelled.editor(settings.sampler, 0, labels=own)
    made += [editor.vary(clips, 0.9, [0, 1])]
    made += [labelled.interpolate(clips, torch.tensor([0.5]), 2, iterations=1, labels=own[:1])]
    made += [torch.tensor(bits_of_clips(labelled, clips, [0, 1], own))]
    assert all(x0.isfinite().all() for x0 in made)
    drawn = []
    monkeypatch.setattr("Libraries.Runs.DiffusionTraining.plot_tensors", lambda x0, *_: drawn.append(x0))
    monkeypatch.setattr("Libraries.Runs.DiffusionTraining.save_preview_figures", lambda *_: None)
    own = replace(settings, diffusion=labelled.schedule.config)
    save_preview(own, labelled.codec, Run(tmp_path), 1, labelled.network)
    assert drawn[0].isfinite().all()


def test_a_clip_without_a_label_is_refused_where_none_was_ever_hidden(settings, model, conditional, labelled):
    for use in (labelled.denoiser, lambda: labelled.editor(settings.sampler, 0)):
        with pytest.raises(ValueError, match=r"the label of every clip \(label_dropout=0\).*: give labels"):
            use()
    with pytest.raises(ValueError, match="labels were sometimes hidden"):
        labelled.denoiser(torch.tensor([0]), BY_LABEL)
    for other in (model, conditional):
        assert other.required(torch.tensor([0])) is None and other.denoiser()


def test_a_run_with_one_set_of_weights_has_no_weaker_one(model, run_dir, tmp_path):
    for name in ("conf.json", find_checkpoints(run_dir, "ema")[-1][1].name):
        (tmp_path / name).write_bytes((run_dir / name).read_bytes())
    with pytest.raises(CheckpointError, match="no weights before step 4: train with"):
        DiffusionRun.load(tmp_path).load_guide(0.3)


def test_a_guide_is_earlier_than_the_weights_that_it_guides(run_dir, tmp_path):
    last = find_checkpoints(run_dir, "ema")[-1][1]
    for name, source in (("conf.json", run_dir / "conf.json"), ("ema-00000008.pth", last)):
        (tmp_path / name).write_bytes(source.read_bytes())
    for name in ("ema-00000002.pth", "ema-00000004.pth"):
        (tmp_path / name).write_bytes(last.read_bytes())
    steps = [DiffusionRun.load(tmp_path, step=step).load_guide(0.9) for step in (4, 8, None)]
    assert steps == [2, 4, 4]
    with pytest.raises(CheckpointError, match="no weights before step 2"):
        DiffusionRun.load(tmp_path, step=2).load_guide(0.3)


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


def test_comparisons_cover_what_the_settings_name(settings, model, run_dir, few_draws):
    yardstick = validation_yardstick(model, settings)
    found = compare_samplers(model, settings, yardstick)
    assert [v.name for _, v in found] == ["ddim, 2 steps", "ddim, 4 steps", "heun, 2 steps", "heun, 4 steps"]
    assert {name: len(points) for name, points in sampler_curves(found).items()} == {"ddim": 2, "heun": 2}
    assert [v.name for v in compare_guidance(model, settings, yardstick)] == [
        "autoguidance, scale 1", "autoguidance, scale 2",
    ]  # fmt: skip
    lengths = compare_ema_lengths(run_dir, settings, yardstick)
    assert [v.name for v in lengths] == ["as trained", *map("{:g}".format, settings.evaluation.ema_lengths)]
    lines = variant_table(lengths, "length").splitlines()
    assert [line.split(" | ")[0] for line in lines[2 : 3 + len(lengths)]] == [
        *(f"| {variant.name}" for variant in lengths), "| real training music: the floor",
    ]  # fmt: skip
    assert len({line.count("|") for line in lines[: 3 + len(lengths)]}) == 1
    assert "4 clips: a kernel distance within" in lines[-1]


def test_variants_are_judged_by_the_validation_split(settings, model):
    validation = SpectrogramDataset(settings.dataset_dir, "validation")
    chosen = [validation.sources[i] for i in spread_indices(len(validation), 4)]
    assert validation_yardstick(model, settings).pieces == chosen


def test_compared_samples_have_the_classes_in_turn_and_the_guidance(settings, conditional, monkeypatch):
    given = []

    def generate(seeds, config, batch_size, *, labels=None, guidance=None, **_):
        given.append((labels, guidance))
        return torch.zeros(len(seeds), *settings.spectrogram.shape)

    monkeypatch.setattr(conditional, "generate", generate)
    monkeypatch.setattr(Comparison, "compare", lambda model, makers, _: [make() for make in makers.values()])
    compare_samplers(conditional, replace(settings, guidance=AUTO), None)
    assert given[0] == (None, None)  # the warm-up
    assert all(labels.tolist() == [0, 1, 0, 1] and guidance == AUTO for labels, guidance in given[1:])
    given.clear()
    compare_guidance(conditional, settings, None)
    assert [guidance.method for _, guidance in given] == ["classifier_free"] * 2
    assert [labels.tolist() for labels, _ in given] == [[0, 1, 0, 1]] * 2


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


@pytest.mark.parametrize("seconds", [None, 0.5, 2.5])
def test_music_is_the_seed_s_clip_continued_or_cut_to_its_length(settings, model, seconds):
    options = {"sampler": settings.sampler, "edit": replace(settings.edit, resamplings=1)}
    music, clip = (make_music(model, 5, length, **options) for length in (seconds, None))
    rate, L = settings.spectrogram.sample_rate, clip.shape[-1]
    assert clip.shape == (1, settings.spectrogram.kept_samples)
    assert music.shape == (1, L if seconds is None else round(seconds * rate))
    assert music.isfinite().all() and (seconds is None or music[:, -rate // 4 :].abs().max() > 0)
    if seconds == 0.5:
        assert torch.equal(music, clip[:, : music.shape[-1]])
    with pytest.raises(ValueError, match=r"0\.001 s are shorter than a frame"):
        make_music(model, 5, 0.001, **options)


def test_a_label_is_found_by_its_name(model, conditional):
    names = conditional.run.conf["classes"]
    assert [conditional.label_of(name).tolist() for name in names] == [[label] for label in range(len(names))]
    with pytest.raises(ValueError, match=f"knows no label 'lute': it knows {', '.join(names)}"):
        conditional.label_of("lute")
    with pytest.raises(ValueError, match="no label 'lute': it was trained without labels"):
        model.label_of("lute")


def test_training_begins_with_the_weights_of_another_run(settings, run_dir):
    trained = DiffusionRun.load(run_dir).network.state_dict()
    start = changed(settings, {"start": run_dir.name, "network.dropout": 0.1})
    begun = diffusion_recipe(start).network().state_dict()
    assert all(torch.equal(begun[name], value) for name, value in trained.items())


def test_a_network_with_other_classes_begins_where_the_run_without_a_label_ended(settings, run_dir):
    plain = DiffusionRun.load(run_dir, torch.device("cpu")).network
    start = changed(settings, {"start": run_dir.name, "network.num_classes": 3})
    labelled = diffusion_recipe(start).network().eval()
    x, t = torch.randn(4, *settings.spectrogram.shape), torch.tensor([0, 3, 500, 999])
    for labels in (None, torch.tensor([0, 1, 2, 3])):
        torch.testing.assert_close(labelled(x, t, labels), plain(x, t), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        labelled.embed_class.weight.normal_()
    weights = {name: value.clone() for name, value in labelled.state_dict().items()}
    names = ["choir", "lute", "organ"]
    plain.load_state_dict(for_classes(weights, plain, names, []))
    torch.testing.assert_close(plain(x, t), labelled(x, t), atol=1e-5, rtol=1e-5)
    rows = for_classes(weights, labelled, names, ["drums", "choir"])["embed_class.weight"]
    choir, *_, no_label = weights["embed_class.weight"]
    assert torch.equal(rows, torch.stack([no_label, choir, no_label, no_label]))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"diffusion.prediction_type": "epsilon"}, "prediction_type is v_prediction there and epsilon here"),
        ({"spectrogram.db_range": 60.0}, "db_range is 80.0 there and 60.0 here"),
    ],
)
def test_a_run_that_does_not_fit_cannot_be_begun_with(settings, run_dir, change, sentence):
    with pytest.raises(ValueError, match=f"{run_dir.name}, with which start begins, .*{sentence}"):
        diffusion_recipe(changed(settings, {"start": run_dir.name, **change})).network()


def test_a_run_in_latents_of_another_autoencoder_cannot_be_begun_with(settings, run_dir, tmp_path):
    theirs = tmp_path / "Models" / "diffusion" / "theirs"
    shutil.copytree(run_dir, theirs)
    conf = json.loads((theirs / "conf.json").read_text(encoding="utf-8"))
    conf["requires"] = {"run": "of-theirs", "weights": ""}
    save_json(theirs / "conf.json", conf)
    own = changed(settings, {"root": tmp_path, "start": "theirs"})
    with pytest.raises(ValueError, match=r"theirs, .* was trained in the latents of of-theirs"):
        first_network(own, open_codec(settings))


def test_a_released_run_generates_and_names_no_folder_of_this_machine(settings, model, run_dir, tmp_path):
    release_diffusion(run_dir, tmp_path / "Models" / "released" / "chords")
    released = DiffusionRun.load(tmp_path / "Models" / "released" / "chords")
    released.precision = "no"
    torch.testing.assert_close(make(released, settings), make(model, settings), atol=0.05, rtol=0)
    content = (tmp_path / "Models" / "released" / "chords" / "conf.json").read_text(encoding="utf-8")
    assert str(settings.root) not in content


def test_a_release_brings_the_guide_model_of_its_guidance(settings, run_dir, tmp_path):
    guided, released = tmp_path / "Models" / "diffusion" / "00000-guided", tmp_path / "Models" / "released"
    shutil.copytree(run_dir, guided)
    conf = json.loads((guided / "conf.json").read_text(encoding="utf-8"))
    conf["settings"]["guidance"] |= {"method": "autoguidance", "guide_at": 0.4}
    save_json(guided / "conf.json", conf)
    release_diffusion(guided, released / "chords")
    steps = [step for step, _ in find_checkpoints(released / "chords", "ema")]
    last = find_checkpoints(run_dir, "ema")[-1][0]
    assert steps == [guide_step(run_dir, 0.4), last] and steps[0] < last
    model = DiffusionRun.load(released / "chords")
    assert model.load_guide(0.4) == steps[0]


def test_a_run_older_than_a_setting_is_compared_and_not_broken(settings, run_dir, tmp_path):
    older = tmp_path / "Models" / "diffusion" / "00000-older"
    shutil.copytree(run_dir, older)
    conf = json.loads((older / "conf.json").read_text(encoding="utf-8"))
    del conf["settings"]["start"], conf["settings"]["spectrogram"]["channels"]
    del conf["settings"]["dataset"]["random_swap"]
    save_json(older / "conf.json", conf)
    assert open_run(diffusion_recipe(settings), older).folder == older
    with pytest.raises(ValueError, match="random_swap is False there and True here"):
        open_run(diffusion_recipe(changed(settings, {"dataset.random_swap": True})), older)
    with pytest.raises(ValueError, match=f"start is None there and {run_dir.name} here"):
        open_run(diffusion_recipe(changed(settings, {"start": run_dir.name})), older)
