"""The journal's U-Net: equal to the plain one where it should be, its options, and the blocks they choose."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import randomise
from torch import nn

from Conf import BASE, NETWORKS
from Libraries.Layers import Modulation
from Libraries.Networks.Blocks import (
    BLOCKS,
    Addition,
    JournalAttention2d,
    ModulatedSkip,
    SqueezeExcitation,
    linear_attention,
    make_norm,
    norm_with_time,
)
from Libraries.Networks.JournalUNet import OUTPUTS, SKIPS, JournalUNet, as_journal
from Libraries.U_Net import UNet

SMOKE_UNET = NETWORKS["SMOKE"]["spectrogram"]
CPU_UNET = NETWORKS["CPU"]["spectrogram"]

PLAIN = replace(
    SMOKE_UNET,
    channels=(8, 16, 24),
    head_dim=8,
    norm_groups=4,
    embedding_dim=16,
    patch_size=(2, 2),
)
SMALL = as_journal(PLAIN)


def randomised(config, in_channels=1):
    """A network whose zero-initialised layers are not zero, as after training."""
    torch.manual_seed(0)
    return randomise(JournalUNet(config, in_channels), 0.05).eval()


@pytest.mark.parametrize("config", [PLAIN, SMOKE_UNET, CPU_UNET, BASE.network])
@pytest.mark.parametrize("num_classes", [0, 3])
def test_the_plain_network_and_its_equal_of_the_journal_are_the_same_bit_for_bit(config, num_classes):
    plain = replace(config, num_classes=num_classes)
    networks = []
    for make, settings in ((UNet, plain), (JournalUNet, as_journal(plain))):
        torch.manual_seed(0)
        networks.append(randomise(make(settings, 2, 3)))  # its draws go on where those of the weights end
    ours, theirs = (network.state_dict() for network in networks)
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    (rows, frames), outputs = plain.multiple, []
    x = torch.randn(2, 2, 2 * rows, frames)
    cond = torch.tensor([0, num_classes]) if num_classes else None
    for network in networks:
        torch.manual_seed(2)  # dropout
        outputs.append(network(x, torch.tensor([3, 700]), cond))
    assert outputs[0].std() > 0 and torch.equal(*outputs)


def test_a_variant_is_itself_in_the_journals_words():
    variant = replace(SMALL, norm="batch", skips="level")
    assert as_journal(variant) == variant


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
    """With two blocks per level, "block" and first_skip are Ditria's two per level and one from the stem."""
    network = JournalUNet(replace(SMALL, blocks_per_level=2, skips=skips, first_skip=first_skip), 1)
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
        ({"linear_attention_levels": (3,)}, r"linear_attention_levels=3 must be within \[0, 3\)"),
        ({"activation": "relu"}, "silu, gelu"),
        ({"channels": (30, 64)}, "multiples of norm_groups=8"),
    ],
)
def test_impossible_options_say_what_is_allowed(change, says):
    with pytest.raises(ValueError, match=says):
        replace(as_journal(CPU_UNET), **change)


def block(name, in_channels=8, out_channels=16, **options):
    torch.manual_seed(0)
    config = replace(SMALL, embedding_dim=12, norm_groups=4, attention_levels=(), **options)
    return BLOCKS[name](in_channels, out_channels, config)


def test_linear_attention_equals_its_formula():
    q, k, v = torch.randn(3, 2, 3, 10, 4, dtype=torch.float64)
    out = linear_attention(q, k, v)
    weights = torch.einsum("bhnd,bhmd->bhnm", q.softmax(-1) / math.sqrt(4), k.softmax(-2))
    assert torch.allclose(out, weights @ v)


@pytest.mark.parametrize("attention", ["full", "linear"])
def test_attention_starts_as_the_identity_and_moves_with_its_input(attention):
    torch.manual_seed(0)
    layer, x = JournalAttention2d(16, attention, SMALL), torch.randn(2, 16, 6, 10)
    assert torch.equal(layer(x), x)
    y = randomise(layer)(x)
    assert torch.allclose(layer(x.roll((2, 3), dims=(2, 3))), y.roll((2, 3), dims=(2, 3)), atol=1e-5)
    moved = x.clone()
    moved[..., 0, 0] += 1
    assert (layer(moved) - y)[..., -1, -1].abs().max() > 1e-4  # every position sees every other


def test_squeeze_and_excitation_gates_each_channel_by_one_number():
    layer, x = randomise(SqueezeExcitation(32, "silu")), torch.rand(2, 32, 5, 7) + 0.1
    gates = layer(x) / x
    assert torch.allclose(gates, gates[..., :1, :1].expand_as(gates), atol=1e-5)
    assert gates.min() > 0 and gates.max() < 1 and gates.std(dim=1).min() > 0.01
    W1, b1, W2, b2 = layer.parameters()
    hidden = nn.functional.silu(x.mean((2, 3)) @ W1.T + b1)
    expected = torch.sigmoid(hidden @ W2.T + b2)
    assert torch.allclose(gates[..., 0, 0], expected, atol=1e-5)


def test_addition_adds_one_number_per_channel():
    x, e, layer = torch.randn(2, 8, 5, 7), torch.randn(2, 12), Addition(12, 8)
    assert torch.allclose(layer(x, e) - x, layer.project(e)[:, :, None, None].expand_as(x), atol=1e-6)


def test_addition_goes_before_the_norm_and_modulation_behind_it():
    x, e, norm = torch.randn(2, 8, 5, 7), torch.randn(2, 12), make_norm("group", 4, 8)
    add, modulate = Addition(12, 8), randomise(Modulation(12, 8))
    assert torch.equal(norm_with_time(norm, add, x, e), norm(add(x, e)))
    assert torch.equal(norm_with_time(norm, modulate, x, e), modulate(norm(x), e))


def test_modulated_skip_scales_only_the_deeper_branch():
    h, skip, e = torch.randn(2, 8, 5, 7), torch.randn(2, 8, 5, 7), torch.randn(2, 12)
    layer = ModulatedSkip(12, 8)
    assert torch.allclose(layer(h, skip, e), skip + layer.project(e)[:, :, None, None] * h, atol=1e-6)
    nn.init.zeros_(layer.project.weight), nn.init.zeros_(layer.project.bias)
    assert torch.equal(layer(h, skip, e), skip)


@pytest.mark.parametrize("time_injection", ["add", "modulate"])
@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_trains_all_of_its_parameters(name, norm, time_injection):
    layer = randomise(block(name, norm=norm, time_injection=time_injection))
    y = layer(torch.randn(3, 8, 6, 10), torch.randn(3, 12))
    assert y.shape == (3, 16, 6, 10)
    y.square().mean().backward()
    assert [n for n, p in layer.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", ["residual", "convnext"])
def test_residual_blocks_start_as_the_identity(name):
    x = torch.randn(2, 8, 6, 10)
    assert torch.equal(block(name, out_channels=8)(x, torch.randn(2, 12)), x)


def test_convnext_mixes_channels_at_one_position_and_positions_over_seven():
    layer = randomise(block("convnext", out_channels=8)).eval()
    x, e = torch.zeros(1, 8, 15, 15, requires_grad=True), torch.zeros(1, 12)
    layer.norm = nn.Identity()  # which would see all positions
    layer(x, e)[0, 0, 7, 7].backward()
    seen = x.grad[0].abs().sum(0).nonzero()
    assert (seen.min(0).values.tolist(), seen.max(0).values.tolist()) == ([4, 4], [10, 10])
    assert (x.grad[0].abs().sum((1, 2)) > 0).all()


def test_group_norm_of_one_group_sees_all_channels():
    x = torch.randn(2, 8, 5, 7)
    y = make_norm("group", 1, 8)(x)
    assert torch.allclose(y.mean((1, 2, 3)), torch.zeros(2), atol=1e-6)
    assert torch.allclose(y.var((1, 2, 3), unbiased=False), torch.ones(2), atol=1e-3)


def test_batch_norm_knows_the_batch_in_training_and_its_running_statistics_afterwards():
    norm, x = make_norm("batch", 4, 8), 3 + 2 * torch.randn(16, 8, 5, 7)
    assert torch.allclose(norm(x).mean((0, 2, 3)), torch.zeros(8), atol=1e-5)
    for _ in range(100):
        norm(x)
    norm.eval()
    assert torch.allclose(norm(x)[:1], norm(x[:1]), atol=1e-6)
    assert torch.allclose(norm.running_mean, x.mean((0, 2, 3)), atol=1e-3)
