"""The training loop: exact resume, accumulation, processes, EMA, faults."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import nn

from Conf import SMOKE
from Libraries.Dataset.SpectrogramDataset import StepSampler
from Libraries.Disk import FolderInUse
from Libraries.Training import Loop
from Libraries.Training.Checkpoint import find_checkpoints, load_checkpoint
from Libraries.Training.Loop import TrainingDiverged, fit, learning_rate_factor, make_accelerator, make_ema
from Libraries.Training.RunLog import read_metrics
from Libraries.Utils import SampleNoise, derive_seed, resolve_precision

CONFIG = replace(
    SMOKE.train, num_steps=12, batch_size=4, mixed_precision="no", warmup_steps=2, learning_rate=1e-2,
    log_every=3, validate_every=6, save_every=4, preview_every=100,
    snapshot_every=3,
)  # fmt: skip
DATA = torch.randn(23, 5, generator=torch.Generator().manual_seed(0))
LABELS = DATA.sum(1, keepdim=True)


class Regression:
    """A small loss with noise by position, as diffusion has."""

    metric_names = ("val_loss",)

    def __call__(self, model, batch, positions):
        x, y = batch
        noise = SampleNoise([derive_seed(0, p) for p in positions.tolist()])(x.shape[1:])
        return (model(x + 0.1 * noise) - y).square().mean(1)

    def validate(self, model, batches):
        with torch.no_grad():
            return {"val_loss": sum((model(x) - y).square().mean().item() for x, y in batches)}


def loaders(batch_size, seed, start_step, rank, world_size, **_):
    sampler = StepSampler(len(DATA), batch_size, seed, start_step, rank, world_size)
    train = ((DATA[i], LABELS[i]) for i in ([index for index, _ in batch] for batch in sampler))
    return train, [(DATA, LABELS)]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.SiLU(), nn.Dropout(0.2), nn.Linear(16, 1))


def train(run_dir, config=CONFIG, loss_fn=None, model=None, **options):
    run_dir.mkdir(exist_ok=True)
    return fit(model or network(), loss_fn or Regression(), loaders, config, run_dir, **options)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def state_of(run_dir):
    return load_checkpoint(find_checkpoints(run_dir, "state")[-1][1])


def snapshots_of(run_dir):
    return {step: load_checkpoint(path) for step, path in find_checkpoints(run_dir, "snapshot")}


def assert_same(a, b):
    """Equal to the last bit, through nested containers."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def test_training_lowers_the_loss_and_leaves_a_readable_run(tmp_path):
    train(tmp_path / "run", replace(CONFIG, num_steps=200, save_every=50, log_every=10))
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.3 * losses[0]
    assert [step for step, _ in find_checkpoints(tmp_path / "run", "ema")] == [50, 100, 150, 200]
    assert [step for step, _ in find_checkpoints(tmp_path / "run", "state")] == [200]
    assert {"lr", "grad_norm", "samples_per_second", "val_loss"} <= set().union(*rows)


def test_resumed_equals_never_stopped_bit_for_bit(tmp_path):
    class Stop(Regression):
        calls = 0

        def __call__(self, model, batch, positions):
            Stop.calls += 1
            if Stop.calls == 7:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__call__(model, batch, positions)

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", loss_fn=Stop())
    assert find_checkpoints(tmp_path / "cut", "state")[-1][0] == 7  # the stop button saved that step
    assert list(snapshots_of(tmp_path / "cut")) == [3, 6]
    resumed = train(tmp_path / "cut")
    assert torch.equal(weights(whole), weights(resumed))
    assert_same(state_of(tmp_path / "whole"), state_of(tmp_path / "cut"))
    assert_same(snapshots_of(tmp_path / "whole"), snapshots_of(tmp_path / "cut"))


KILLED = """
import os, sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}, {scripts!r}]
from test_training import Regression, train
class Kill(Regression):
    calls = 0
    def __call__(self, *arguments):
        Kill.calls += 1
        if Kill.calls == int(sys.argv[2]):
            os.kill(os.getpid(), 9)
        return super().__call__(*arguments)
train(Path(sys.argv[1]), loss_fn=Kill())
"""


HOLDS = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("at", [1, 6, 11])
def test_killed_run_resumes_bit_for_bit(tmp_path, at):
    tests = Path(__file__).parent
    code = KILLED.format(tests=str(tests), root=str(tests.parent), scripts=str(tests.parent / "MainScripts"))
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "cut"), str(at)], capture_output=True)
    assert result.returncode == -signal.SIGKILL
    left = snapshots_of(tmp_path / "cut")
    assert list(left) == [step for step in (3, 6, 9) if step < at]  # 9 is later than the newest state
    train(tmp_path / "cut")
    train(tmp_path / "whole")
    assert_same(state_of(tmp_path / "whole"), state_of(tmp_path / "cut"))
    whole = snapshots_of(tmp_path / "whole")
    assert list(whole) == [3, 6, 9, 12]
    assert_same(whole, snapshots_of(tmp_path / "cut"))
    assert_same({step: whole[step] for step in left}, left)
    steps = [
        [row["step"] for row in read_metrics(tmp_path / run / "metrics.csv")] for run in ("whole", "cut")
    ]
    assert steps[0] == steps[1]


def test_a_run_that_another_process_trains_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Loop, "LET_GO", 0.1)
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "run" / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(FolderInUse, match="run is in use by another process: wait for it, or end it"):
            train(tmp_path / "run")
        other.kill()
    train(tmp_path / "run")


def test_accumulation_equals_the_larger_batch(tmp_path):
    def no_dropout():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 16), nn.SiLU(), nn.Linear(16, 1))

    large = train(tmp_path / "large", replace(CONFIG, batch_size=8), model=no_dropout())
    small = train(tmp_path / "small", replace(CONFIG, batch_size=2, grad_accumulation=4), model=no_dropout())
    assert torch.allclose(weights(large), weights(small), atol=1e-5)


def test_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path):
    class Diverges(Regression):
        calls = 0

        def __call__(self, model, batch, positions):
            Diverges.calls += 1
            return super().__call__(model, batch, positions) * (float("nan") if Diverges.calls > 6 else 1)

    with pytest.raises(TrainingDiverged, match="lower learning_rate"):
        train(tmp_path / "run", loss_fn=Diverges())
    assert find_checkpoints(tmp_path / "run", "state")[-1][0] == 4
    assert all(v.isfinite().all() for v in state_of(tmp_path / "run")["model"].values())


def test_only_dropout_tells_accumulation_from_the_larger_batch(tmp_path):
    large = train(tmp_path / "large", replace(CONFIG, batch_size=8))
    small = train(tmp_path / "small", replace(CONFIG, batch_size=2, grad_accumulation=4))
    assert not torch.allclose(weights(large), weights(small), atol=1e-5)


class Overflows(Regression):
    """Gradients that are infinite in the first `steps` calls, of a loss that is finite."""

    def __init__(self, steps):
        self.left = steps

    def __call__(self, model, batch, positions):
        loss, self.left = super().__call__(model, batch, positions), self.left - 1
        if self.left >= 0:
            loss.register_hook(lambda gradient: gradient * torch.inf)
        return loss


@pytest.fixture
def scaled(monkeypatch):
    """Scale the loss on the CPU as fp16 does on a GPU."""

    def make(config, run_dir):
        accelerator = make_accelerator(config)
        accelerator.scaler = torch.amp.GradScaler("cpu")
        return accelerator

    monkeypatch.setattr(Loop, "make_accelerator", make)


def test_gradients_that_are_not_finite_at_first_are_skipped(tmp_path, scaled):
    train(tmp_path / "run", loss_fn=Overflows(3))
    assert state_of(tmp_path / "run")["scheduler"]["last_epoch"] == CONFIG.num_steps - 3


@pytest.mark.parametrize(("num_steps", "stops_at"), [(12, 12), (60, 30)])
def test_gradients_that_are_never_finite_stop_the_training(tmp_path, scaled, num_steps, stops_at):
    """At the end, or as soon as the scale has fallen too low."""
    with pytest.raises(TrainingDiverged, match=rf"in fp16 are not finite at step {stops_at}.*only 0 steps"):
        train(tmp_path / "run", replace(CONFIG, num_steps=num_steps, save_every=100), Overflows(100))


def test_ema_is_the_weighted_mean_of_the_weights():
    model = nn.Linear(1, 1, bias=False)
    ema, expected = make_ema(model, decay=0.9), None
    for step in range(200):
        with torch.no_grad():
            model.weight.fill_(float(step))
        ema.update_parameters(model)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = float(step) if expected is None else decay * expected + (1 - decay) * step
    assert ema.module.weight.item() == pytest.approx(expected, rel=1e-5)


def test_learning_rate_warms_up_then_follows_its_schedule():
    config = replace(CONFIG, num_steps=100, warmup_steps=10)
    cosine, constant, steps = (
        [learning_rate_factor(s, replace(config, lr_schedule=name)) for s in range(101)]
        for name in ("cosine", "constant", "step")
    )
    assert cosine[0] == pytest.approx(0.1) and cosine[100] == pytest.approx(0) and max(cosine) < 1
    assert constant[9:] == [1.0] * 92
    assert (steps[59], steps[60], steps[85]) == pytest.approx((1, 0.1, 0.01))


def test_ema_keeps_the_running_statistics_of_batch_norm(tmp_path):
    """An EMA that kept its first ones would normalise by mean 0 and variance 1 at inference."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.SiLU(), nn.Linear(16, 1))
    averaged = train(tmp_path / "run", replace(CONFIG, num_steps=100, save_every=100), model=model)
    live, ema = state_of(tmp_path / "run")["model"], averaged.state_dict()
    assert live["1.running_var"].sub(1).abs().max() > 0.1
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(ema[name], live[name])
    saved = load_checkpoint(find_checkpoints(tmp_path / "run", "ema")[-1][1])["weights"]
    assert_same(dict(saved), dict(ema))
    with torch.no_grad():
        assert (averaged(DATA) - LABELS).square().mean() < 0.3 * LABELS.var()


def test_a_compiled_network_of_many_processes_is_saved_without_its_wrappers(tmp_path, monkeypatch):
    """So that it goes on anywhere; compiled eagerly here, in one process."""

    def make(config, run_dir):
        accelerator = make_accelerator(config)
        prepare = accelerator.prepare

        def wrapped(model, optimizer):
            model, optimizer = prepare(model, optimizer)
            model = torch.compile(model, backend="eager")
            return nn.parallel.DistributedDataParallel(model), optimizer

        monkeypatch.setattr(accelerator, "prepare", wrapped)
        return accelerator

    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Loop, "make_accelerator", make)
            train(tmp_path / "run", replace(CONFIG, save_every=6))
    finally:
        torch.distributed.destroy_process_group()
    assert state_of(tmp_path / "run")["model"].keys() == network().state_dict().keys()
    train(tmp_path / "plain")
    assert_same(state_of(tmp_path / "run")["model"], state_of(tmp_path / "plain")["model"])
    train(tmp_path / "run", replace(CONFIG, num_steps=14))


def test_a_resumed_state_leaves_the_count_of_steps_on_the_cpu(tmp_path, monkeypatch):
    """Where AdamW reads it at every step; `meta` stands in for a GPU."""
    train(tmp_path / "run", replace(CONFIG, num_steps=4))
    accelerator = make_accelerator(CONFIG)
    state = Loop._make_state(network(), CONFIG, accelerator)
    monkeypatch.setattr(type(accelerator), "device", torch.device("meta"))
    state.load(tmp_path / "run" / "state-00000004.pth")
    counts = [moments["step"] for moments in state.optimizer.state.values()]
    assert counts and all(count.device.type == "cpu" and count == 4 for count in counts)


def test_others_wait_as_long_as_the_main_process_builds(monkeypatch):
    asked, state = {}, Loop.process_state()
    monkeypatch.setattr(Loop, "PartialState", lambda **options: asked.update(options) or state)
    assert Loop.process_state() is state
    assert asked["timeout"] >= timedelta(hours=12)


def test_preview_sees_the_ema_model(tmp_path):
    seen = []
    model = train(
        tmp_path / "run", replace(CONFIG, preview_every=5), preview=lambda step, net: seen.append((step, net))
    )
    assert [step for step, _ in seen] == [5, 10, 12] and seen[-1][1] is model


def test_precision_may_change_within_a_process():
    assert make_accelerator(replace(CONFIG, mixed_precision="bf16")).mixed_precision == "bf16"
    assert make_accelerator(CONFIG).mixed_precision == "no"
    assert resolve_precision("auto") in ("no", "bf16", "fp16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_half_precision_without_a_gpu_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs a CUDA device"):
        train(tmp_path / "run", replace(CONFIG, mixed_precision="fp16"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lr_schedule": "linear"}, "constant, cosine, step"),
        ({"batch_size": 0}, "1 or more"),
        ({"ema_decay": 1.0}, "within"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be above 0"),
        ({"mixed_precision": "int8"}, "auto, no"),
        ({"snapshot_every": 0}, "1 or more"),
        ({"power_ema": (0.05, 0.3)}, "at most 0.2887"),
        ({"power_ema": (0.1, 0.1)}, "different numbers"),
    ],
)
def test_impossible_settings_say_what_is_allowed(change, says):
    with pytest.raises(ValueError, match=says):
        replace(CONFIG, **change)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
def test_training_on_a_gpu_lowers_the_loss(tmp_path, precision):
    class OnDevice(Regression):
        def __call__(self, model, batch, positions):
            return (model(batch[0]) - batch[1]).square().mean(1)

        def validate(self, model, batches):
            device = next(model.parameters()).device
            return super().validate(model, [(x.to(device), y.to(device)) for x, y in batches])

    config = replace(CONFIG, num_steps=200, mixed_precision=precision, log_every=10, save_every=200)
    train(tmp_path / "run", config, loss_fn=OnDevice())
    losses = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.csv") if "loss" in row]
    assert losses[-1] < 0.3 * losses[0]
