"""The comparison on images: networks of one size, runs that resume, the judge, its table and its pictures."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ImagesConf import BASE_IMAGES, CPU_IMAGES, SMOKE_IMAGES
from Libraries.Networks.Catalogue import count_parameters, make_network
from Libraries.Studies.ImageClassifier import ClassifierLoss, ImageClassifier, accuracy, classify
from Libraries.Studies.ImageEvaluation import (
    Judge,
    compare_networks,
    load_inception,
    score_record,
    score_table,
    seconds_per_step,
)
from Libraries.Studies.ImagePlots import plot_by_class, plot_losses, tile_by_class, training_seconds
from Libraries.Studies.ImageRuns import (
    ImageModel,
    equal_networks,
    labels_in_turn,
    load_classifier,
    train_classifier,
    train_image_network,
)
from Libraries.Studies.Images import load_digits, spread_images, to_x0
from Libraries.Training.Checkpoint import CheckpointError
from Libraries.Training.RunLog import read_metrics

DIGITS = load_digits(SMOKE_IMAGES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of models, and in it the runs of the classifier and both networks."""
    models_dir = tmp_path_factory.mktemp("images") / "Models"
    runs = {
        name: train_image_network(SMOKE_IMAGES, DIGITS, name, models_dir) for name in SMOKE_IMAGES.networks
    }
    return models_dir, train_classifier(SMOKE_IMAGES, DIGITS, models_dir), runs


@pytest.mark.parametrize("images, channels", [(BASE_IMAGES, 3), (CPU_IMAGES, 1), (CPU_IMAGES, 3)])
def test_networks_are_compared_at_one_size(images, channels):
    with torch.device("meta"):
        sizes = [
            count_parameters(make_network(config, channels))
            for config in equal_networks(images, channels).values()
        ]
    assert len(sizes) == 2 and max(sizes) < 1.05 * min(sizes)


def test_our_network_is_the_settings_own():
    assert equal_networks(BASE_IMAGES, 3)["unet"] == BASE_IMAGES.unet


def test_runs_say_what_they_are(trained):
    _, classifier, runs = trained
    assert [classifier.name, *(run.name for run in runs.values())] == [
        "00002-classifier", "00000-unet", "00001-unet_v0",
    ]  # fmt: skip
    conf = json.loads((runs["unet_v0"] / "conf.json").read_text(encoding="utf-8"))
    assert (conf["dataset"]["folder"], conf["shape"]) == ("digits, not CIFAR-10", [1, 32, 32])
    assert (conf["settings"]["network"]["type"], conf["dataset"]["hash"]) == (
        "UNetV0Config", DIGITS.fingerprint(),
    )  # fmt: skip
    assert {"settings", "provenance", "classes"} <= conf.keys()
    assert conf["settings"].keys() == {"network", "diffusion", "train"}


def test_an_interrupted_run_goes_on_where_it_stopped(trained):
    models_dir, _, runs = trained
    run = runs["unet"]
    weights = {path.name: path.read_bytes() for path in run.glob("ema-*.pth")}
    rows = read_metrics(run / "metrics.csv")
    assert train_image_network(SMOKE_IMAGES, DIGITS, "unet", models_dir, run) == run
    assert {path.name: path.read_bytes() for path in run.glob("ema-*.pth")} == weights
    assert [row["step"] for row in read_metrics(run / "metrics.csv")] == [row["step"] for row in rows]


def test_a_run_of_other_images_or_another_network_is_refused(trained):
    models_dir, _, runs = trained
    other = load_digits(replace(SMOKE_IMAGES, split_seed=1))
    with pytest.raises(ValueError, match="00000-unet was trained on another dataset than the present digits"):
        train_image_network(SMOKE_IMAGES, other, "unet", models_dir, runs["unet"])
    with pytest.raises(ValueError, match=r"unet_v0 has other settings .*type is UNetV0Config there"):
        train_image_network(SMOKE_IMAGES, DIGITS, "unet", models_dir, runs["unet_v0"])
    with pytest.raises(CheckpointError, match="cannot be read"):
        train_image_network(SMOKE_IMAGES, DIGITS, "unet", models_dir, models_dir)


def test_a_sample_depends_on_its_seed_and_label_alone(trained):
    _, _, runs = trained
    model, labels = ImageModel.load(runs["unet"]), torch.tensor([3, 1, 4])
    model.precision = "no"  # after so short a training a label matters less than a digit of bf16
    whole = model.sample(labels, replace(SMOKE_IMAGES, sample_batch_size=3))
    parts = model.sample(labels, replace(SMOKE_IMAGES, sample_batch_size=2))
    alone = model.sample(labels[1:2], SMOKE_IMAGES, first_seed=1)
    assert whole.shape == (3, 1, 32, 32) and torch.allclose(whole, parts, atol=1e-5)
    assert torch.allclose(alone[0], whole[1], atol=1e-5)
    relabelled = model.sample(torch.tensor([7, 1, 4]), SMOKE_IMAGES)
    assert (relabelled - whole).abs().amax((1, 2, 3)).gt(1e-4).tolist() == [True, False, False]


def test_guidance_of_scale_1_is_none_and_more_is_not(trained):
    _, _, runs = trained
    model, labels, images = ImageModel.load(runs["unet"]), torch.tensor([3, 1]), SMOKE_IMAGES
    plain = model.sample(labels, images)
    for scale, same in ((1.0, True), (3.0, False)):
        guidance = replace(images.guidance, method="classifier_free", scale=scale)
        assert torch.equal(model.sample(labels, replace(images, guidance=guidance)), plain) == same


def test_labels_go_round():
    assert labels_in_turn(12, 5).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


def test_classifier_is_a_tenth_of_a_million_parameters_and_counts_right_answers():
    model = ImageClassifier(3, 10).eval()
    assert 0.09e6 < count_parameters(model) < 0.11e6
    x0 = torch.rand(300, 3, 32, 32) * 2 - 1  # more than a batch
    features, answers = classify(model, x0)
    assert features.shape == (300, 64) and torch.equal(answers, model(x0).argmax(1))
    wrong = answers.clone()
    wrong[:75] = (wrong[:75] + 1) % 10
    assert accuracy(model, x0, wrong) == 0.75


def test_classifier_loss_is_cross_entropy_and_share_of_right_answers():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = torch.eye(2)
    labels = torch.tensor([0, 0, 1])
    expected = -logits.log_softmax(1)[range(3), labels]
    loss_fn = ClassifierLoss()
    assert torch.allclose(loss_fn(model, (logits, labels), torch.arange(3)), expected)
    found = loss_fn.validate(model, [(logits[:2], labels[:2]), (logits[2:], labels[2:])])
    assert found == pytest.approx({"val_loss": expected.mean().item(), "val_accuracy": 1 / 3})


@pytest.mark.slow
def test_classifier_learns_the_digits(tmp_path):
    train = replace(SMOKE_IMAGES.classifier_train, num_steps=250, batch_size=32, validate_every=250)
    config = replace(SMOKE_IMAGES, classifier_train=train)
    model = load_classifier(train_classifier(config, DIGITS, tmp_path / "Models"))
    assert accuracy(model, to_x0(DIGITS.test.images), DIGITS.test.labels) > 0.9


def test_judge_gives_0_to_the_test_images_themselves_and_more_to_worse(trained):
    _, classifier, _ = trained
    judge = Judge(load_classifier(classifier), DIGITS, replace(SMOKE_IMAGES, num_samples=200))
    test = to_x0(spread_images(DIGITS.test, 200).images)
    noise = torch.randn(test.shape, generator=torch.Generator().manual_seed(0))
    distances = [judge.score("", x0, None).distance for x0 in (test, test + 0.3 * noise, test + 2 * noise)]
    assert distances[0] < 1e-6 < distances[1] < distances[2]


def test_scores_cover_networks_floor_and_ceiling_and_the_table_says_of_what(trained):
    _, classifier, runs = trained
    scores = compare_networks(runs, load_classifier(classifier), DIGITS, SMOKE_IMAGES)
    names = [score.name for score in scores]
    assert names == ["unet", "unet_v0", "real training images (the floor)", "noise (the ceiling)"]
    assert all(score.inception_distance is None for score in scores)
    assert scores[0].seconds_per_step == seconds_per_step(runs["unet"]) > 0
    lines = score_table(scores, DIGITS).splitlines()
    assert lines[0].startswith("| digits, not CIFAR-10 |") and len({line.count("|") for line in lines}) == 1
    assert all(line.endswith("| not measured: no weights |") for line in lines[2:])
    assert json.loads(json.dumps(score_record(scores, DIGITS)))["scores"][1]["name"] == "unet_v0"


class StandIn(nn.Module):
    """What is called like the published Inception: bytes of three channels in, features out."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert images.dtype == torch.uint8 and images.shape[1] == 3
        if not return_features:
            return torch.zeros(1)
        return self.scale * images.float().mean((2, 3))


@pytest.fixture
def inception(tmp_path):
    path = tmp_path / "inception.pt"
    torch.jit.script(StandIn()).save(str(path))
    return path


@pytest.mark.parametrize("channels", [1, 3])
def test_inception_is_shown_bytes_of_three_channels(inception, channels):
    x0 = torch.rand(70, channels, 32, 32) * 2 - 1  # more than a batch
    expected = 2 * ((x0 + 1) * 127.5).round().expand(-1, 3, -1, -1).mean((2, 3))
    assert torch.allclose(load_inception(inception)(x0), expected, atol=1e-3)


def test_inception_distance_is_measured_where_its_weights_are(trained, inception):
    _, classifier, _ = trained
    config = replace(SMOKE_IMAGES, num_samples=200, inception_file=str(inception))
    judge = Judge(load_classifier(classifier), DIGITS, config)
    test = to_x0(spread_images(DIGITS.test, 200).images)
    assert judge.score("", test, None).inception_distance == pytest.approx(0, abs=1e-2)
    darker = judge.score("", (test - 0.2).clamp(-1, 1), None)
    assert darker.inception_distance > 100
    assert f"| {darker.inception_distance:.2f} |" in score_table([darker], DIGITS)


def test_a_missing_or_other_file_is_no_inception(tmp_path):
    (tmp_path / "text.pt").write_text("weights")
    for path in (tmp_path / "absent.pt", tmp_path / "text.pt"):
        with pytest.raises(ValueError, match=rf"inception_file='{re.escape(str(path))}' cannot be loaded"):
            load_inception(path)


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_put_every_class_in_its_row(channels):
    x0 = torch.linspace(-1, 1, 6).reshape(6, 1, 1, 1).expand(6, channels, 4, 4)
    picture = tile_by_class(x0, torch.tensor([2, 0, 2, 1, 0, 2]), 3, columns=2).reshape(18, 12, -1)
    corners = picture[::6, ::6, 0]  # of every image: 4 pixels and a gap of 2
    assert np.array_equal(corners, [[51, 204], [153, 255], [0, 102]])  # class 1 has one image; white


def test_pictures_say_what_they_show(trained):
    _, _, runs = trained
    x0, labels = to_x0(DIGITS.test.images), DIGITS.test.labels
    figure = plot_by_class({"one": (x0, labels), "two": (-x0, labels)}, DIGITS.classes, DIGITS.name)
    assert figure.get_suptitle() == "digits, not CIFAR-10"
    assert [axis.get_title() for axis in figure.axes] == ["one", "two"]
    assert len({image.get_clim() for axis in figure.axes for image in axis.images}) == 1
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(DIGITS.classes)
    curves = {name: read_metrics(run / "metrics.csv") for name, run in runs.items()}
    figure = plot_losses(curves, SMOKE_IMAGES.train.batch_size, "title")
    assert [axis.get_xlabel() for axis in figure.axes] == ["optimiser step", "seconds of training (s)"]
    assert [line.get_label() for line in figure.axes[1].lines] == ["unet, validation", "unet_v0, validation"]


def test_seconds_of_training_are_images_over_speed():
    rows = [
        {"step": 5, "loss": 1.0, "samples_per_second": 10.0},
        {"step": 5, "val_loss": 1.0},
        {"step": 10, "loss": 1.0, "samples_per_second": 20.0},
    ]
    assert training_seconds(rows, batch_size=4) == {0: 0, 5: 2, 10: 3}
