"""Rules on the curves in metrics.csv: does the loss fall, spike or part from validation, are gradients cut.

Each rule takes a `Case` and returns a `Finding`, or None if what it looked at is sound.
"""

import numpy as np

from Libraries.Doctor.Case import CannotLook, Case, Finding

FEWEST_ROWS, FEWEST_STEPS = 20, 100  # of metrics.csv; on less there is no curve to judge
STALLED = 0.9  # of the loss of a constant; the demo is at .85 after a third of its training, at .6 in the end
SPIKE = 1.5  # times the median of the rows before
SPIKE_DEVIATIONS = 6.0  # of the scatter of the whole curve; one row in a billion by chance
BEFORE = 8  # rows whose median a spike is measured from
RECOVERED = 1.1  # times the loss before the spike
ROSE = 1.2  # times the first loss; noise of a row is some per cent
DIVERGED = 2.0  # times the first loss, where training broke off
EARLY = 1 / 3  # of the training: what rises later is a spike
LATE_SHARE = 0.4  # of the fall in the second half of the learning; .5 is a straight line, the demo has .32
MOVED = 0.2  # of their first length that weights move; the demo's move .39
ALWAYS = 0.95  # of the rows
CLIPPED_ROWS = 10  # of gradient norms
PARTED = 1.1  # times its best validation loss; the scatter of EMA weights with fixed noise is 1 %
GAP = 1.5  # times the loss on training clips


def loss_stalls_at_a_constant(case: Case) -> Finding | None:
    """Find a loss that stays where a network is that always answers zero, or another constant.

    Journal, 03.03.2025: the first training with "Totally noisy output no characteristics whatsoever";
    beresandras/clear-diffusion-keras#4: nothing but noise, and losses that do not get lower.
    """
    _training_losses(case)
    loss, level = case.final_loss, level_of_a_constant(case)
    if loss <= STALLED * level:
        return None
    return Finding(
        f"after {case.step} steps the validation loss is {loss:.3f}, and that of a network that always "
        f"answers the same is {level:.3f}",
        "see whether one batch can be learned (Train Diffusion), raise learning_rate, and look for a layer "
        "that passes nothing on",
        {"loss": loss, "constant": level},
    )


def loss_spike(case: Case) -> Finding | None:
    """Find a sudden rise of the loss, and say whether it came back.

    Journal, 03.03.2025: "the loss spiked at epoch 50 and didnt go down any furhter from that point on".
    """
    steps, losses = _training_losses(case)
    before = np.array([np.median(losses[max(0, i - BEFORE) : i]) for i in range(BEFORE, len(losses))])
    rise = losses[BEFORE:] - before
    scatter = 1.4826 * np.median(np.abs(rise - np.median(rise)))
    late = steps[BEFORE:] > case.train.warmup_steps
    spikes = np.flatnonzero(late & (rise > (SPIKE - 1) * before) & (rise > SPIKE_DEVIATIONS * scatter))
    if not len(spikes):
        return None
    first = spikes[0]
    level, peak, step = before[first], losses[BEFORE + first], steps[BEFORE + first]
    after = losses[BEFORE + first :]
    back = np.flatnonzero(after <= RECOVERED * level)
    best = after[-max(3, len(after) // 4) :].min()
    if len(back) and best <= RECOVERED * level:
        what = f"came back by step {steps[BEFORE + first + back[0]]}"
    else:
        what = f"never came back (it ends at {losses[-1]:.3f})"
    return Finding(
        f"the loss jumped from {level:.3f} to {peak:.3f} at step {step} and {what}",
        "lower learning_rate or max_grad_norm, or raise warmup_steps; if it never came back, sample with "
        "weights from before (ema-<step>.pth) and train again",
        {"step": float(step), "before": level, "peak": peak, "end": losses[-1]},
    )


def learning_rate_too_high(case: Case) -> Finding | None:
    """Find a loss that rises above its start before it falls, or falls no more.

    Well known. Journal, 03.03.2025: the loss that spiked; facebookresearch/ViewDiff#10: a loss that is NaN.
    """
    losses = np.array([row["loss"] for row in case.training_rows])
    broken_off = case.step < case.train.num_steps
    if not (broken_off and len(losses) > 1 and losses[-1] > DIVERGED * losses[0]):
        _, losses = _training_losses(case)
        losses = np.median(np.lib.stride_tricks.sliding_window_view(losses, 3), axis=1)
        losses = np.append(losses[: max(2, int(EARLY * len(losses)))], losses[-1])
    highest = losses.max()
    if highest <= ROSE * losses[0]:
        return None
    end = f"broke off at step {case.step}" if broken_off else f"ended at {losses[-1]:.3f}"
    return Finding(
        f"the loss rose from {losses[0]:.3f} to {highest:.3f} early in the training, which {end}",
        f"lower learning_rate, now {case.train.learning_rate:g}, to a tenth, or raise warmup_steps",
        {"first": losses[0], "highest": highest, "end": losses[-1]},
    )


def learning_rate_too_low(case: Case) -> Finding | None:
    """Find a loss that falls in a straight line to the end, while the weights have hardly moved.

    Journal, 15.03.2025: "a higher Lr seemd to be beneficial getting down to ~0.08". The line is straight over
    the sum of learning rates, so that a schedule that ends at zero is not taken for a plateau.
    """
    _, losses = _training_losses(case)
    learned = np.cumsum([row["lr"] for row in case.training_rows])
    half = int(np.searchsorted(learned, learned[-1] / 2))
    around = max(2, len(losses) // 10)
    first, last = losses[:around].mean(), losses[-2 * around :].mean()
    middle = losses[max(0, half - around) : half + around].mean()
    fall = first - last
    if fall <= 0 or (middle - last) / fall < LATE_SHARE or case.moved > MOVED:
        return None
    return Finding(
        f"the loss still fell as fast at the end as at the beginning ({first:.3f}, {middle:.3f} half-way, "
        f"{last:.3f}), and the weights moved by {case.moved:.1%} of their length",
        f"raise learning_rate, now {case.train.learning_rate:g}, three to ten times, or train longer",
        {"late_share": (middle - last) / fall, "moved": case.moved},
    )


def gradients_clipped_at_every_step(case: Case) -> Finding | None:
    """Find gradients that are always longer than `max_grad_norm`, so that it decides how long a step is.

    Well known where max_grad_norm was copied from elsewhere. With Adam, which divides by the gradient's own
    size, it costs less than with SGD, but every batch then counts alike, however little it has to teach.
    """
    norms = np.array([row["grad_norm"] for row in case.training_rows if np.isfinite(row["grad_norm"])])
    norms = norms[len(norms) // 2 :]
    if len(norms) < CLIPPED_ROWS:
        raise CannotLook(f"{len(norms)} gradient norms are too few")
    limit = case.train.max_grad_norm
    clipped = (norms > limit).mean()
    if clipped < ALWAYS:
        return None
    return Finding(
        f"gradients were clipped in {clipped:.0%} of the logged steps: their norm is {np.median(norms):.3g}, "
        f"and max_grad_norm is {limit:g}",
        f"set max_grad_norm to about {2 * np.median(norms):.2g}, which cuts outliers alone",
        {"clipped": clipped, "median": float(np.median(norms)), "limit": limit},
    )


def validation_parts_from_training(case: Case) -> Finding | None:
    """Find a validation loss that rises while the training loss falls, or is far above it: memorising.

    Well known as overfitting. The loss of one set of weights with the same noise is measured on clips of both
    splits, because the training loss in metrics.csv has other noise, other weights and dropout.
    """
    rows = case.validation_rows
    if not rows:
        raise CannotLook("there is no validation loss")
    losses = [row["val_loss"] for row in rows]
    best = int(np.argmin(losses))
    known, unknown = (case.loss(case.run.weights(), split) for split in ("train", "validation"))
    rose, gap = losses[-1] / losses[best], unknown / known
    if rose <= PARTED and gap <= GAP:
        return None
    return Finding(
        f"the validation loss was {losses[best]:.3f} at step {rows[best]['step']} and is {losses[-1]:.3f} at "
        f"step {rows[-1]['step']}; the last weights have {known:.3f} on training clips and {unknown:.3f} on "
        "validation clips",
        f"use the weights of step {rows[best]['step']}; add music, dropout or weight_decay, or stop earlier",
        {"rose": rose, "gap": gap},
    )


def level_of_a_constant(case: Case) -> float:
    """Return the loss of a network that answers the best constant, averaged over all timesteps.

    It predicts nothing of the noise and the mean of the data: with a = sqrt(ᾱ), s = sqrt(1 - ᾱ) and the
    data's variance V the loss is 1 for epsilon, V for sample, a² + s²V for v, and that of edm alike.
    """
    if case.kind != "diffusion":
        raise CannotLook("only for a diffusion it is known what predicting nothing costs")
    variance, config = case.encoded.var().item(), case.settings.diffusion
    a2 = case.schedule.alphas_cumprod
    s2, d2 = 1 - a2, config.sigma_data**2
    level = {
        "epsilon": a2 + s2,
        "sample": variance * (a2 + s2),
        "v_prediction": a2 + s2 * variance,
        "edm": (s2 * variance / d2 + a2 * d2) / (s2 + a2 * d2),
    }[config.prediction_type]
    return level.mean().item()


def _training_losses(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and losses of metrics.csv, (N,) each."""
    steps, losses = (np.array([row[name] for row in case.training_rows]) for name in ("step", "loss"))
    if len(steps) < FEWEST_ROWS or steps[-1] < FEWEST_STEPS:
        raise CannotLook(
            f"{len(steps)} rows over {steps[-1] if len(steps) else 0} steps are too few for a curve; "
            f"{FEWEST_ROWS} and {FEWEST_STEPS} are needed"
        )
    if case.kind in ("diffusion", "upsampler"):
        if case.settings.diffusion.loss_weighting == "uncertainty":
            raise CannotLook("a loss with learned weights has no level: compare val_loss by eye")
        case.require_denoising()
    return steps, losses


CURVE_RULES = (
    loss_spike,
    learning_rate_too_high,
    learning_rate_too_low,
    gradients_clipped_at_every_step,
    validation_parts_from_training,
)
