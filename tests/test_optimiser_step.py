"""One step of `fit` by hand, and what a GPU would reach: fp16's scaler, compiled networks, another device."""

import copy
import math
import os
import signal
from dataclasses import replace
from functools import partial

import pytest
import torch
from test_training import (
    CONFIG,
    DATA,
    LABELS,
    Regression,
    assert_same,
    snapshots_of,
    state_of,
    train,
    weights,
)
from torch import nn

from Conf import SMOKE, in_space
from Libraries.Dataset.SpectrogramDataset import StepSampler
from Libraries.Diffusion import NoiseSchedule
from Libraries.Networks.Catalogue import JOURNAL, journal_network, make_network
from Libraries.Phase import PhaseLoss, PhaseNet
from Libraries.Runs.Settings import changed
from Libraries.Sound.LowResolution import LowResolution
from Libraries.Training import Loop
from Libraries.Training.DiffusionLoss import DiffusionLoss
from Libraries.Training.DiffusionNetwork import make_diffusion_network
from Libraries.Training.RunLog import read_metrics
from Libraries.Training.VAELoss import TrainableVAE, VAELoss
from Libraries.Upsampler import UpsamplerLoss, make_upsampler_network
from Libraries.Utils import SampleNoise
from Libraries.VAE import VAE

BY_HAND = replace(
    CONFIG, num_steps=6, batch_size=4, grad_accumulation=2, warmup_steps=3, learning_rate=0.03,
    lr_schedule="cosine", betas=(0.6, 0.8), weight_decay=0.7, max_grad_norm=5.0, ema_decay=0.3,
    log_every=1, save_every=6,
)  # fmt: skip
FACTORS = [min((s + 1) / 3, 1) * 0.5 * (1 + math.cos(math.pi * s / 6)) for s in range(6)]


def plain_network():
    """Without dropout, so that a step is a function of its batch alone."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.SiLU(), nn.Linear(16, 1))


def by_hand(betas=(0.6, 0.8), weight_decay=0.7, factors=FACTORS, max_grad_norm=5.0):
    """Return the weights after 6 steps of torch's AdamW, their EMA, and the norms before clipping."""
    model, sampler, loss_fn = plain_network(), StepSampler(len(DATA), 4, BY_HAND.seed), Regression()
    ema, norms, decay = weights(model), [], 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03, betas=betas, weight_decay=weight_decay)
    for step, factor in enumerate(factors):
        optimizer.zero_grad()
        for micro in (2 * step, 2 * step + 1):
            rows = [index for index, _ in sampler.batch(micro)]
            positions = torch.arange(4 * micro, 4 * micro + 4)
            (loss_fn(model, (DATA[rows], LABELS[rows]), positions).mean() / 2).backward()
        norms.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item())
        for parameter in model.parameters():
            parameter.grad *= min(1.0, max_grad_norm / norms[-1])
        optimizer.param_groups[0]["lr"] = 0.03 * factor
        optimizer.step()
        if step:  # the average begins as a copy of the first weights
            decay = min(0.3, (1 + step) / (10 + step))
        ema = decay * ema + (1 - decay) * weights(model)
    return weights(model), ema, norms


def test_six_steps_are_those_of_adamw_with_schedule_clipping_and_decay(tmp_path):
    averaged = train(tmp_path / "run", BY_HAND, model=plain_network())
    raw, ema, norms = by_hand()
    assert min(norms) < BY_HAND.max_grad_norm < max(norms)  # so that clipping changes their relation
    found = torch.cat([value.flatten() for value in state_of(tmp_path / "run")["model"].values()])
    assert torch.allclose(found, raw, atol=1e-6)
    assert torch.allclose(weights(averaged), ema, atol=1e-6)
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.csv") if "loss" in row]
    assert [row["grad_norm"] for row in rows] == pytest.approx(norms, rel=1e-4)


def test_each_setting_of_the_optimiser_changes_the_weights_by_hand():
    """Else the test above could not notice that one of them is ignored."""
    right, _, _ = by_hand()
    for ignored in (
        {"betas": (0.9, 0.999)},
        {"weight_decay": 0.01},
        {"factors": [1.0] * 6},
        {"max_grad_norm": math.inf},
    ):
        assert not torch.allclose(by_hand(**ignored)[0], right, atol=1e-4), ignored


class KeepMask(nn.Dropout):
    """Keeps which values of every pass it has set to zero."""

    def __init__(self):
        super().__init__(0.5)
        self.masks = []

    def forward(self, x):
        dropped = super().forward(torch.ones_like(x)) == 0
        if self.training:
            self.masks.append(dropped)
        return x.masked_fill(dropped, 0.0)


def test_no_two_batches_share_a_dropout_mask(tmp_path):
    dropout = KeepMask()
    model = nn.Sequential(nn.Linear(5, 64), dropout, nn.Linear(64, 1))
    train(tmp_path / "run", replace(CONFIG, num_steps=4, grad_accumulation=2), model=model)
    masks = torch.stack(dropout.masks).flatten(1)
    assert len(masks) == 8 and len(masks.unique(dim=0)) == 8
    assert abs(masks.float().mean() - 0.5) < 0.05


@pytest.mark.parametrize("at", [1, 2, 5])  # passes, two per step
def test_resumed_accumulation_goes_on_with_the_batches_that_come_next(tmp_path, at):
    class Stop(Regression):
        calls = 0

        def __call__(self, model, batch, positions):
            Stop.calls += 1
            if Stop.calls == at:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__call__(model, batch, positions)

    config = replace(CONFIG, num_steps=5, grad_accumulation=2)
    train(tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", config, loss_fn=Stop())
    assert state_of(tmp_path / "cut")["step"] == (at + 1) // 2
    train(tmp_path / "cut", config)
    assert_same(state_of(tmp_path / "whole"), state_of(tmp_path / "cut"))


# ---- stand-ins for a GPU


@pytest.fixture
def half_precision(monkeypatch):
    """An fp16 Accelerator on the CPU, with its GradScaler: all of fp16 except the kernels."""
    made, make = [], Loop.make_accelerator

    def make_accelerator(config, run_dir):
        accelerator = make(config)
        accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
        made.append(accelerator)
        return accelerator

    monkeypatch.setattr(Loop, "make_accelerator", make_accelerator)
    return made


def test_scaled_gradients_are_clipped_and_logged_as_they_are(tmp_path, half_precision):
    """A scaler that clipped before unscaling would clip a thousand times too much."""
    train(tmp_path / "run", BY_HAND, model=plain_network())
    raw, _, norms = by_hand()
    found = torch.cat([value.flatten() for value in state_of(tmp_path / "run")["model"].values()])
    moved = raw - weights(plain_network())
    assert (found - raw).norm() < 0.05 * moved.norm()  # fp16 has eleven bits
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.csv") if "loss" in row]
    assert [row["grad_norm"] for row in rows] == pytest.approx(norms, rel=0.05)
    assert half_precision[0].scaler.get_scale() == 2.0**12  # twice three steps without an overflow


class Overflows(Regression):
    """Its gradients, not its loss, overflow in the third and fourth step."""

    def __init__(self, steps=(2, 3)):
        self.steps = steps

    def __call__(self, model, batch, positions):
        loss = super().__call__(model, batch, positions)
        if int(positions[0]) // CONFIG.batch_size in self.steps:
            for parameter in model.parameters():
                loss = loss + (parameter.sum() - parameter.sum().detach()) * math.inf * 0
        return loss.nan_to_num(nan=1.0)


def test_steps_that_overflow_change_neither_weights_nor_averages_nor_schedule(tmp_path, half_precision):
    config = replace(CONFIG, num_steps=4, power_ema=(0.1,), save_every=1, log_every=1)
    kept, save = {}, Loop.TrainState.save

    def keep(state, run_dir):
        kept[state.step] = copy.deepcopy([
            weights(state.model), state.ema.state_dict(), state.power_ema[0.1].state_dict(),
            state.scheduler.last_epoch, state.accelerator.scaler.get_scale(),
        ])  # fmt: skip
        save(state, run_dir)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop.TrainState, "save", keep)
        train(tmp_path / "run", config, loss_fn=Overflows(), model=plain_network())
    assert not torch.equal(kept[1][0], kept[2][0])
    assert_same(kept[2][:4], kept[4][:4])
    assert [kept[step][4] for step in (2, 3, 4)] == [2.0**10, 2.0**9, 2.0**8]
    assert snapshots_of(tmp_path / "run")[4]["updates"] == 2


def test_scale_of_the_gradients_is_resumed(tmp_path, half_precision):
    config = replace(CONFIG, num_steps=6, lr_schedule="constant", save_every=2)
    train(tmp_path / "whole", config, loss_fn=Overflows())
    train(tmp_path / "cut", replace(config, num_steps=4), loss_fn=Overflows())
    train(tmp_path / "cut", config, loss_fn=Overflows())
    assert state_of(tmp_path / "cut")["scaler"]["scale"] == 2.0**8
    assert_same(state_of(tmp_path / "whole"), state_of(tmp_path / "cut"))


@pytest.fixture
def compiled(monkeypatch):
    """Call it to compile from then on, where `fit` does on a GPU, by a backend that needs no compiler."""
    made, make = [], Loop.make_accelerator

    def make_accelerator(config, run_dir):
        accelerator = make(config)
        prepare = accelerator.prepare

        def prepare_compiled(model, optimizer):
            made.append(torch.compile(model, backend="eager"))
            return prepare(made[-1], optimizer)

        accelerator.prepare = prepare_compiled
        return accelerator

    def start():
        monkeypatch.setattr(Loop, "make_accelerator", make_accelerator)
        return made

    return start


def test_compiled_network_trains_to_the_same_weights_and_goes_on_without_being_compiled(tmp_path, compiled):
    config = replace(CONFIG, num_steps=4, lr_schedule="constant", save_every=2)
    whole, seen = train(tmp_path / "plain", config, model=plain_network()), []
    networks = compiled()
    train(tmp_path / "run", replace(config, num_steps=2), model=plain_network(),
          preview=lambda step, network: seen.append(network))  # fmt: skip
    assert hasattr(networks[0], "_orig_mod") and not hasattr(seen[0], "_orig_mod")
    assert state_of(tmp_path / "run")["model"].keys() == plain_network().state_dict().keys()
    again = train(tmp_path / "run", config, model=plain_network())
    assert len(networks) == 2 and torch.allclose(weights(again), weights(whole), atol=1e-6)


def diffusion_on_meta(**diffusion):
    settings = changed(in_space(SMOKE, "spectrogram"), {f"diffusion.{k}": v for k, v in diffusion.items()})
    settings = changed(settings, {"network.num_classes": 2})
    loss_fn = DiffusionLoss(NoiseSchedule(settings.diffusion), 0, num_classes=2)
    network = make_diffusion_network(settings.network, settings.diffusion, settings.spectrogram.shape)
    return loss_fn, network, settings.spectrogram.shape


def upsampler_on_meta():
    settings = in_space(SMOKE, "small")
    low = LowResolution(settings.upsampler.low_resolution, settings.spectrogram)
    loss_fn = UpsamplerLoss(NoiseSchedule(settings.diffusion), 0, low, settings.upsampler.conditioning)
    parts = settings.upsampler.network, settings.diffusion, settings.spectrogram
    return loss_fn, make_upsampler_network(*parts), settings.spectrogram.shape


def vae_on_meta():
    shape = SMOKE.spectrogram.shape
    loss = replace(SMOKE.vae.loss, adversarial_weight=0.5, critic_channels=(8,))
    vae = VAE(SMOKE.vae.network, shape)
    return VAELoss(loss, vae.latent_shape, 2, seed=0), TrainableVAE(vae, loss), shape


LOSSES = {
    "plain": diffusion_on_meta,
    "learned variance": partial(diffusion_on_meta, learned_variance=True, label_dropout=0.5),
    "edm": partial(diffusion_on_meta, prediction_type="edm", schedule="edm", timestep_sampling="log_normal"),
    "uncertainty": partial(diffusion_on_meta, loss_weighting="uncertainty"),
    "min_snr": partial(diffusion_on_meta, loss_weighting="min_snr"),
    "upsampler": upsampler_on_meta,
    "vae": vae_on_meta,
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_compute_on_the_device_of_the_network_alone(name, monkeypatch):
    """Values left on the CPU do not mix with those of the meta device, nor with those of a GPU."""
    init = SampleNoise.__init__

    def draw_on_the_cpu(self, seeds, device, draw_on):  # there are no generators on the meta device
        init(self, seeds, device)

    monkeypatch.setattr(SampleNoise, "__init__", draw_on_the_cpu)
    loss_fn, network, shape = LOSSES[name]()
    batch = torch.zeros(2, *shape, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")
    network = network.to("meta")
    loss = loss_fn(network, batch, torch.arange(2))
    loss.mean().backward()
    assert loss.shape == (2,) and loss.device.type == "meta"
    assert all(p.grad is not None for p in network.parameters())


def test_phase_loss_computes_on_the_device_of_the_network_alone():
    network = PhaseNet(SMOKE.phase.network, SMOKE.spectrogram).to("meta")
    level = torch.zeros(2, network.n_freqs, 9, device="meta")
    edges = level[..., 1:].bool(), level[:, 1:].bool()
    PhaseLoss(SMOKE.phase.network)(network, (level, level, *edges), torch.arange(2)).mean().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("name", JOURNAL)
def test_networks_compute_on_their_device_alone(name):
    network = make_network(journal_network(name, 2, width=0.25), 1).to("meta")
    cond, x = torch.zeros(1, dtype=torch.int64, device="meta"), torch.zeros(1, 1, 64, 64, device="meta")
    network(x, cond, cond).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
