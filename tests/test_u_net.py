"""The plain network: shapes, gradients, skips, labels, cost, and the sizes the presets promise."""

from dataclasses import replace

import pytest
import torch
from conftest import randomise

from Conf import BASE, NETWORKS, ORIGIN
from Libraries.Layers import fold, unfold
from Libraries.Networks.Catalogue import count_flops, count_parameters, make_network
from Libraries.Networks.JournalUNet import as_journal
from Libraries.U_Net import Stage, UNet

SMOKE_UNET = NETWORKS["SMOKE"]["spectrogram"]
CPU_UNET = NETWORKS["CPU"]["spectrogram"]

SMALL = replace(
    SMOKE_UNET,
    channels=(8, 16, 24),
    head_dim=8,
    norm_groups=4,
    embedding_dim=16,
    patch_size=(2, 2),
)


def randomised(config, in_channels=1):
    """A network whose zero-initialised layers are not zero, as after training."""
    torch.manual_seed(0)
    return randomise(make_network(config, in_channels), 0.05).eval()


# the plain network and, where it is not the same, one of the journal's
NETWORKS = {"residual": SMALL, "double_conv": replace(as_journal(SMALL), block="double_conv")}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("patch", [(1, 1), (2, 2), (4, 2)])
@pytest.mark.parametrize("channels", [1, 2])
def test_output_has_the_shape_of_the_input(network, patch, channels):
    config = replace(network, patch_size=patch, attention_levels=(1, 2))
    x = torch.randn(2, channels, 4 * patch[0] * 3, 4 * patch[1] * 5)
    assert make_network(config, channels)(x, torch.tensor([0, 999])).shape == x.shape


@pytest.mark.parametrize("blocks_per_level", [1, 2])
def test_every_layer_of_the_encoder_half_has_a_skip_to_the_decoder_half(blocks_per_level):
    network, outputs = randomised(replace(SMALL, blocks_per_level=blocks_per_level)), []

    def cut_off(module, inputs, output):
        outputs.append(output.detach().requires_grad_())  # no gradient through later layers
        return outputs[-1]

    for layer in (network.stem, *network.down):
        layer.register_forward_hook(cut_off)
    network.middle.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    network(torch.randn(1, 1, 16, 16), torch.tensor([3])).square().sum().backward()
    assert len(outputs) == 3 * (blocks_per_level + 1) == sum(isinstance(stage, Stage) for stage in network.up)
    assert all(output.grad.abs().sum() > 0 for output in outputs)


@pytest.mark.parametrize("patch", [(1, 1), (2, 4), (4, 4)])
def test_unfold_undoes_fold(patch):
    x = torch.randn(2, 3, 16, 32)
    assert torch.equal(unfold(fold(x, patch), patch), x)


def test_fold_keeps_a_patch_together():
    folded = fold(torch.arange(32.0).reshape(1, 1, 4, 8), (2, 4))
    assert folded[0, :, 0, 0].tolist() == [0, 1, 2, 3, 8, 9, 10, 11]


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_every_parameter_gets_a_gradient(network):
    network = randomised(replace(network, num_classes=3, attention_levels=(1,)))
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
        base, origin = make_network(BASE.network, 1), make_network(ORIGIN.network, 1)
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
        ({"head_dim": 24}, "must be multiples of head_dim=24"),
        ({"channels": (30, 64)}, "multiples of norm_groups=8"),
        ({"channels": ()}, "at least one level"),
        ({"attention_levels": (7,)}, r"attention_levels=7 must be within \[0, 3\)"),
        ({"patch_size": (0, 2)}, "patch_size=0 must be 1 or more"),
        ({"embedding_dim": 33}, "even"),
        ({"dropout": 1.0}, r"dropout=1.0 must be within \[0, 1\)"),
        ({"num_classes": -1}, "num_classes=-1 must be 0 or more"),
        ({"norm_groups": 0}, "norm_groups=0 must be 1 or more"),
    ],
)
def test_impossible_settings_say_what_is_allowed(change, says):
    with pytest.raises(ValueError, match=says):
        replace(CPU_UNET, **change)
