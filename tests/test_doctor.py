"""The doctor names each mistake that is planted in a small training, and none in a healthy one."""

import contextlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

import ma_ddpm
from Commands import Doctor
from Conf import SMOKE, in_space
from Libraries.Dataset.SpectrogramDataset import build_dataset
from Libraries.Doctor import RULES, CannotLook, Case, Diagnosis, doctor, examine, rules_for
from Libraries.Doctor.AutoencoderRules import autoencoder_is_the_limit, latent_collapsed, latent_not_standard
from Libraries.Doctor.CurveRules import (
    gradients_clipped_at_every_step,
    learning_rate_too_high,
    learning_rate_too_low,
    level_of_a_constant,
    loss_spike,
    loss_stalls_at_a_constant,
    validation_parts_from_training,
)
from Libraries.Doctor.DataRules import (
    clipped_recordings,
    data_in_zero_to_one,
    near_silent_clips,
    one_piece_in_two_splits,
    one_scale_for_all_clips,
    representation_hard_to_invert,
    too_few_clips,
)
from Libraries.Doctor.SampleRules import copies_among_samples, highs_removed, samples_are_noise
from Libraries.Doctor.SettingRules import (
    epsilon_without_signal,
    noise_leaves_signal,
    spacing_does_not_suit,
    too_few_sampling_steps,
)
from Libraries.Doctor.WeightRules import ema_lags, ema_never_updated, fp16_overflow, sigmoid_on_the_output
from Libraries.Networks import as_journal
from Libraries.Runs.Autoencoding import train_vae
from Libraries.Runs.DiffusionTraining import train_diffusion
from Libraries.Runs.Run import RELEASED, latest_run
from Libraries.Runs.Settings import changed
from Libraries.Runs.Upsampling import train_upsampler
from Libraries.Sampling.Loop import SamplerConfig
from Libraries.Training import DiffusionLoss, Loop
from Libraries.Training.Checkpoint import find_checkpoints, load_checkpoint, save_checkpoint, save_json
from Libraries.Training.PostHocEMA import running_average

RATE = 8_000
SETTINGS = changed(
    in_space(SMOKE, "spectrogram"),
    {
        "spectrogram.representation": "mel", "spectrogram.sample_rate": RATE, "spectrogram.n_bands": 32,
        "spectrogram.clip_seconds": 0.512,  # s = 32 hops
        "spectrogram.n_fft": 512, "spectrogram.win_length": 512, "spectrogram.hop_length": 128,
        "spectrogram.max_frequency": RATE / 2,
        "network.channels": (32, 64), "network.patch_size": (2, 2),
        "train.num_steps": 160, "train.batch_size": 8, "train.learning_rate": 3e-3, "train.warmup_steps": 10,
        "train.ema_decay": 0.95, "train.mixed_precision": "no", "train.power_ema": (), "train.log_every": 4,
        "train.validate_every": 50, "train.num_validation_clips": 8, "train.save_every": 1_000,
        "train.preview_every": 1_000,
        "sampler": SamplerConfig("dpmpp_2m", num_inference_steps=20, spacing="karras", clip_x0=1.0),
    },
)  # fmt: skip
FEW = {"train.num_steps": 2, "train.log_every": 1}


@pytest.fixture(autouse=True, scope="module")
def no_previews():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("Libraries.Runs.DiffusionTraining.save_preview", lambda *_: None)
        patch.setattr("Libraries.Runs.Autoencoding.save_vae_preview", lambda *_: None)
        yield


def tune(seed, seconds):
    """Plucked notes at odd moments, in a timbre of the tune's own, over a little noise; peak 1."""
    rng, size = np.random.default_rng(seed), int(seconds * RATE)
    wave, time, start = 0.02 * rng.standard_normal(size), np.arange(size) / RATE, 0
    partials = rng.uniform(0, 1, 8)
    while start < size:
        phase, left = 220 * np.pi * 2 ** (rng.integers(0, 24) / 12) * time[: size - start], size - start
        note = sum(weight * np.sin(k * phase) for k, weight in enumerate(partials, 1))
        wave[start:] += note * np.exp(-6 * time[:left])
        start += int(rng.uniform(0.1, 0.5) * RATE)
    return wave / np.abs(wave).max()


def build(root, waves, **changes):
    """Write the waves as pieces, build a dataset of them, and return its settings."""
    (root / "music").mkdir(parents=True)
    for number, wave in enumerate(waves):
        soundfile.write(root / "music" / f"piece{number}.wav", wave, RATE, subtype="FLOAT")
    settings = changed(SETTINGS, {"root": root, "music_dir": root / "music", **changes})
    build_dataset(root / "music", settings.dataset_dir, settings.spectrogram, settings.dataset)
    return settings


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("doctor")


@pytest.fixture(scope="module")
def settings(root):
    """Sixteen pieces whose levels differ by up to 28 dB."""
    return build(root / "sound", [0.4 * 10 ** (-n / 11) * tune(n, 6) for n in range(16)])


@pytest.fixture(scope="module")
def healthy(settings):
    return Case(train_diffusion(settings))


@pytest.fixture(scope="module")
def of_the_journal(root):
    """The first training of the journal, all mistakes at once."""
    waves = [0.4 * 10 ** (-n / 11) * tune(n, 6) for n in range(16)]
    changes = {"spectrogram.value_range": "zero_to_one", "spectrogram.normalisation": "dataset"}
    network = replace(as_journal(SETTINGS.network), output="sigmoid_experiment")
    ddim = SamplerConfig("ddim", num_inference_steps=20, spacing="trailing", clip_x0=None, eta=0.0)
    changes |= {"diffusion.prediction_type": "epsilon", "network": network, "sampler": ddim, **FEW}
    return Case(train_diffusion(build(root / "journal", waves, **changes)))


@pytest.fixture(scope="module")
def bad_music(root):
    """Five files: one tune at two levels, a clipped piece and a nearly silent one."""
    clipped, silent = np.clip(5 * tune(2, 2), -1, 1), 1e-4 * tune(3, 2)
    waves = [0.4 * tune(1, 2), 0.2 * tune(1, 2), clipped, silent, 0.3 * tune(1, 2)]
    return Case(train_diffusion(build(root / "bad", waves, **{"dataset.silence_db": -120.0, **FEW})))


@pytest.fixture(scope="module")
def one_clip(root):
    """A network that has seen one clip, again and again."""
    waves = [0.4 * tune(n, 0.6) for n in range(6)]
    changes = {"dataset.split": (0.1, 0.5, 0.4), "dataset.time_shift": False}
    return Case(train_diffusion(build(root / "one", waves, **changes)))


@pytest.fixture(scope="module")
def slow(settings):
    """A learning rate a hundred times too low, and gradients that are always clipped."""
    changes = {"train.learning_rate": 3e-5, "train.max_grad_norm": 1e-3, "train.num_steps": 100}
    return Case(train_diffusion(changed(settings, changes)))


def rules_of(case):
    """All rules for a run but that on the representation: 32 mel bands are few, and it says so."""
    return tuple(rule for rule in rules_for(case) if rule is not representation_hard_to_invert)


def with_settings(case, folder, **changes):
    """Return the case of a copy of a run whose conf.json has other values, such as sampler."""
    run_dir = folder / "Models" / "diffusion" / "00000-COPY"
    shutil.copytree(case.run.folder, run_dir)
    for name in ("Data", "music"):
        (folder / name).symlink_to(case.settings.root / name)
    conf = json.loads((run_dir / "conf.json").read_text())
    for part, values in changes.items():
        conf["settings"][part] |= values
    save_json(run_dir / "conf.json", conf)
    return Case(run_dir)


def test_a_healthy_run_has_no_mistake_and_every_rule_has_looked(healthy):
    diagnosis = examine(healthy, rules_of(healthy))
    assert not diagnosis.findings and not diagnosis.unseen, str(diagnosis)
    assert len(diagnosis.sound) == len(RULES["diffusion"]) - 1
    assert f"healthy; {len(diagnosis.sound)} rules found nothing" in str(diagnosis)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (data_in_zero_to_one, "never negative"),
        (one_scale_for_all_clips, "one scale for the whole set"),
        (sigmoid_on_the_output, "output lies between 0"),
        (epsilon_without_signal, "predicts noise"),
    ],
)
def test_the_mistakes_of_the_journal_are_named(of_the_journal, rule, words):
    assert words in rule(of_the_journal).sentence


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (near_silent_clips, "nearly silent"),
        (clipped_recordings, "are clipped"),
        (too_few_clips, "clips to train on"),
        (one_piece_in_two_splits, "copies of training clips"),
    ],
)
def test_bad_music_is_named(bad_music, rule, words):
    assert words in rule(bad_music).sentence


def test_a_file_under_two_names_is_one_piece(root):
    """The second file is a copy of the first, byte by byte."""
    waves = [0.4 * tune(1, 1)] * 2 + [0.4 * tune(n, 1) for n in range(2, 5)]
    case = Case(train_diffusion(build(root / "twice", waves, **{"dataset.seed": 1, **FEW})))
    splits = {clip["source"]: clip["split"] for clip in case.manifest["clips"]}
    assert splits["piece0.wav"] != splits["piece1.wav"]  # as the seed has dealt them
    assert "in more than one split: 1, such as piece0.wav" in one_piece_in_two_splits(case).sentence


def test_a_representation_that_cannot_be_inverted_is_named_and_an_exact_one_is_not(healthy, root, tmp_path):
    """Magnitudes with a random phase and nothing to mend it; a complex spectrogram."""
    random_phase = {"phase": "griffin_lim", "griffin_lim_iterations": 0}
    case = with_settings(healthy, tmp_path, spectrogram=random_phase)
    assert "magnitudes are wrong" in representation_hard_to_invert(case).sentence
    exact = {
        "spectrogram.representation": "complex",
        "spectrogram.n_fft": 256,
        "spectrogram.win_length": 256,
        **FEW,
    }
    settings = build(root / "exact", [0.4 * tune(n, 2) for n in range(5)], **exact)
    assert representation_hard_to_invert(Case(train_diffusion(settings))) is None


def test_noise_that_leaves_signal_is_named(settings):
    """DDPM's betas, made for a thousand timesteps, in a hundred."""
    changes = {"diffusion.schedule": "linear", "diffusion.num_train_timesteps": 100, **FEW}
    finding = noise_leaves_signal(Case(train_diffusion(changed(settings, changes))))
    assert finding.evidence["signal"] == pytest.approx(0.603, abs=1e-3)  # the root of the product of 1 - beta


def test_too_few_steps_and_a_spacing_that_does_not_suit_are_named(healthy, tmp_path):
    few = with_settings(healthy, tmp_path / "few", sampler={"num_inference_steps": 2})
    assert "with 2 steps samples miss" in too_few_sampling_steps(few).sentence
    heun = {"name": "heun", "churn": 0.0, "spacing": "trailing", "num_inference_steps": 20}
    spaced = with_settings(healthy, tmp_path / "spaced", sampler=heun)
    assert too_few_sampling_steps(spaced) is None
    assert spacing_does_not_suit(spaced).advice == "set spacing='karras' in the sampler"


def test_samples_that_are_noise_though_the_loss_fell_are_named(healthy, tmp_path):
    """A sampler that is spoilt by its first jump, and a network that has learned nothing."""
    heun = {"name": "heun", "churn": 0.0, "spacing": "trailing", "num_inference_steps": 5}
    spoilt = with_settings(healthy, tmp_path, sampler=heun)
    assert "of the way from music to noise" in samples_are_noise(spoilt).sentence


def test_a_learning_rate_that_is_too_low_is_named_and_gradients_that_are_always_clipped(slow):
    assert "as fast at the end" in learning_rate_too_low(slow).sentence
    assert "clipped in 100%" in gradients_clipped_at_every_step(slow).sentence


def test_a_loss_that_stays_at_the_level_of_a_constant_is_named(settings):
    changes = {"train.learning_rate": 1e-7, "train.num_steps": 100, "train.batch_size": 1}
    case = Case(train_diffusion(changed(settings, changes)))
    assert "always answers the same" in loss_stalls_at_a_constant(case).sentence
    with pytest.raises(CannotLook, match="not below"):
        samples_are_noise(case)


@pytest.mark.parametrize(("rate", "end"), [(0.1, "early in the training"), (1e4, "broke off at step")])
def test_a_learning_rate_that_is_too_high_is_named(settings, rate, end):
    changes = {
        "train.learning_rate": rate,
        "train.num_steps": 100,
        "train.warmup_steps": 3,
        "train.log_every": 1,
    }
    with contextlib.suppress(Loop.TrainingDiverged):
        train_diffusion(changed(settings, changes))
    finding = learning_rate_too_high(Case(latest_run(settings.models_dir / "diffusion", "metrics.csv")))
    assert "the loss rose from" in finding.sentence and end in finding.sentence


def too_high_a_rate(monkeypatch):
    """For three steps the learning rate is thirty times as high: the network is lost."""
    usual = Loop.learning_rate_factor
    monkeypatch.setattr(
        Loop, "learning_rate_factor", lambda n, config: usual(n, config) * (30 if 98 <= n < 101 else 1)
    )


def loud_batches(monkeypatch):
    """For three steps the clips are five times as loud; their gradients are clipped."""
    usual = DiffusionLoss.__call__

    def loss(self, model, batch, positions):
        step = positions // len(positions)
        loud = (step >= 98) & (step < 101)
        return usual(self, model, (batch[0] * (1 + 4 * loud[:, None, None, None]), batch[1]), positions)

    monkeypatch.setattr(DiffusionLoss, "__call__", loss)


@pytest.mark.parametrize(
    ("spike", "steps", "what"),
    [(loud_batches, 160, "came back by step"), (too_high_a_rate, 120, "never came back")],
)
def test_a_spike_of_the_loss_is_named_with_what_followed(settings, monkeypatch, spike, steps, what):
    spike(monkeypatch)
    changes = {"train.num_steps": steps, "train.lr_schedule": "constant"}
    finding = loss_spike(Case(train_diffusion(changed(settings, changes))))
    print(f"\n{finding.sentence}")
    assert what in finding.sentence and 96 <= finding.evidence["step"] <= 104


def test_memorising_and_copies_are_named(one_clip):
    assert "on training clips" in validation_parts_from_training(one_clip).sentence
    assert "are copies of training clips" in copies_among_samples(one_clip).sentence


def average_by(monkeypatch, share):
    """Let EMA weights move by a fixed share of the distance in each step."""
    monkeypatch.setattr(
        Loop, "make_ema", lambda model, _: running_average(model, lambda n: torch.full((), share))
    )


def test_ema_weights_that_lag_or_were_never_updated_are_named(settings, monkeypatch):
    fast = changed(settings, {"train.num_steps": 40})
    average_by(monkeypatch, 0.0)
    never = Case(train_diffusion(fast))
    assert "have not left the first ones" in ema_never_updated(never).sentence and ema_lags(never) is None
    average_by(monkeypatch, 0.01)  # a decay of .99 without warm-up
    late = Case(train_diffusion(fast))
    assert "lag behind" in ema_lags(late).sentence and ema_never_updated(late) is None


def test_removed_highs_are_named(settings, monkeypatch):
    """Training whose clips have lost their upper half on the way."""

    def without_highs(self, model, x0, seeds):
        return model, torch.cat(
            [x0[:, :, : x0.shape[2] // 2], -torch.ones_like(x0[:, :, x0.shape[2] // 2 :])], 2
        )

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionLoss, "_network_and_data", without_highs)
        case = Case(train_diffusion(changed(settings, {"train.num_steps": 100})))
    assert "dB weaker than real clips" in highs_removed(case).sentence


def overflowed(case, folder, scale):
    """Return a copy of a run whose state is as fp16 leaves it: with a scale, and most steps skipped."""
    copy = with_settings(case, folder)
    path = find_checkpoints(copy.run.folder, "state")[-1][1]
    state = load_checkpoint(path)
    state["scaler"], state["ema"]["n_averaged"] = {"scale": scale}, torch.tensor(100)
    save_checkpoint(path, state)
    return copy


def test_overflow_in_fp16_is_named(healthy, tmp_path):
    assert "38% of the steps overflowed" in fp16_overflow(overflowed(healthy, tmp_path, 0.25)).sentence


@pytest.mark.gpu
def test_overflow_in_a_training_in_fp16_is_named(settings):
    """A learning rate that blows activations up beyond 65,504."""
    changes = {"train.mixed_precision": "fp16", "train.learning_rate": 30.0, "train.num_steps": 40}
    assert (
        "of the steps overflowed" in fp16_overflow(Case(train_diffusion(changed(settings, changes)))).sentence
    )


VAE = {
    "vae.train": replace(SETTINGS.train, learning_rate=5e-3, num_steps=400), "vae.network.channels": (16, 32),
    "vae.network.row_strides": (2, 1), "vae.network.frame_strides": (2, 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def autoencoder(settings):
    return Case(train_vae(changed(settings, VAE)))


def test_a_healthy_autoencoder_has_no_mistake(autoencoder):
    diagnosis = examine(autoencoder, rules_of(autoencoder))
    assert not diagnosis.findings and not diagnosis.unseen, str(diagnosis)


def test_a_latent_that_carries_nothing_is_named(settings):
    changes = VAE | {"vae.loss.kl_weight": 100.0, "vae.loss.kl_warmup_steps": 0, "vae.train.num_steps": 40}
    case = Case(train_vae(changed(settings, changes)))
    assert "posterior collapse" in latent_collapsed(case).sentence
    assert "away from their own originals" in autoencoder_is_the_limit(case).sentence


def test_latents_that_are_not_standard_are_named(autoencoder, tmp_path):
    """The statistics of another autoencoder, whose latents were three times as wide."""
    run_dir = shutil.copytree(autoencoder.run.folder, tmp_path / "Models" / "vae" / "00000-COPY")
    (tmp_path / "Data").symlink_to(autoencoder.settings.root / "Data")
    path = find_checkpoints(run_dir, "latent")[-1][1]
    save_checkpoint(path, load_checkpoint(path) | {"std": 3 * load_checkpoint(path)["std"]})
    assert "not standard" in latent_not_standard(Case(run_dir)).sentence


@pytest.mark.parametrize("noise", [0.02, 0.1], ids=["a long run", "a short one"])
def test_healthy_curves_raise_no_alarm(healthy, noise):
    """Losses that fall as those of real trainings do, with the scatter of their rows."""
    case, rng, steps = Case(healthy.run.folder), np.random.default_rng(0), np.arange(10, 2010, 10)
    losses = (0.5 + 0.5 * np.exp(-steps / 300)) * (1 + noise * rng.standard_normal(len(steps)))
    rates = 1e-3 * 0.5 * (1 + np.cos(np.pi * steps / 2000))
    rows = zip(steps.tolist(), losses, rates, rng.lognormal(-0.5, 0.4, len(steps)), strict=True)
    case.training_rows = [dict(zip(("step", "loss", "lr", "grad_norm"), row, strict=True)) for row in rows]
    rules = loss_spike, learning_rate_too_high, learning_rate_too_low, gradients_clipped_at_every_step
    assert not examine(case, rules).findings


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction", "edm"])
def test_the_level_of_a_constant_is_the_loss_of_a_network_that_answers_one(healthy, prediction_type):
    case = Case(healthy.run.folder)
    case.settings = changed(case.settings, {"diffusion.prediction_type": prediction_type})
    case.encoded = 0.6 * torch.randn(64, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    loss, positions = case.recipe.loss, torch.arange(64)
    zero = torch.nn.Conv2d(1, 1, 1)
    torch.nn.init.zeros_(zero.weight)
    torch.nn.init.zeros_(zero.bias)
    model = Constant(zero)
    found = loss(model, (case.encoded, torch.zeros(64, dtype=torch.int64)), positions).mean().item()
    assert found == pytest.approx(level_of_a_constant(case), rel=0.03)


class Constant(torch.nn.Module):
    """A network that answers zero."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, t, cond=None):
        return self.layer(x)


@pytest.mark.parametrize("name", ["phase-bands", "phase-magnitude", "diffusion-cpu", "diffusion-base"])
def test_released_models_raise_no_alarm(name):
    diagnosis = doctor(RELEASED / name)
    assert not diagnosis.findings and "loss spike" in diagnosis.sound, str(diagnosis)


def test_a_network_for_two_steps_is_not_judged_as_a_denoiser():
    diagnosis = doctor(RELEASED / "diffusion-cpu-two-steps")
    assert not diagnosis.findings, str(diagnosis)
    assert {"loss spike", "too few sampling steps", "spacing does not suit"} <= diagnosis.unseen.keys()


def test_an_upsampler_can_be_examined(settings):
    few = {f"upsampler.{name}": value for name, value in FEW.items()}
    network = replace(settings.network, attention_levels=())
    upsampler = changed(settings, {"upsampler.train": settings.train, "upsampler.network": network, **few})
    diagnosis = doctor(train_upsampler(upsampler))
    assert "too few clips" in diagnosis.sound and "loss spike" in diagnosis.unseen, str(diagnosis)


def test_what_is_not_there_is_not_counted_as_healthy(healthy, tmp_path):
    run_dir = shutil.copytree(healthy.run.folder, tmp_path / "Models" / "diffusion" / "00000-COPY")
    diagnosis = doctor(run_dir)
    assert diagnosis.unseen.keys() > {"too few clips", "copies among samples"}
    assert "could not look for too few clips: " in str(diagnosis)
    assert "as far as could be seen" in str(diagnosis) and "loss spike" in diagnosis.sound


def test_the_command_says_what_it_found_by_its_exit_code(bad_music, tmp_path, monkeypatch, capsys):
    for folder, code, words in (
        (bad_music.run.folder, 1, "nearly silent"),
        (tmp_path, 2, "name a run's own folder"),
    ):
        assert run_command(folder) == code
        output = capsys.readouterr()
        assert words in output.out + output.err
    monkeypatch.setattr(Doctor, "doctor", lambda _: Diagnosis("00000-CPU", [], ["loss spike"], {}))
    assert run_command(tmp_path) == 0
    assert capsys.readouterr().out.startswith("00000-CPU: healthy; 1 rules found nothing")


def run_command(folder):
    try:
        return ma_ddpm.main(["doctor", str(folder)])
    except SystemExit as ended:
        return ended.code
