"""UNetV0 with the weights of the real one, put together from a-unet's parts, computes what that computes."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from Libraries.Networks.Catalogue import UNET_V0, count_parameters
from Libraries.Networks.UNetV0 import UNetV0, UNetV0Config


def reference_v0(config, in_channels):
    """UNetV0 as audio-diffusion-pytorch puts it together from the parts of a-unet."""
    pytest.importorskip("a_unet")
    return pytest.importorskip("benchmarks.peer_systems").a_unet_v0(config, in_channels)


def weight_names(config, in_channels):
    """Return where each weight of ours is in the reference: our module -> its module."""
    names = {"embed_time.first": "blocks.0.to_out", "embed_time.hidden": "blocks.1.blocks.0.0"}
    ours, theirs = "net", "blocks.2.net"
    for level, items in enumerate(config.items):
        names[f"{ours}.merge.project"] = f"{theirs}.skip.blocks.0.1"
        names[f"{ours}.down"] = f"{theirs}.block.blocks.0.block"
        place = 1
        for way in ("down", "up"):
            for item in range(items):
                new, place = item_names(config, level, f"{ours}.items_{way}.{item}", theirs, place)
                names |= new
            place += way == "down" and level < len(config.items) - 1  # the next level
        names[f"{ours}.up"] = f"{theirs}.block.blocks.{place}.block.1"
        inner = 1 + items * (2 + config.attentions[level] + config.linear_attentions[level])
        ours, theirs = f"{ours}.inner", f"{theirs}.block.blocks.{inner}"
    return names


def item_names(config, level, ours, theirs, place):
    """Return the names of one item's weights and the place after it."""
    names = {}
    for half in range(2):
        convolution = f"{theirs}.block.blocks.{place}.block.blocks.0.blocks.{half}"
        names[f"{ours}.convolutions.{3 * half}"] = f"{convolution}.0"
        names[f"{ours}.convolutions.{3 * half + 2}"] = f"{convolution}.2"
    names[f"{ours}.modulation.project"] = f"{theirs}.block.blocks.{place + 1}.blocks.0.block.blocks.0.1"
    place += 2
    for number in range(config.attentions[level] + config.linear_attentions[level]):
        attention = f"{theirs}.block.blocks.{place}.blocks.0.block"
        parts = {"norm_q": "norm", "norm_kv": "norm_context", "q": "to_q", "kv": "to_kv"}
        parts["project"] = "attention.blocks.0"
        names |= {f"{ours}.attentions.{number}.{a}": f"{attention}.{b}" for a, b in parts.items()}
        place += 1
    return names, place


def assert_same_as_reference(config, shape):
    """Copy the reference's weights into ours by name; both must then say the same."""
    torch.manual_seed(0)
    ours, theirs = UNetV0(config, shape[1]).eval(), reference_v0(config, shape[1]).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith("skip.blocks.0.1.bias"):
            nn.init.ones_(parameter)  # fresh scales are so small that the deep levels would not be seen
    weights = {"embed_time.frequencies": theirs.state_dict()["blocks.0.weights"]}
    for name, other in weight_names(config, shape[1]).items():
        for kind in ("weight", "bias"):
            if f"{other}.{kind}" in theirs.state_dict():
                weights[f"{name}.{kind}"] = theirs.state_dict()[f"{other}.{kind}"]
    ours.load_state_dict(weights)  # strict: every weight of ours is one of theirs
    assert count_parameters(ours) == count_parameters(theirs)
    x, t = torch.randn(shape), torch.linspace(0, 999, shape[0])
    with torch.no_grad():
        expected = theirs(x, time=t / config.time_scale)
        assert (ours(x, t) - expected).abs().max() < 1e-5
    assert (expected - x).std() > 0.1  # more than the outermost skip was compared


SMALL_V0 = UNetV0Config(
    dim=2, channels=(8, 16, 16, 24), factors=(1, 2, 2, 2), items=(1, 2, 1, 2), attentions=(0, 0, 0, 1),
    linear_attentions=(0, 1, 0, 1), head_dim=8, num_heads=2, norm_groups=8, embedding_dim=32,
    time_scale=1000.0, num_classes=0,
)  # fmt: skip


def test_unet_v0_equals_a_unet_on_spectrograms():
    assert_same_as_reference(SMALL_V0, (2, 1, 224, 416))


def test_unet_v0_equals_a_unet_on_waveforms():
    assert_same_as_reference(replace(SMALL_V0, dim=1, factors=(1, 4, 4, 2)), (2, 2, 2**13))


@pytest.mark.slow
def test_unet_v0_equals_a_unet_at_its_true_size():
    assert_same_as_reference(UNET_V0, (1, 1, 224, 416))
    waveform = replace(
        UNET_V0, dim=1, channels=(8, 32, 64, 128, 256, 512, 512, 1024, 1024),
        factors=(1, 4, 4, 4, 2, 2, 2, 2, 2),
        items=(1, 2, 2, 2, 2, 2, 2, 4, 4), attentions=(0,) * 5 + (1,) * 4, linear_attentions=(0,) * 9,
    )  # fmt: skip
    assert_same_as_reference(waveform, (1, 2, 2**16))


def test_waveforms_and_spectrograms_are_refused_by_the_names_of_their_axes():
    with pytest.raises(ValueError, match=r"takes \(B, 2, L\) with L a multiple of 8; got \(1, 2, 30\)"):
        UNetV0(replace(SMALL_V0, dim=1), 2)(torch.zeros(1, 2, 30), torch.zeros(1))
    with pytest.raises(
        ValueError, match=r"takes \(B, 2, F, T\) with F a multiple of 8 and T a multiple of 8"
    ):
        UNetV0(SMALL_V0, 2)(torch.zeros(1, 2, 32), torch.zeros(1))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dim": 3}, "choose one of 1, 2"),
        ({"items": (1, 2)}, "one value for each of channels"),
        ({"channels": (4, 8, 8, 8)}, "multiples of norm_groups=8"),
    ],
)
def test_impossible_settings_of_unet_v0_say_so(change, says):
    with pytest.raises(ValueError, match=says):
        replace(SMALL_V0, **change)
