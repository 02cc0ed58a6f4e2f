"""Networks by name: their sizes, their one call shape, and the two that reproduce somebody else's."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from Conf import NETWORKS, SMOKE, in_space
from Libraries.Networks.AttentionUNet import AttentionUNet, AttentionUNetConfig
from Libraries.Networks.Catalogue import (
    CLASSES,
    JOURNAL,
    count_parameters,
    journal_network,
    make_network,
    parameters_of,
    scale_widths,
    width_for,
)
from Libraries.Networks.JournalUNet import JournalUNetConfig, as_journal
from Libraries.Runs.DiffusionTraining import diffusion_recipe
from Libraries.Training.Checkpoint import load_checkpoint, load_weights, save_checkpoint
from Libraries.Training.DiffusionNetwork import make_diffusion_network
from Libraries.Training.Graphs import export_graph

SMOKE_UNET = NETWORKS["SMOKE"]["spectrogram"]
CPU_UNET = NETWORKS["CPU"]["spectrogram"]

SIZES = {
    "conv_unet_450k": (0.45e6, 0.01),
    "conv_unet_17m": (17e6, 0.01),
    "se_unet": (17e6, 0.01),
    "attention_unet": (23_331_457, 0),
    "modulated_unet": (72e6, 0.01),
    "residual_unet": (50e6, 0.01),
    "unet_v0": (72.6e6, 0.01),
}


def narrow(name, num_classes=0):
    """The named network of the same shape with few channels, for tests in milliseconds."""
    config = replace(JOURNAL[name].config, num_classes=num_classes)
    if isinstance(config, JournalUNetConfig):
        channels = tuple(8 * (level + 1) for level in range(len(config.channels)))
        return make_network(replace(config, channels=channels, embedding_dim=16, head_dim=8), 1)
    if isinstance(config, AttentionUNetConfig):
        return make_network(replace(config, width=8, embedding_dim=16), 1)
    return make_network(replace(config, channels=(8,) * 6, embedding_dim=16, head_dim=4, num_heads=2), 1)


def randomised(network):
    """Weights that are nowhere zero, as after training."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network


@pytest.mark.parametrize("name", JOURNAL)
def test_named_networks_have_the_sizes_of_the_journal(name):
    count, tolerance = SIZES[name]
    with torch.device("meta"):
        network = make_network(journal_network(name, 0), 1)
    assert count_parameters(network) == pytest.approx(count, rel=tolerance, abs=0)


def test_unknown_network_lists_the_known():
    with pytest.raises(
        ValueError, match="network='transformer' is unknown; choose one of " + ", ".join(JOURNAL)
    ):
        journal_network("transformer", 0)


def test_named_networks_are_the_journals_with_classes_and_widths_as_asked():
    for name, known in JOURNAL.items():
        assert journal_network(name, 5) == replace(known.config, num_classes=5)
        assert journal_network(name, 5, 0.5) == scale_widths(replace(known.config, num_classes=5), 0.5)


def test_every_kind_of_network_says_its_multiple_and_classes():
    configs = [SMOKE_UNET, *(network.config for network in JOURNAL.values())]
    assert {type(config) for config in configs} == set(CLASSES)
    for config in configs:
        assert replace(config, num_classes=3).num_classes == 3
        assert all(size >= 1 for size in config.multiple) and len(config.multiple) == 2


@pytest.mark.parametrize("name", ("unet", *JOURNAL))
def test_width_scales_a_network_to_any_number_of_parameters(name):
    config = CPU_UNET if name == "unet" else journal_network(name, CPU_UNET.num_classes)
    full = parameters_of(config, 1)
    for fraction in (0.25, 0.5, 2):
        width = width_for(config, 1, round(fraction * full))
        assert parameters_of(scale_widths(config, width), 1) == pytest.approx(fraction * full, rel=0.15)
    assert scale_widths(config, width_for(config, 1, full)) == config
    assert scale_widths(config, 1) is config


def test_the_plain_network_is_scaled_as_the_journals_equal_one():
    assert as_journal(scale_widths(CPU_UNET, 0.7)) == scale_widths(as_journal(CPU_UNET), 0.7)


def test_a_width_that_is_none_is_refused():
    with pytest.raises(ValueError, match="network_width=0 must be above 0"):
        scale_widths(SMOKE_UNET, 0)
    with pytest.raises(ValueError, match="network_width=0 must be above 0"):
        journal_network("unet_v0", 0, 0)


@pytest.mark.parametrize("name", JOURNAL)
def test_named_networks_share_one_call_and_train_all_of_their_parameters(name):
    torch.manual_seed(0)
    network = randomised(narrow(name, num_classes=3))
    x, t = torch.randn(3, 1, 32, 64), torch.tensor([0, 500, 999])
    y = network(x, t, torch.tensor([0, 1, 2]))
    assert y.shape == x.shape
    y.square().mean().backward()
    missing = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


@pytest.mark.parametrize("name", JOURNAL)
def test_time_and_label_matter_and_no_label_is_the_last(name):
    torch.manual_seed(0)
    network = randomised(narrow(name, num_classes=2)).eval()
    x, t, cond = torch.randn(1, 1, 32, 64), torch.tensor([10]), torch.tensor([0])
    with torch.no_grad():
        base = network(x, t, cond)
        for other in (network(x, t + 500, cond), network(x, t, cond + 1)):
            assert not torch.allclose(base, other, atol=1e-5)
        assert torch.equal(network(x, t), network(x, t, torch.tensor([2])))
    with pytest.raises(ValueError, match="without classes"):
        narrow(name)(x, t, cond)
    with pytest.raises(ValueError, match="F a multiple of"):
        network(x[:, :, :30], t)


@pytest.mark.parametrize("name", JOURNAL)
def test_outputs_may_be_more_than_inputs(name):
    config = replace(JOURNAL[name].config, num_classes=0)
    with torch.device("meta"):
        network = make_network(journal_network(name, 0), 2, 4)
        rows, frames = config.multiple
        assert network(torch.zeros(1, 2, rows, 2 * frames), torch.zeros(1)).shape == (1, 4, rows, 2 * frames)


@pytest.mark.parametrize("name", JOURNAL)
def test_named_networks_come_back_from_checkpoint_and_graph(name, tmp_path):
    torch.manual_seed(0)
    network = randomised(narrow(name)).eval()
    x, t = torch.randn(1, 1, 32, 64), torch.tensor([7])
    save_checkpoint(tmp_path / "ema.pth", {"weights": network.state_dict()})
    other = narrow(name).eval()
    load_weights(other, load_checkpoint(tmp_path / "ema.pth")["weights"], tmp_path / "ema.pth")
    export_graph(network, (x, t), tmp_path / "graph.pt")
    with torch.no_grad():
        assert torch.equal(other(x, t), network(x, t))
        assert torch.allclose(torch.jit.load(tmp_path / "graph.pt")(x, t), network(x, t), atol=1e-5)


def test_settings_build_the_network_they_name():
    config = journal_network("conv_unet_450k", 0)
    settings = replace(in_space(SMOKE, "spectrogram"), network=config)
    assert diffusion_recipe(settings).network().config == JOURNAL["conv_unet_450k"].config
    too_deep, latent_shape = (
        journal_network("unet_v0", 0),
        SMOKE.vae.network.latent_shape(SMOKE.spectrogram.shape),
    )
    with pytest.raises(
        ValueError, match="latent of 12x16 does not fit a network that needs multiples of 32x32"
    ):
        make_diffusion_network(too_deep, SMOKE.diffusion, latent_shape)
    with pytest.raises(ValueError, match="a small spectrogram of 48x64 does not fit a network"):
        replace(in_space(SMOKE, "small"), network=too_deep)


class OutlierBlock(nn.Module):
    """A stage of Outlier's network written with torch's own modules, to count against."""

    def __init__(self, fan_in, middle, fan_out, attended):
        super().__init__()
        sizes = ((fan_in, fan_in), (fan_in, fan_in), (fan_in, middle), (middle, fan_out))
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, bias=False) for a, b in sizes)
        self.norms = nn.ModuleList(nn.GroupNorm(1, b) for _, b in sizes)
        self.time = nn.Linear(256, fan_out)
        self.attention = nn.MultiheadAttention(attended, 4)
        self.feed_forward = nn.ModuleList((nn.Linear(attended, attended), nn.Linear(attended, attended)))
        self.layer_norms = nn.ModuleList((nn.LayerNorm(attended), nn.LayerNorm(attended)))


def test_attention_unet_has_the_parameters_of_outliers():
    down = [OutlierBlock(a, b, b, b) for a, b in ((64, 128), (128, 256), (256, 256))]
    up = [OutlierBlock(a, a // 2, b, b) for a, b in ((512, 128), (256, 64), (128, 64))]
    doubles = ((1, 64), (64, 64), (256, 512), (512, 512), (512, 512), (512, 512), (512, 256), (256, 256))
    ends = [m for a, b in doubles for m in (nn.Conv2d(a, b, 3, bias=False), nn.GroupNorm(1, b))]
    reference = nn.ModuleList((*down, *up, *ends, nn.Conv2d(64, 1, 1)))
    with torch.device("meta"):
        ours = make_network(journal_network("attention_unet", 0), 1)
    assert count_parameters(ours) == count_parameters(reference) == 23_331_457


def test_attention_unet_attends_as_torchs_multihead_attention():
    block = randomised(AttentionUNet(AttentionUNetConfig(8, 4, 16, 0), 1)).down[0].attention
    theirs = nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.in_proj_weight, theirs.in_proj_bias = block.qkv.weight, block.qkv.bias
    theirs.out_proj.weight, theirs.out_proj.bias = block.project.weight, block.project.bias
    x = torch.randn(2, 16, 4, 6)
    tokens = x.flatten(2).mT
    normed = block.norm(tokens)
    h = tokens + theirs(normed, normed, normed)[0]
    expected = (h + block.feed_forward(h)).mT.reshape_as(x)
    assert torch.allclose(block(x), expected, atol=1e-5)
