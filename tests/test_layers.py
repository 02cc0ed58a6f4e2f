"""Layers: each equals its formula, and what should start as the identity does."""

import math

import pytest
import torch
from conftest import randomise
from torch.nn import functional as F

from Libraries.Layers import (
    LabelEmbedding,
    Modulation,
    ResBlock,
    SelfAttention2d,
    TimestepEmbedding,
    check_input,
    full_attention,
    require_multiples,
    sinusoids,
)


def test_full_attention_equals_its_formula():
    q, k, v = torch.randn(3, 2, 3, 10, 4, dtype=torch.float64)
    assert torch.allclose(full_attention(q, k, v), (q @ k.mT / math.sqrt(4)).softmax(-1) @ v)


def test_attention_starts_as_the_identity_and_moves_with_its_input():
    torch.manual_seed(0)
    layer, x = SelfAttention2d(16, 8, 4), torch.randn(2, 16, 6, 10)
    assert torch.equal(layer(x), x)
    y = randomise(layer)(x)
    assert torch.allclose(layer(x.roll((2, 3), dims=(2, 3))), y.roll((2, 3), dims=(2, 3)), atol=1e-5)
    moved = x.clone()
    moved[..., 0, 0] += 1
    assert (layer(moved) - y)[..., -1, -1].abs().max() > 1e-4  # every position sees every other


def test_residual_block_equals_its_formula_with_and_without_an_embedding():
    x, e = torch.randn(2, 8, 5, 7), torch.randn(2, 12)
    for dim, embedding in ((12, e), (0, None)):
        block = randomise(ResBlock(8, 16, 4, dim))
        h = block.norm2(block.conv1(F.silu(block.norm1(x))))
        h = block.time(h, e) if dim else h
        assert torch.equal(block(x, embedding), block.skip(x) + block.conv2(F.silu(h)))


def test_residual_block_starts_as_the_identity():
    x = torch.randn(2, 8, 6, 10)
    assert torch.equal(ResBlock(8, 8, 4, 12)(x, torch.randn(2, 12)), x)


@pytest.mark.parametrize("axes", [(9,), (5, 7)])
def test_modulation_with_zero_scale_and_shift_is_the_identity(axes):
    x, e = torch.randn(2, 8, *axes), torch.randn(2, 12)
    layer = Modulation(12, 8)
    assert torch.equal(layer(x, e), x)
    scale, shift = randomise(layer).project(e).reshape(2, 2, 8, *[1] * len(axes)).unbind(1)
    assert torch.allclose(layer(x, e), x * (1 + scale) + shift, atol=1e-6)


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
        check_input(torch.zeros(shape), None, 1, (4, 8), 0)


def test_widths_that_a_divisor_does_not_divide_are_refused():
    require_multiples((8, 16), norm_groups=8, head_dim=4)
    with pytest.raises(ValueError, match=r"channels=\(8, 12\) must be multiples of norm_groups=8"):
        require_multiples((8, 12), head_dim=4, norm_groups=8)
    with pytest.raises(ValueError, match="head_dim=0 must be 1 or more"):
        require_multiples((8,), head_dim=0)
