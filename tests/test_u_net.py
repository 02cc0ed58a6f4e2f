"""The network: shapes, gradients, labels, cost, and the sizes the presets promise."""

from dataclasses import replace

import pytest
import torch

from Conf import BASE, NETWORKS, ORIGIN
from Libraries.Layers import BLOCKS, fold, unfold
from Libraries.U_Net import OUTPUTS, SKIPS, UNet, count_flops, count_parameters

SMALL = replace(
    NETWORKS["SMOKE"]["spectrogram"],
    channels=(8, 16, 24),
    head_dim=8,
    norm_groups=4,
    embedding_dim=16,
    patch_size=(2, 2),
)


def randomised(config, in_channels=1):
    """A network whose zero-initialised layers are not zero, as after training."""
    torch.manual_seed(0)
    network = UNet(config, in_channels)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


# every other value of a setting, each reached from SMALL by changing that one
VARIANTS = [
    *({"block": block} for block in BLOCKS),
    *({"skips": skips} for skips in SKIPS),
    *({"output": output} for output in OUTPUTS),
    {"norm": "batch"},
    {"norm_groups": 1},
    {"activation": "gelu"},
    {"time_injection": "add"},
    {"first_skip": True},
    {"modulated_skips": True},
    {"attention_levels": ()},
    {"attention_levels": (0, 1, 2)},
    {"linear_attention_levels": (0, 2)},
    {"blocks_per_level": 2},
]


@pytest.mark.parametrize("change", VARIANTS, ids=str)
def test_one_setting_makes_another_network_that_trains_all_of_its_parameters(change):
    network = randomised(replace(SMALL, **change)).train()
    x = torch.randn(3, 1, 16, 24)
    y = network(x, torch.tensor([0, 5, 9]))
    assert y.shape == x.shape
    y.square().mean().backward()
    missing = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


@pytest.mark.parametrize(("skips", "count"), [("none", 0), ("level", 3), ("block", 6), ("layer", 9)])
@pytest.mark.parametrize("first_skip", [False, True])
def test_skips_are_as_many_as_the_setting_says(skips, count, first_skip):
    """With two blocks a level, "block" and the first are Ditria's two a level and one from the start."""
    network = UNet(replace(SMALL, blocks_per_level=2, skips=skips, first_skip=first_skip), 1)
    stages = [*network.up, network.last]
    assert sum(getattr(stage, "takes_skip", False) for stage in stages) == count + first_skip


@pytest.mark.parametrize(
    ("change", "connected"),
    [
        ({"skips": "none"}, False),
        ({"skips": "level"}, True),
        ({"skips": "block"}, True),
        ({"skips": "layer"}, True),
        ({"skips": "level", "modulated_skips": True}, True),
        ({"skips": "none", "first_skip": True}, True),
        ({"skips": "none", "first_skip": True, "modulated_skips": True}, True),
    ],
    ids=str,
)
def test_skips_carry_what_the_middle_does_not_let_through(change, connected):
    network = randomised(replace(SMALL, attention_levels=(), **change))
    network.middle.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    with torch.no_grad():
        a, b = (network(torch.randn(1, 1, 16, 16), torch.tensor([3])) for _ in range(2))
    assert torch.equal(a, b) != connected


def test_sigmoid_output_is_the_sigmoid_of_the_linear_one():
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([3, 900])
    linear, sigmoid = (randomised(replace(SMALL, output=output)) for output in ("linear", "sigmoid"))
    with torch.no_grad():
        assert torch.equal(linear(x, t).sigmoid(), sigmoid(x, t))


@pytest.mark.parametrize("block", ["residual", "double_conv"])
@pytest.mark.parametrize("patch", [(1, 1), (2, 2), (4, 2)])
@pytest.mark.parametrize("channels", [1, 2])
def test_output_has_the_shape_of_the_input(block, patch, channels):
    config = replace(SMALL, block=block, patch_size=patch, attention_levels=(1, 2))
    x = torch.randn(2, channels, 4 * patch[0] * 3, 4 * patch[1] * 5)
    assert UNet(config, channels)(x, torch.tensor([0, 999])).shape == x.shape


@pytest.mark.parametrize("patch", [(1, 1), (2, 4), (4, 4)])
def test_unfold_undoes_fold(patch):
    x = torch.randn(2, 3, 16, 32)
    assert torch.equal(unfold(fold(x, patch), patch), x)


def test_fold_keeps_a_patch_together():
    folded = fold(torch.arange(32.0).reshape(1, 1, 4, 8), (2, 4))
    assert folded[0, :, 0, 0].tolist() == [0, 1, 2, 3, 8, 9, 10, 11]


@pytest.mark.parametrize("block", ["residual", "double_conv"])
def test_every_parameter_gets_a_gradient(block):
    network = randomised(replace(SMALL, block=block, num_classes=3, attention_levels=(1,)))
    network(
        torch.randn(3, 1, 16, 16), torch.tensor([0, 5, 9]), torch.tensor([0, 1, 2])
    ).square().mean().backward()
    missing = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


def test_output_is_not_bounded():
    network, x = randomised(SMALL), torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        before = network(x, torch.tensor([3])).abs().max()
        network.out.weight.mul_(1000)
        assert network(x, torch.tensor([3])).abs().max() > 100 * before


def test_a_clip_does_not_depend_on_its_batch():
    network, x, t = randomised(SMALL), torch.randn(4, 1, 16, 16), torch.tensor([1, 50, 500, 999])
    with torch.no_grad():
        assert torch.allclose(network(x, t)[2:3], network(x[2:3], t[2:3]), atol=1e-5)


def test_time_label_and_height_matter():
    network, x, t = randomised(replace(SMALL, num_classes=2)), torch.randn(1, 1, 16, 16), torch.tensor([10])
    with torch.no_grad():
        base = network(x, t, torch.tensor([0]))
        assert not torch.allclose(base, network(x, t + 500, torch.tensor([0])), atol=1e-3)
        assert not torch.allclose(base, network(x, t, torch.tensor([1])), atol=1e-3)
        # with frequency features a shift upwards is not just shifted along
        shifted = network(x.roll(8, dims=2), t, torch.tensor([0])).roll(-8, dims=2)
        assert not torch.allclose(base, shifted, atol=1e-3)


def test_no_label_is_the_last_label():
    network, x, t = randomised(replace(SMALL, num_classes=2)), torch.randn(1, 1, 16, 16), torch.tensor([10])
    with torch.no_grad():
        assert torch.equal(network(x, t), network(x, t, torch.tensor([2])))


def test_base_stays_under_20_gflop_and_origin_has_about_17_million_parameters():
    assert BASE.spectrogram.shape == ORIGIN.spectrogram.shape == (1, 224, 416)
    inputs = torch.zeros(1, *BASE.spectrogram.shape), torch.zeros(1)
    with torch.device("meta"):
        base, origin = UNet(BASE.network, 1), UNet(ORIGIN.network, 1)
    assert count_flops(base, *(tensor.to("meta") for tensor in inputs)) < 20e9
    assert 16.5e6 < count_parameters(origin) < 17.5e6
    assert ORIGIN.network.patch_size == (1, 1) and ORIGIN.network.block == "double_conv"


@pytest.mark.parametrize("shape", [(1, 1, 15, 16), (1, 2, 16, 16), (1, 16, 16)])
def test_wrong_shapes_are_refused_with_what_was_expected(shape):
    with pytest.raises(ValueError, match=r"F a multiple of 8"):
        UNet(SMALL, 1)(torch.zeros(shape), torch.zeros(1))


def test_labels_for_an_unconditional_network_are_refused():
    with pytest.raises(ValueError, match="num_classes"):
        UNet(SMALL, 1)(torch.zeros(1, 1, 16, 16), torch.zeros(1), torch.tensor([0]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"block": "transformer"}, "residual, double_conv, double_conv_se, convnext"),
        ({"norm": "layer"}, "group, batch"),
        ({"time_injection": "multiply"}, "add, modulate"),
        ({"skips": "some"}, "none, level, block, layer"),
        ({"output": "tanh"}, "linear, sigmoid, sigmoid_experiment"),
        ({"modulated_skips": True, "skips": "none"}, "needs skips to modulate"),
        ({"linear_attention_levels": (2,)}, "level 2 is in attention_levels and linear_attention_levels"),
        ({"linear_attention_levels": (3,)}, "linear_attention_levels=.* must be below 3"),
        ({"head_dim": 24}, "must be multiples of head_dim=24"),
        ({"activation": "relu"}, "silu, gelu"),
        ({"channels": (30, 64)}, "multiples of norm_groups=8"),
        ({"channels": ()}, "at least one level"),
        ({"attention_levels": (7,)}, "must be below 3"),
        ({"patch_size": (0, 2)}, "1 or more"),
        ({"embedding_dim": 33}, "even"),
    ],
)
def test_impossible_settings_say_what_is_allowed(change, says):
    with pytest.raises(ValueError, match=says):
        replace(NETWORKS["CPU"]["spectrogram"], **change)
