"""Guidance: closed forms for Gaussian classes, what changes nothing, what is refused, dropped labels."""

from dataclasses import replace

import pytest
import torch
from test_diffusion import make_schedule
from test_samplers import SHAPE, GaussianNetwork, gaussian_denoiser, make_config, run, wavy_denoiser
from torch import nn

from Conf import NETWORKS
from Libraries.Diffusion import PREDICTION_TYPES, Parameterisation
from Libraries.Sampling.Guidance import autoguidance, classifier_free_guidance, rescaled, with_labels
from Libraries.Sampling.Loop import inference_timesteps, sample
from Libraries.Sampling.Steps import SAMPLERS
from Libraries.Training.DiffusionLoss import DiffusionLoss
from Libraries.U_Net import UNet
from Libraries.Utils import SampleNoise

MEANS, NUM_CLASSES, STD = (-0.6, 0.8), 2, 0.4


class Classes:
    """The exact denoiser of classes N(MEANS[k], STD²); without a label, of N(0, STD²). Counts its calls."""

    def __init__(self, schedule):
        self.calls, self.network = [], GaussianNetwork(schedule, None, STD)
        self.denoiser = Parameterisation(schedule).denoiser(self.output)

    def output(self, x_t, t, cond):
        self.calls.append(len(x_t))
        self.network.mean = torch.tensor([*MEANS, 0.0], dtype=x_t.dtype)[cond].view(-1, 1, 1, 1)
        return self.network(x_t, t)

    def __call__(self, x_t, t, cond):
        return self.denoiser(x_t, t, cond)


def batch():
    x_t = SampleNoise(range(3), dtype=torch.float64)(SHAPE)
    return x_t, torch.tensor([10, 500, 990]), torch.tensor([0, 1, 1])


def test_scale_one_changes_nothing_and_costs_one_call():
    classes, (x_t, t, labels) = Classes(make_schedule()), batch()
    denoiser = classifier_free_guidance(classes, labels, NUM_CLASSES, 1.0, rescale=0.7)
    assert torch.equal(denoiser(x_t, t), Classes(make_schedule())(x_t, t, labels))
    assert classes.calls == [3]
    wavy = wavy_denoiser(make_schedule())
    assert autoguidance(wavy, None, 1.0) is wavy


def test_both_halves_are_one_batch():
    classes, (x_t, t, labels) = Classes(make_schedule()), batch()
    classifier_free_guidance(classes, labels, NUM_CLASSES, 3.0)(x_t, t)
    assert classes.calls == [6]


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_guided_x0_is_the_closed_form_whatever_the_network_predicts(prediction_type):
    """Both have one variance, so guidance only moves the mean: by scale times that of the class."""
    schedule, (x_t, t, labels) = make_schedule(prediction_type=prediction_type), batch()
    denoiser = classifier_free_guidance(Classes(schedule), labels, NUM_CLASSES, 2.5)
    moved = 2.5 * torch.tensor(MEANS, dtype=torch.float64)[labels].view(-1, 1, 1, 1)
    wanted = gaussian_denoiser(schedule, moved, STD)(x_t, t)
    assert torch.allclose(denoiser(x_t, t), wanted, atol=1e-9)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_follows_the_guidance(name):
    schedule, scale = make_schedule(), 1.5
    denoiser = classifier_free_guidance(Classes(schedule), torch.tensor([1]), NUM_CLASSES, scale)
    config = make_config(name, 100, "log_snr", clip_x0=None)
    x0 = sample(denoiser, schedule, config, range(100), SHAPE, batch_size=100, progress=False)
    assert abs(x0.mean().item() - scale * MEANS[1]) < 4 * STD / 2400**0.5 + 0.005


def test_scale_zero_ignores_the_labels():
    classes, (x_t, t, labels) = Classes(make_schedule()), batch()
    found = classifier_free_guidance(classes, labels, NUM_CLASSES, 0.0)(x_t, t)
    assert torch.allclose(found, with_labels(classes, torch.tensor([NUM_CLASSES]), NUM_CLASSES)(x_t, t))


def test_autoguidance_sharpens_what_the_guide_model_blurs():
    """A guide model that thinks the data wider: its difference to the better one points at their middle."""
    schedule = make_schedule()
    better, guide = (gaussian_denoiser(schedule, 0.3, std) for std in (0.4, 0.8))
    steps, spread = inference_timesteps(schedule, 100, "log_snr"), []
    for scale in (0.0, 1.0, 2.0):
        noise = SampleNoise(range(100), dtype=torch.float64)
        x0 = run("ddim", autoguidance(better, guide, scale), schedule, noise, SHAPE, steps)
        assert abs(x0.mean().item() - 0.3) < 0.05
        spread.append(x0.std().item())
    assert spread[0] == pytest.approx(0.8, rel=0.06) and spread[1] == pytest.approx(0.4, rel=0.06)
    assert spread[2] < 0.95 * spread[1]


def test_rescaling_brings_each_sample_to_the_deviation_of_the_unguided():
    like, scales = SampleNoise(range(3), dtype=torch.float64)(SHAPE), torch.tensor([0.5, 2.0, 7.0])
    output = like * scales.view(-1, 1, 1, 1) + 0.3
    for phi in (0.0, 0.7, 1.0):
        found = rescaled(output, like, phi)
        wanted = like.flatten(1).std(1) * (phi + (1 - phi) * scales)
        assert torch.allclose(found.flatten(1).std(1), wanted)
        assert torch.allclose(found[:1], rescaled(output[:1], like[:1], phi))


def test_rescaling_leaves_a_constant_sample():
    zero = torch.zeros(2, *SHAPE)
    assert torch.equal(rescaled(zero, torch.randn(2, *SHAPE), 0.7), zero)


def test_one_class_can_be_guided():
    x_t, t, _ = batch()
    guided = classifier_free_guidance(Classes(make_schedule()), torch.tensor([0]), 1, 3.0)
    assert guided(x_t, t).shape == x_t.shape


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"labels": torch.tensor([0, 3, 1])},
            "labels go from 0 to 3; the network knows 0 to 1, and 2 for no",
        ),
        ({"labels": torch.tensor([-1, 0, 1])}, "labels go from -1 to 1"),
        ({"labels": torch.tensor([0, 1])}, "2 labels for a batch of 3"),
        ({"labels": torch.tensor([0.0, 1.0, 1.0])}, r"must be int64 \(B,\)"),
        ({"labels": torch.tensor(1)}, r"must be int64 \(B,\)"),
        ({"num_classes": 0}, "network without classes; set num_classes"),
        ({"guidance_scale": -1.0}, "guidance_scale=-1.0 must be 0 or more"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ({"rescale": 1.5}, r"rescale=1.5 must be within \[0, 1\]"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(change, says):
    x_t, t, labels = batch()
    given = {"labels": labels, "num_classes": NUM_CLASSES, "guidance_scale": 3.0, "rescale": 0.0}
    with pytest.raises(ValueError, match=says):
        classifier_free_guidance(Classes(make_schedule()), **{**given, **change})(x_t, t)


def test_a_network_takes_the_labels_of_guidance():
    network = UNet(replace(NETWORKS["SMOKE"]["spectrogram"], num_classes=3), 1).eval()
    for parameter in network.parameters():  # at first its blocks add nothing, labels included
        nn.init.normal_(parameter, std=0.1)
    x_t, t, labels = torch.randn(2, 1, 32, 32), torch.tensor([5, 900]), torch.tensor([0, 2])
    with torch.no_grad():
        strong, weak = network(x_t, t, labels), network(x_t, t)
        found = classifier_free_guidance(network, labels, 3, 2.0)(x_t, t)
    assert not torch.allclose(strong, weak)
    assert torch.allclose(found, 2 * strong - weak, atol=1e-5)


class LabelKeeper(nn.Conv2d):
    """Keeps the labels it was given."""

    def forward(self, x, t, cond):
        self.cond = cond
        return super().forward(x)


def labels_seen(dropout, positions, num_classes=NUM_CLASSES):
    loss_fn, model = (
        DiffusionLoss(make_schedule(label_dropout=dropout), seed=3, num_classes=num_classes),
        LabelKeeper(1, 1, 1),
    )
    loss_fn(model, (torch.zeros(len(positions), 1, 2, 2), positions % 2), positions)
    return model.cond


def test_label_dropout_hides_its_share_and_leaves_the_others():
    positions = torch.arange(2000)
    seen = labels_seen(0.1, positions)
    hidden = seen == NUM_CLASSES
    assert abs(hidden.float().mean() - 0.1) < 4 * (0.09 / 2000) ** 0.5
    assert torch.equal(seen[~hidden], (positions % 2)[~hidden])
    assert torch.equal(labels_seen(0.0, positions), positions % 2)


def test_label_dropout_depends_on_the_position_alone():
    positions = torch.arange(500, 600)
    whole = labels_seen(0.3, positions)
    parts = torch.cat([labels_seen(0.3, part) for part in positions.split(7)])
    assert torch.equal(whole, parts)
    assert torch.equal(whole, labels_seen(0.3, positions.flip(0)).flip(0))


def test_label_dropout_means_nothing_to_a_network_without_labels():
    assert labels_seen(0.5, torch.arange(4), num_classes=0) is None


def test_validation_hides_no_label():
    loss_fn = DiffusionLoss(make_schedule(label_dropout=0.9), seed=3, num_classes=NUM_CLASSES)
    model, labels = LabelKeeper(1, 1, 1), torch.arange(20) % 2
    loss_fn.validate(model, [(torch.zeros(20, 1, 2, 2), labels)])
    assert torch.equal(model.cond, labels)
