"""Rules on the weights: EMA, overflow in fp16, and an output that cannot be negative.

Each rule takes a `Case` and returns a `Finding`, or None if what it looked at is sound.
"""

import torch

from Libraries.Diffusion import Parameterisation
from Libraries.Doctor.Case import BATCH, Case, Finding
from Libraries.Utils import SampleNoise

STILL = 0.01  # of the way that the weights went; the EMA of an untouched copy has gone nothing
LAG = 0.5  # of that way between the EMA and the weights; the demo's, which has converged, is at .02
WORSE = 1.1  # times the loss of the weights themselves; a good EMA is better than they are
SKIPPED = 0.05  # of fp16's steps; one in 2,000 is how the scale of gradients is found
LEAST_SCALE = 1.0  # of gradients in fp16; below it they overflow by themselves
OUT_OF_REACH = 0.05  # of the target's values


def sigmoid_on_the_output(case: Case) -> Finding | None:
    """Find a network whose output is never negative, while what it should predict is.

    Journal, 03.03.2025: "UNET was implemented incorrectly with scaling the noise to 0-1 as last layer
    (Sigmoid) which prevented it from precisely predicting noise".
    """
    x0 = case.encoded[:BATCH].to(case.device)
    case.schedule.to(case.device)
    t = torch.linspace(0, case.schedule.num_train_timesteps - 1, len(x0)).long().to(case.device)
    noise = SampleNoise(range(len(x0)), case.device)(tuple(x0.shape[1:]))
    parameterisation = Parameterisation(case.schedule)
    x_t = parameterisation.scale_input(case.schedule.add_noise(x0, noise, t), t)
    with torch.no_grad():
        labels = case.model.labels_in_turn(len(x0))
        output = case.model.network(x_t, t, None if labels is None else labels.to(case.device))
    low, high = output[:, : x0.shape[1]].aminmax()
    target = parameterisation.target(x0, noise, t)
    missed = (target < low).float().mean().item()
    if low < 0 or missed <= OUT_OF_REACH:
        return None
    return Finding(
        f"the network's output lies between {low:.2f} and {high:.2f} at every noise level, and {missed:.0%} "
        "of what it should predict lies below",
        "set output='linear' in network: a sigmoid or a ReLU at the end cannot predict noise",
        {"lowest": low.item(), "highest": high.item(), "missed": missed},
    )


def ema_never_updated(case: Case) -> Finding | None:
    """Find an average of the weights that has stayed where training began.

    tue-bmd/zea#172: training did not update the average that sampling used; huggingface/diffusers#1772:
    noise after 1,000 epochs with EMA, and images after 100 without.
    """
    if case.ema_moved > STILL * case.moved:
        return None
    return Finding(
        f"the EMA weights have not left the first ones: the weights moved by {case.moved:.1%} of their "
        f"length, the EMA by {case.ema_moved:.2%}, in {case.updates} updates",
        "update the average after every optimiser step, and train again",
        {"moved": case.moved, "ema_moved": case.ema_moved, "updates": case.updates},
    )


def ema_lags(case: Case) -> Finding | None:
    """Find an average that is too long for the training, and worse than the weights themselves.

    konpatp/diffae#16 and openai/improved-diffusion#59: with a decay of .9999 the EMA's samples are noise for
    the first ten thousand steps. Karras et al. 2024 (EDM2), section 3: the best length depends on training.
    """
    if case.ema_moved <= STILL * case.moved:
        return None  # another rule's
    lag = case.ema_lag / case.moved
    losses = [case.loss(weights, "validation") for weights in (case.run.weights(), case.state["model"])]
    worse = losses[0] / losses[1]
    if lag <= LAG and worse <= WORSE:
        return None
    return Finding(
        f"the EMA weights lag behind: {lag:.0%} of the way that training went is still between them and the "
        f"weights, and their validation loss is {losses[0]:.3f} where the weights' is {losses[1]:.3f}",
        f"lower ema_decay, now {case.train.ema_decay:g} (an average over about a tenth of the steps is long "
        "enough), or choose a shorter ema_length when you load the run",
        {"lag": lag, "loss_ratio": worse},
    )


def fp16_overflow(case: Case) -> Finding | None:
    """Find a training in fp16 that skips steps because gradients or activations overflow.

    Journal, 03.03.2025: "i added gradient scaling and mixed precision training with cuda";
    lucidrains/imagen-pytorch#129: attention that overflows in fp16.
    """
    scale = case.state["scaler"].get("scale")
    if scale is None:  # trained in another precision
        return None
    skipped = 1 - case.updates / case.state["step"]
    if skipped <= SKIPPED and scale >= LEAST_SCALE:
        return None
    return Finding(
        f"in fp16 {skipped:.0%} of the steps overflowed and were skipped, and the scale of the gradients has "
        f"come down to {scale:g}",
        "set mixed_precision='bf16' (or 'no'), or lower learning_rate",
        {"skipped": skipped, "scale": scale},
    )


WEIGHT_RULES = (ema_never_updated, ema_lags, fp16_overflow)
