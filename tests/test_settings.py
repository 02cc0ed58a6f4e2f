"""Conf's presets, and settings on their way to a run's conf.json and back."""

import dataclasses
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import pytest

from Conf import BASE, CPU, ORIGIN, PRESETS, SMOKE, choose
from Libraries.Networks.Catalogue import NetworkConfig
from Libraries.Networks.JournalUNet import JournalUNetConfig, as_journal
from Libraries.Runs.Settings import from_dict, provenance, to_dict

SCRIPTS = Path(__file__).parent.parent / "MainScripts"


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_settings_come_back_from_json(preset):
    values = json.loads(json.dumps(to_dict(preset)))
    kinds = get_type_hints(type(preset))
    for field in dataclasses.fields(preset):
        part = getattr(preset, field.name)
        if dataclasses.is_dataclass(part):
            assert from_dict(kinds[field.name], values[field.name]) == part


def test_a_choice_of_configs_comes_back_as_the_class_it_was():
    values = to_dict(ORIGIN)["unet"]
    assert values["type"] == "JournalUNetConfig" and to_dict(BASE)["unet"]["type"] == "UNetConfig"
    assert type(from_dict(NetworkConfig, values)) is JournalUNetConfig
    with pytest.raises(
        ValueError, match="type='VAE' is unknown; choose one of UNetConfig, JournalUNetConfig"
    ):
        from_dict(NetworkConfig, {**values, "type": "VAE"})


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
    assert (ORIGIN.diffusion.schedule, ORIGIN.unet.block) == ("linear", "double_conv")
    assert (ORIGIN.vae.kind, ORIGIN.vae_train.batch_size) == ("conv_v2", 32)
    assert ORIGIN.vae_train.learning_rate == 1e-4
    assert ORIGIN.vae_loss.reconstruction_weight == 10_000 * ORIGIN.vae_loss.kl_weight


def test_presets_use_the_representation_that_sounds():
    assert {preset.spectrogram.representation for preset in (BASE, CPU, SMOKE)} == {"bands"}


def test_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match="ORIGIN, BASE, CPU, TRIAL, SMOKE"):
        choose("LARGE")


def test_environment_picks_preset_root_and_music(tmp_path):
    code = "from Conf import conf; print(conf.preset, conf.dataset_dir, conf.music_dir, sep='|')"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True, check=True,
        env={"CONF_PRESET": "SMOKE", "CONF_ROOT": str(tmp_path), "CONF_MUSIC": "/music", "PATH": ""},
    )  # fmt: skip
    assert result.stdout.strip() == f"SMOKE|{tmp_path / 'Data' / 'smoke'}|/music"


def test_spectrogram_and_network_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="does not fit a network that needs multiples of"):
        replace(SMOKE, unet=replace(SMOKE.unet, patch_size=(64, 64)))


def test_sigmoid_output_is_refused_for_what_it_cannot_reach():
    sigmoid = replace(as_journal(SMOKE.unet), output="sigmoid")
    with pytest.raises(ValueError, match="output='sigmoid_experiment'"):
        replace(SMOKE, unet=sigmoid)
    sample = replace(SMOKE.diffusion, prediction_type="sample")
    with pytest.raises(ValueError, match="value_range='minus_one_to_one'"):
        replace(SMOKE, unet=sigmoid, diffusion=sample)
    spectrogram = replace(SMOKE.spectrogram, value_range="zero_to_one")
    assert replace(SMOKE, unet=sigmoid, diffusion=sample, spectrogram=spectrogram).unet.output == "sigmoid"
    assert replace(SMOKE, unet=replace(sigmoid, output="sigmoid_experiment"))


def test_network_is_chosen_by_name_and_must_fit():
    assert replace(SMOKE, vae_run=None, network="unet_v0").network == "unet_v0"
    with pytest.raises(ValueError, match="choose one of unet, conv_unet_450k"):
        replace(SMOKE, vae_run=None, network="transformer")
    small = replace(SMOKE.spectrogram, n_bands=80, size_multiple=16)
    with pytest.raises(ValueError, match="80x128 does not fit a network that needs multiples of 32x32"):
        replace(SMOKE, vae_run=None, spectrogram=small, network="unet_v0")


def test_every_setting_is_described():
    text = SMOKE.describe()
    assert (
        "spectrogram.hop_length = 256" in text and "train.batch_size = 4" in text and "preset = SMOKE" in text
    )


def test_parts_of_the_settings_are_described_alone():
    lines = SMOKE.describe("phase_net", "vae_run").splitlines()
    assert [line.split(" = ")[0] for line in lines[:2]] == ["preset", "root"]
    assert {line.split(".")[0].split(" ")[0] for line in lines[2:]} == {"phase_net", "vae_run"}
    with pytest.raises(ValueError, match="there is no setting 'phase_nets'; there are preset, "):
        SMOKE.describe("phase_nets")


def test_provenance_names_versions():
    assert {"commit", "python", "torch", "device"} == provenance().keys()
