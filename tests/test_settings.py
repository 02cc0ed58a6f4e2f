"""Conf's presets, and settings on their way to a run's conf.json and back."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from Conf import BASE, CPU, ORIGIN, PRESETS, SMOKE, choose, in_space
from Journal import TRIAL, choose_experiments
from Libraries.Networks import JournalUNetConfig, as_journal, journal_network
from Libraries.Runs.Run import provenance
from Libraries.Runs.Settings import SPACES, Settings, changed, from_dict, part_of, to_dict, with_defaults

SCRIPTS = Path(__file__).parent.parent / "MainScripts"


ON_SPECTROGRAMS = in_space(SMOKE, "spectrogram")


@pytest.mark.parametrize("preset", [*PRESETS.values(), TRIAL], ids=lambda preset: preset.preset)
def test_settings_come_back_from_json(preset):
    values = json.loads(json.dumps(to_dict(preset)))
    assert from_dict(Settings, values) == preset
    for path in ("spectrogram", "network", "vae.network", "upsampler.low_resolution", "phase.run"):
        part = preset
        for name in path.split("."):
            part = getattr(part, name)
        assert part_of(Settings, values, path) == part


def test_a_network_of_any_kind_comes_back_from_json():
    for name in ("unet_v0", "attention_unet", "conv_unet_450k"):
        settings = replace(ON_SPECTROGRAMS, network=journal_network(name, SMOKE.network.num_classes))
        assert from_dict(Settings, json.loads(json.dumps(to_dict(settings)))) == settings


def test_settings_of_another_version_name_what_differs():
    values = to_dict(SMOKE.diffusion)
    with pytest.raises(ValueError, match="schedule is missing, temperature is unknown"):
        from_dict(
            type(SMOKE.diffusion), {**{k: v for k, v in values.items() if k != "schedule"}, "temperature": 1}
        )


def test_origin_is_the_origin():
    spectrogram = ORIGIN.spectrogram
    assert (spectrogram.sample_rate, spectrogram.clip_seconds) == (32_000, 4.0)
    assert (spectrogram.n_fft, spectrogram.hop_length, spectrogram.shape) == (480, 288, (1, 224, 416))
    assert (ORIGIN.train.batch_size, ORIGIN.train.grad_accumulation) == (16, 2)
    assert (ORIGIN.diffusion.schedule, ORIGIN.network.block) == ("linear", "double_conv")
    assert (ORIGIN.vae.network.kind, ORIGIN.vae.train.batch_size) == ("conv_v2", 32)
    assert ORIGIN.vae.train.learning_rate == 1e-4
    assert ORIGIN.vae.loss.reconstruction_weight == 10_000 * ORIGIN.vae.loss.kl_weight


def test_presets_use_the_representation_that_sounds():
    assert {preset.spectrogram.representation for preset in (BASE, SMOKE)} == {"bands"}
    assert CPU.spectrogram.representation == "mel"


def test_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match="ORIGIN, BASE, CPU, SMOKE"):
        choose("LARGE")
    with pytest.raises(ValueError, match="ORIGIN, BASE, CPU, SMOKE, TRIAL"):
        choose_experiments("LARGE")


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_preset_has_a_network_for_every_space(preset):
    assert in_space(preset, preset.space) == preset
    assert [in_space(preset, space).space for space in SPACES] == list(SPACES)
    with pytest.raises(
        ValueError, match="space='pixels' is unknown; choose one of spectrogram, latent, small"
    ):
        in_space(preset, "pixels")


@pytest.mark.parametrize("name", ["sampler", "upsampler.sampler"])
def test_a_sampler_that_the_diffusion_cannot_have_is_refused(name):
    few = changed(SMOKE, {"diffusion.num_train_timesteps": 8})
    with pytest.raises(
        ValueError, match=rf"{name}.num_inference_steps=9 must be at most num_train_timesteps=8"
    ):
        changed(few, {f"{name}.num_inference_steps": 9})
    ddpm = {f"{name}.name": "ddpm", f"{name}.eta": None, f"{name}.variance": "learned"}
    with pytest.raises(
        ValueError, match=rf"{name}.variance='learned' needs the diffusion's learned_variance"
    ):
        changed(SMOKE, ddpm)
    assert changed(SMOKE, {**ddpm, "diffusion.learned_variance": True})


def test_settings_are_changed_by_name_wherever_they_are():
    network = replace(SMOKE.network, embedding_dim=32)
    found = changed(
        SMOKE, {"vae.train.num_steps": 4, "vae.run": "00007", "network.dropout": 0.25, "network": network}
    )
    assert (found.vae.train.num_steps, found.vae.run) == (4, "00007")
    assert found.network == replace(network, dropout=0.25) and SMOKE.vae.run == "latest"
    assert changed(SMOKE, {}) == SMOKE
    with pytest.raises(ValueError, match=r"no setting 'vae.train.steps'; choose one of num_steps, "):
        changed(SMOKE, {"vae.train.steps": 4})
    with pytest.raises(ValueError, match=r"no setting 'unet.norm'; choose one of preset, "):
        changed(SMOKE, {"unet.norm": "batch"})


def test_environment_picks_preset_root_and_music(tmp_path):
    code = "from Conf import conf; print(conf.preset, conf.dataset_dir, conf.music_dir, sep='|')"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True, check=True,
        env={"CONF_PRESET": "SMOKE", "CONF_ROOT": str(tmp_path), "CONF_MUSIC": "/music", "PATH": ""},
    )  # fmt: skip
    assert result.stdout.strip() == f"SMOKE|{tmp_path / 'Data' / 'smoke'}|/music"


def test_spectrogram_and_network_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="does not fit a network that needs multiples of"):
        changed(ON_SPECTROGRAMS, {"network.patch_size": (64, 64)})


def test_sigmoid_output_is_refused_for_what_it_cannot_reach():
    settings = replace(ON_SPECTROGRAMS, network=as_journal(ON_SPECTROGRAMS.network))
    sigmoid = {"network.output": "sigmoid"}
    with pytest.raises(ValueError, match="output='sigmoid_experiment'"):
        changed(settings, sigmoid)
    sample = {**sigmoid, "diffusion.prediction_type": "sample"}
    with pytest.raises(ValueError, match="value_range='minus_one_to_one'"):
        changed(settings, sample)
    reached = changed(settings, {**sample, "spectrogram.value_range": "zero_to_one"})
    assert reached.network.output == "sigmoid"
    assert changed(settings, {"network.output": "sigmoid_experiment"})


def test_network_is_chosen_by_name_and_must_fit():
    unet_v0 = journal_network("unet_v0", SMOKE.network.num_classes)
    assert replace(ON_SPECTROGRAMS, network=unet_v0).network == unet_v0
    with pytest.raises(ValueError, match="choose one of conv_unet_450k, attention_unet"):
        journal_network("transformer", 0)
    small = replace(SMOKE.spectrogram, n_bands=80, size_multiple=16)
    with pytest.raises(ValueError, match="80x128 does not fit a network that needs multiples of 32x32"):
        replace(ON_SPECTROGRAMS, spectrogram=small, network=unet_v0)


def test_settings_younger_than_their_values_have_their_defaults_wherever_they_are():
    values = to_dict(SMOKE)
    younger = {"spectrogram": "channels", "dataset": "random_swap", "vae": "run"}
    for part, name in younger.items():
        del values[part][name]
    assert with_defaults(Settings, values) == to_dict(SMOKE)
    assert with_defaults(Settings, {"spectrogram": {}})["spectrogram"] == {"channels": 1}


def test_every_setting_is_described():
    text = SMOKE.describe()
    assert (
        "spectrogram.hop_length = 256" in text and "train.batch_size = 4" in text and "preset = SMOKE" in text
    )


def test_parts_of_the_settings_are_described_alone():
    lines = SMOKE.describe("phase", "space").splitlines()
    assert [line.split(" = ")[0] for line in lines[:2]] == ["preset", "root"]
    assert {line.split(".")[0].split(" ")[0] for line in lines[2:]} == {"phase", "space"}
    with pytest.raises(ValueError, match="there is no setting 'phases'; there are preset, "):
        SMOKE.describe("phases")


def test_provenance_names_versions():
    assert {"commit", "python", "torch", "device"} == provenance().keys()


def test_a_choice_of_configs_comes_back_as_the_class_it_was():
    values = to_dict(ORIGIN)
    assert values["network"]["type"] == "JournalUNetConfig"
    assert to_dict(BASE)["network"]["type"] == "UNetConfig"
    assert type(part_of(Settings, values, "network")) is JournalUNetConfig
    values["network"]["type"] = "VAE"
    with pytest.raises(
        ValueError, match="type='VAE' is unknown; choose one of UNetConfig, JournalUNetConfig"
    ):
        part_of(Settings, values, "network")
