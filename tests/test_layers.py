"""Layers: each equals its formula, and what should start as the identity does."""

import math

import pytest
import torch
from torch import nn

from Libraries.Layers import (
    BLOCKS,
    Addition,
    LabelEmbedding,
    ModulatedSkip,
    Modulation,
    SelfAttention2d,
    SqueezeExcitation,
    TimestepEmbedding,
    check_input,
    full_attention,
    linear_attention,
    make_norm,
    norm_with_time,
    sinusoids,
)


def randomise(module):
    """Move a module away from its first weights, so that nothing is zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def block(name, in_channels=8, out_channels=16, norm="group", time_injection="modulate"):
    torch.manual_seed(0)
    return BLOCKS[name](in_channels, out_channels, 12, 4, "silu", 0.0, norm, time_injection)


def test_linear_attention_equals_its_formula():
    q, k, v = torch.randn(3, 2, 3, 10, 4, dtype=torch.float64)
    out = linear_attention(q, k, v)
    weights = torch.einsum("bhnd,bhmd->bhnm", q.softmax(-1) / math.sqrt(4), k.softmax(-2))
    assert torch.allclose(out, weights @ v)


def test_full_attention_equals_its_formula():
    q, k, v = torch.randn(3, 2, 3, 10, 4, dtype=torch.float64)
    assert torch.allclose(full_attention(q, k, v), (q @ k.mT / math.sqrt(4)).softmax(-1) @ v)


@pytest.mark.parametrize("attention", ["full", "linear"])
def test_attention_starts_as_the_identity_and_moves_with_its_input(attention):
    torch.manual_seed(0)
    layer, x = SelfAttention2d(16, 8, 4, attention=attention), torch.randn(2, 16, 6, 10)
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


@pytest.mark.parametrize("axes", [(9,), (5, 7)])
def test_modulation_with_zero_scale_and_shift_is_the_identity(axes):
    x, e = torch.randn(2, 8, *axes), torch.randn(2, 12)
    layer = Modulation(12, 8)
    assert torch.equal(layer(x, e), x)
    scale, shift = randomise(layer).project(e).reshape(2, 2, 8, *[1] * len(axes)).unbind(1)
    assert torch.allclose(layer(x, e), x * (1 + scale) + shift, atol=1e-6)


def test_addition_adds_one_number_a_channel():
    x, e, layer = torch.randn(2, 8, 5, 7), torch.randn(2, 12), Addition(12, 8)
    assert torch.allclose(layer(x, e) - x, layer.project(e)[:, :, None, None].expand_as(x), atol=1e-6)


def test_addition_goes_before_the_norm_and_modulation_behind_it():
    x, e, norm = torch.randn(2, 8, 5, 7), torch.randn(2, 12), make_norm("group", 4, 8)
    add, modulate = Addition(12, 8), randomise(Modulation(12, 8))
    assert torch.equal(norm_with_time(norm, add, x, e), norm(add(x, e)))
    assert torch.equal(norm_with_time(norm, modulate, x, e), modulate(norm(x), e))
    assert torch.equal(norm_with_time(norm, None, x, None), norm(x))


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


def test_sinusoids_have_length_one_a_pair_and_tell_timesteps_apart():
    vectors = sinusoids(torch.arange(1000), 64)
    assert torch.allclose(
        vectors[:, :32].square() + vectors[:, 32:].square(), torch.ones(1000, 32), atol=1e-5
    )
    assert torch.cdist(vectors, vectors).add_(10 * torch.eye(1000)).min() > 0.5


def test_no_label_has_a_vector_of_its_own():
    layer, t = LabelEmbedding(3, 12), torch.zeros(2)
    assert torch.equal(layer(None, t), layer(torch.tensor([3, 3]), t))


def test_labels_are_as_far_apart_as_timesteps_from_the_start():
    torch.manual_seed(0)
    labels = LabelEmbedding(10, 64)(torch.arange(10), torch.zeros(10))
    times = TimestepEmbedding(64, "silu")(torch.linspace(0, 999, 10).long())
    assert torch.pdist(labels).min() > torch.pdist(times).median()


@pytest.mark.parametrize("shape", [(2, 1, 6, 8), (2, 2, 8, 8), (2, 1, 8), (2, 1, 8, 8, 8)])
def test_input_that_does_not_fit_is_refused_with_what_does(shape):
    with pytest.raises(
        ValueError, match=r"takes \(B, 1, F, T\) with F a multiple of 4 and T a multiple of 8"
    ):
        check_input(torch.zeros(shape), None, 1, {"F": 4, "T": 8}, 0)
