"""All settings, and nothing but settings: presets, each built from the one above it.

    from Conf import conf          # puts the repository on the path; everything else follows

The environment chooses: CONF_PRESET a preset (ORIGIN, BASE, STEREO, CPU, SMOKE; without it BASE where there
is a CUDA device and CPU where there is none), CONF_MUSIC the folder of your music, CONF_SOUNDFONT the
SoundFont that plays the demo music, CONF_ROOT where Data, Models and Results lie (without it in the
repository, or in the present folder if MA_DDPM is installed). Change a setting here, or in one visible cell
of a notebook:

    conf = replace(conf, train=replace(conf.train, batch_size=8))
    conf = in_space(conf, "latent")

Options that are off, such as dropout=0.0 or learned_variance=False, are left out; their classes name them.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))
ROOT = REPOSITORY if (REPOSITORY / "pyproject.toml").is_file() else Path.cwd()  # installed: where one works
if not sys.stderr.isatty() and "ipykernel" not in sys.modules:  # in a log, every refresh of a bar is a line
    for name in ("TQDM_MININTERVAL", "TQDM_DELAY"):
        os.environ.setdefault(name, "10")  # s

# ruff: noqa: E402
from Libraries.Dataset import DatasetConfig
from Libraries.DemoMusic import ENSEMBLES, DemoMusicConfig, PlayingConfig
from Libraries.Diffusion import DiffusionConfig
from Libraries.Networks import as_journal
from Libraries.Phase import PhaseConfig
from Libraries.Runs import EvaluationConfig, PhaseSettings, Settings, UpsamplerSettings, VAESettings, changed
from Libraries.Sampling import EditConfig, GuidanceConfig, SamplerConfig
from Libraries.Sound import ConditioningConfig, LowResolutionConfig, SpectrogramConfig
from Libraries.Training import TrainConfig, VAELossConfig
from Libraries.U_Net import UNetConfig
from Libraries.Utils import pick_device, require, set_log_level
from Libraries.VAE import VAEConfig

UNET = UNetConfig(
    channels=(48, 96, 192, 320),  # per level, finest first
    blocks_per_level=2,
    attention_levels=(2, 3),  # indices into channels; (): none
    head_dim=32,  # channels per attention head
    patch_size=(4, 4),  # rows, frames
    frequency_features=8,  # channels
    embedding_dim=256,
    norm_groups=8,  # 1: over all channels
    dropout=0.1,
)

# BASE: the best this repository knows, for one GPU.
BASE_SPECTROGRAM = SpectrogramConfig(
    representation="bands",  # magnitude | bands | mel | complex | mdct
    sample_rate=32_000,  # Hz
    clip_seconds=3.744,  # s = 416 hops
    n_fft=1024,  # samples = 32 ms
    win_length=1024,  # samples, Hann
    hop_length=288,  # samples = 9 ms
    n_bands=224,  # rows
    narrow_frequency=4_000.0,  # Hz; up to here a band is one FFT bin
    max_frequency=14_880.0,  # Hz; FFT bin 476
    size_multiple=32,  # rows and frames
    scale="db",  # db | linear
    db_range=80.0,  # dB
    compression=0.4,  # power, of complex (0.4) and mdct (0.5)
    normalisation="per_sample",  # per_sample | dataset
    value_range="minus_one_to_one",  # minus_one_to_one | zero_to_one | unit_variance
    phase="learned",  # by Models/released, or your own after Train Phase | pghi | griffin_lim
    band_inverse="nnls",  # nnls | pinv (faster)
    griffin_lim_iterations=10,  # about 60 with phase="griffin_lim"
    channels=1,  # 1 | 2; stereo is coded as mid and side
)
BASE_DATASET = DatasetConfig(
    name="base",  # folder below Data
    overlap=0.02,  # fraction of a clip; a few frames let neighbours be joined
    split=(0.8, 0.1, 0.1),  # training, validation, test
    seed=0,
    num_workers=max(1, (os.cpu_count() or 2) - 1),  # processes that build
    one_file_clips=200_000,  # more clips (37 GB of BASE's) stay in many files, with an index
    silence_db=-50.0,  # dB of full scale; a quieter clip is dropped
    pad_short=False,  # True: one-shots shorter than a clip become clips, with silence at their end
    random_polarity=True,  # where the representation carries sign
    time_shift=True,  # where neighbouring clips allow
)
BASE_DIFFUSION = DiffusionConfig(
    schedule="cosine",  # linear | cosine | sigmoid | edm
    num_train_timesteps=1000,
    beta_start=1e-4,  # linear only
    beta_end=0.02,  # linear only
    sigma_min=0.002,  # edm only; of the noise beside data as they are
    sigma_max=80.0,  # edm only
    prediction_type="v_prediction",  # epsilon | v_prediction | sample | edm
    sigma_data=0.5,  # edm prediction only; standard deviation of the data
    vlb_weight=0.001,  # learned_variance only; weight of the variational bound in the loss
    timestep_sampling="uniform",  # uniform | log_normal (continuous time, EDM)
    log_normal_mean=-1.2,  # log_normal only; of ln σ
    log_normal_std=1.2,  # log_normal only; of ln σ
    loss_weighting="uniform",  # uniform | min_snr | uncertainty (learned for every t, EDM2)
    min_snr_gamma=5.0,  # min_snr only
    label_dropout=0.1,  # fraction of labels hidden in training, for guidance; no effect while num_classes=0
)
BASE_TRAIN = TrainConfig(
    num_steps=40_000,  # optimiser steps
    batch_size=32,  # clips
    grad_accumulation=1,  # batches per step
    learning_rate=3e-4,
    lr_schedule="cosine",  # constant | cosine | step
    warmup_steps=1_000,  # optimiser steps
    betas=(0.9, 0.99),  # of AdamW
    weight_decay=0.01,
    max_grad_norm=1.0,
    ema_decay=0.9995,  # per step
    mixed_precision="auto",  # auto | no | fp16 | bf16
    dataset_on_device=True,  # on CUDA, when it fits
    seed=0,
    log_every=50,  # optimiser steps
    validate_every=1_000,
    num_validation_clips=128,
    save_every=1_000,
    preview_every=2_000,
    power_ema=(0.05, 0.10),  # fraction of the steps so far; any other length is rebuilt from these
    snapshot_every=2_000,  # optimiser steps
)
BASE_SAMPLER = SamplerConfig(
    name="ddim",  # ddpm | ddim | consistency | euler | heun | dpmpp_2m | dpmpp_2m_sde | unipc
    num_inference_steps=50,
    spacing="trailing",  # leading | trailing | linspace | karras | karras_trailing | log_snr
    clip_x0=1.0,  # None: leave x0 as predicted
    eta=0.0,  # ddim: 0 to 1; ddpm has variance instead (fixed_small | fixed_large | learned), heun churn
)

BASE = Settings(
    preset="BASE",
    root=Path(os.environ.get("CONF_ROOT", ROOT)),
    music_dir=Path(os.environ["CONF_MUSIC"]) if "CONF_MUSIC" in os.environ else None,
    log_level="INFO",  # DEBUG | LIGHT_DEBUG | INFO | WARNING
    demo_music=DemoMusicConfig(
        clips=7_800,  # the size of the origin's own set
        clip_seconds=4.0,  # s
        ensembles=tuple(ENSEMBLES),
        sample_rate=32_000,  # Hz
        seed=0,
        soundfont=os.environ.get("CONF_SOUNDFONT"),  # a path; None: the best of this machine | built-in
        room="chamber",  # dry | chamber | hall | church
        playing=PlayingConfig(
            timing=0.012,  # s, standard deviation of an onset
            dynamics=18.0,  # velocity steps that a phrase rises from its ends to its middle
            rubato=0.12,  # fraction by which a phrase is slower at its ends than in its middle
            tempo_spread=0.2,  # fraction by which a piece may be faster or slower than its score
            phrase=(6.0, 14.0),  # quarter notes
            any_key=True,  # as far as the instruments' ranges allow; False: up to a tritone
        ),
    ),
    spectrogram=BASE_SPECTROGRAM,
    dataset=BASE_DATASET,
    space="spectrogram",  # spectrogram | latent | small; `in_space` switches the network along
    network=UNET,  # or one of the journal's: Libraries.Networks.journal_network("unet_v0", 0)
    diffusion=BASE_DIFFUSION,
    train=BASE_TRAIN,
    sampler=BASE_SAMPLER,
    guidance=GuidanceConfig(
        method="none",  # none | classifier_free | autoguidance
        scale=2.0,  # 1: none
        rescale=0.0,  # 0 none, to 1
        guide_at=0.3,  # autoguidance only; fraction of the training that the guide model has had
    ),
    edit=EditConfig(
        resamplings=4,  # times that inpainted parts are sampled again
        gap_seconds=1.0,  # s
        strength=0.5,  # of a variation, 0 to 1
        overlap_seconds=1.0,  # s
        continue_seconds=60.0,  # s
        loop_seconds=8.0,  # s
        inversion_iterations=3,  # calls of the model per step
    ),
    evaluation=EvaluationConfig(
        num_samples=128,  # clips
        batch_size=16,  # clips
        compared_clips=64,  # of every variant
        samplers=("ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "heun", "unipc"),
        steps=(2, 5, 10, 20, 50, 250),
        guidance_scales=(1.0, 1.5, 2.0, 3.0),
        ema_lengths=(0.02, 0.05, 0.1, 0.15, 0.2),  # relative to the training
        upsampler_steps=(1, 2, 4),
    ),
    vae=VAESettings(
        network=VAEConfig(
            kind="residual",  # linear | conv | conv_v2 | residual
            channels=(48, 128),  # per level, finest first; 3.8 GFLOP to encode and decode a clip
            row_strides=(4, 2),  # rows are divided by this on the way into each level
            frame_strides=(4, 2),  # frames likewise
            latent_channels=8,  # 8·8 values of the spectrogram to 8
            blocks_per_level=1,  # residual only
            frequency_features=8,  # channels; residual only
            norm_groups=8,  # residual only
            activation="silu",  # silu | gelu; residual only
        ),
        loss=VAELossConfig(
            reconstruction="l1",  # l1 | l2
            reconstruction_weight=1.0,
            spectral_weight=0.5,  # of the error of differences between neighbouring rows and frames
            spectral_scales=(1, 2, 4),  # rows and frames averaged before the differences
            kl_weight=1e-2,
            kl_warmup_steps=1_000,  # optimiser steps
            adversarial_weight=0.05,  # recordings need it (Results/README.md, 9); 0: no critic
            critic_channels=(32, 64, 128),  # per level
        ),
        # the critic's gradients are longer than those of errors
        train=replace(BASE_TRAIN, learning_rate=5e-4, batch_size=16, max_grad_norm=4.0, power_ema=()),
        start="vae-base",  # in Models/released: trained on the demo music, tuned on yours; or None
        freeze_encoder=True,  # latents stay known to a diffusion that was trained in them
    ),
    upsampler=UpsamplerSettings(
        network=replace(UNET, attention_levels=(3,), dropout=0.0),
        train=BASE_TRAIN,
        low_resolution=LowResolutionConfig(
            kind="smaller",  # lower_bands | smaller
            kept_rows=48,  # lower_bands only; of 224
            row_factor=2,  # smaller only; rows averaged to one
            frame_factor=2,  # smaller only; frames averaged to one
        ),
        conditioning=ConditioningConfig(
            max_augmentation=1.0,  # level of the noise on the conditioning in training; 1: nothing else left
            augmentation=0.1,  # its level on a generated small spectrogram
            restored_fraction=0.3,  # of training clips: given the lower rows only, to restore lost bands
            data_consistency=True,  # keep x0 consistent with the small spectrogram at every step
        ),
        sampler=replace(BASE_SAMPLER, num_inference_steps=4, clip_x0=None),  # residuals have no range
    ),
    phase=PhaseSettings(
        network=PhaseConfig(
            channels=(64, 128, 256),  # per level, finest first; 3.5 M parameters
            blocks_per_level=1,
            fold_bins=8,
            frequency_features=8,  # channels
            norm_groups=8,
            activation="silu",  # silu | gelu
            weight_power=0.5,  # of each of a difference's two magnitudes in the loss
            crop_frames=64,
            mix=0.25,  # fraction of clips to which another is added
        ),
        train=replace(
            BASE_TRAIN, num_steps=20_000, learning_rate=1e-3, warmup_steps=100, dataset_on_device=False,
            num_workers=4, power_ema=(),
        ),  # batches of crops, read from the music
    ),
)  # fmt: skip

# STEREO: BASE with two channels, at 44.1 kHz, up to 20 kHz. A pass of the network costs 17.3 GFLOP, not 17.2;
# a clip takes twice the space, and 0.55 s to decode (Results/README.md, 4).
STEREO = changed(
    BASE,
    {
        "preset": "STEREO", "demo_music.sample_rate": 44_100,  # Hz
        "spectrogram": replace(
            BASE_SPECTROGRAM, channels=2, sample_rate=44_100, max_frequency=20_000.0,  # Hz
            clip_seconds=3.9242,  # s = 416 hops
            n_fft=1536, win_length=1536, hop_length=416,  # samples = 35, 35 and 9.4 ms
            phase="pghi",  # no learned one comes for these magnitudes; Train Phase makes it
        ),
        "dataset.name": "stereo",
        "vae.start": None, "vae.freeze_encoder": False,  # from scratch, so without a critic
        "vae.loss.adversarial_weight": 0.0, "vae.train.max_grad_norm": 1.0,
        "dataset.random_swap": True,  # of left and right, where the representation carries sign
    },
)  # fmt: skip

# ORIGIN: the settings of the journal this repository grew from, exactly.
ORIGIN = changed(
    BASE,
    {
        "preset": "ORIGIN",
        "spectrogram": replace(
            BASE_SPECTROGRAM, representation="magnitude", clip_seconds=4.0,  # s
            n_fft=480, win_length=480,  # samples = 15 ms
            max_frequency=16_000.0,  # Hz; size_multiple leaves 224 of 241 bins and 416 of 445 frames
        ),
        "dataset.name": "origin",
        "network": replace(
            as_journal(UNET), block="double_conv", channels=(32, 64, 128, 256, 304), blocks_per_level=1,
            attention_levels=(), time_injection="add", patch_size=(1, 1), frequency_features=0, dropout=0.0,
        ),  # 17.1 M parameters at full resolution
        "diffusion.schedule": "linear", "diffusion.prediction_type": "epsilon",
        "train": replace(BASE_TRAIN, batch_size=16, grad_accumulation=2, learning_rate=1e-4),
        "vae.start": None, "vae.freeze_encoder": False,
        "vae.network": replace(
            BASE.vae.network, kind="conv_v2", channels=(32, 64, 128, 256), row_strides=(2, 2, 2, 2),
            frame_strides=(2, 2, 2, 2), latent_channels=128, blocks_per_level=1,
        ),
        # the journal's loss, 10,000·reproduction + KL: sums over a clip there, means over its values here
        "vae.loss": replace(
            BASE.vae.loss, reconstruction="l2", reconstruction_weight=10_000.0, spectral_weight=0.0,
            kl_weight=1.0, kl_warmup_steps=0, adversarial_weight=0.0,
        ),
        "vae.train": replace(
            BASE.vae.train, batch_size=32, learning_rate=1e-4, lr_schedule="constant", max_grad_norm=1.0
        ),
        "phase.network.fold_bins": 4,  # half as many bins as in BASE
        "phase.network.weight_power": 0.3,  # there is more to learn in quiet bins
    },
)  # fmt: skip

# CPU: a task of its own size that two cores learn in minutes; `make demo` runs it.
CPU_UNET = replace(
    UNET, channels=(32, 64, 128), blocks_per_level=1, attention_levels=(2,), patch_size=(2, 2), dropout=0.0
)  # larger patches blur the partials
CPU_LATENT_UNET = replace(UNET, channels=(64, 128), attention_levels=(0, 1), patch_size=(1, 1), dropout=0.0)
CPU_TRAIN = replace(
    BASE_TRAIN, num_steps=1_000, batch_size=8, learning_rate=1e-3, warmup_steps=50, ema_decay=0.99,
    log_every=10, validate_every=100, num_validation_clips=16, save_every=100, preview_every=500,
    snapshot_every=100,
)  # fmt: skip
CPU = changed(
    BASE,
    {
        "preset": "CPU",
        "demo_music": replace(
            BASE.demo_music, clips=2_600,
            clip_seconds=2.0,  # s
            ensembles=("acoustic_guitar",),
            sample_rate=16_000,  # Hz
            # as the figures in Results/README.md and the released weights were made
            soundfont=os.environ.get("CONF_SOUNDFONT", "built-in"), room="dry", playing=None,
        ),
        "spectrogram": replace(
            BASE_SPECTROGRAM, sample_rate=16_000,
            representation="mel",  # at this scale it loses less than bands (Results/README.md)
            narrow_frequency=1_500.0, max_frequency=7_600.0,  # Hz
            clip_seconds=2.048,  # s = 128 hops
            n_fft=768, win_length=768, hop_length=256,  # samples = 48, 48 and 16 ms
            n_bands=128, phase="pghi",  # no learned one comes for these magnitudes; Train Phase makes it
        ),
        "dataset.name": "cpu",
        "space": "latent",  # better at the same time than on spectrograms (Results/README.md)
        "network": CPU_LATENT_UNET,
        "train": CPU_TRAIN,
        "start": "diffusion-cpu",  # in Models/released: trained on other music, tuned on yours; or None
        # as good as ddpm with 250 steps on this model, and better than ddim with 50 (Results/README.md)
        "sampler": SamplerConfig("dpmpp_2m_sde", num_inference_steps=20, spacing="karras", clip_x0=1.0),
        # halves the kernel distance, for twice the time per clip (Results/README.md, 7)
        "guidance": replace(BASE.guidance, method="autoguidance", scale=2.0, guide_at=0.1),
        "evaluation.num_samples": 96, "evaluation.compared_clips": 48,
        "vae.start": "vae-cpu",  # in Models/released: trained on other music, tuned on yours; or None
        "vae.network": replace(BASE.vae.network, channels=(64, 128), blocks_per_level=2),  # as there
        "vae.loss": replace(BASE.vae.loss, kl_warmup_steps=0, adversarial_weight=0.03),
        "vae.train": replace(CPU_TRAIN, num_steps=500, learning_rate=5e-4, preview_every=250, power_ema=()),
        "upsampler.network": CPU_UNET,
        "upsampler.train": replace(CPU_TRAIN, power_ema=()),
        "upsampler.low_resolution.kept_rows": 32,  # of 128
        "phase.train": replace(
            BASE.phase.train, num_steps=3_000, batch_size=4, ema_decay=0.998, num_workers=0, log_every=10,
            validate_every=250, num_validation_clips=16, save_every=250, preview_every=500,
        ),  # about 20 minutes of one core
    },
)  # fmt: skip

# The network of a diffusion in each space.
SMOKE_UNET = {"channels": (16, 32), "head_dim": 16, "blocks_per_level": 1}
SMOKE_SPECTROGRAM_UNET = replace(CPU_UNET, **SMOKE_UNET, attention_levels=(1,), patch_size=(4, 4))
NETWORKS = {
    "BASE": {
        "spectrogram": UNET,
        # 1.6 GFLOP per pass
        "latent": replace(CPU_LATENT_UNET, channels=(96, 192), blocks_per_level=1, patch_size=(2, 2)),
        "small": replace(UNET, channels=(96, 192, 320), attention_levels=(1, 2)),
    },
    "CPU": {
        "spectrogram": CPU_UNET,
        "latent": CPU_LATENT_UNET,
        "small": replace(CPU_UNET, channels=(64, 128), blocks_per_level=2, attention_levels=(1,)),
    },
    "SMOKE": {
        "spectrogram": SMOKE_SPECTROGRAM_UNET,
        "latent": replace(CPU_LATENT_UNET, **SMOKE_UNET),
        "small": SMOKE_SPECTROGRAM_UNET,
    },
}
# The released run with which a diffusion in a space begins.
STARTS = {"BASE": {"latent": "diffusion-base"}, "CPU": {"latent": "diffusion-cpu"}}
NETWORKS["STEREO"] = NETWORKS["BASE"]
NETWORKS["ORIGIN"] = {**NETWORKS["BASE"], "spectrogram": ORIGIN.network}

# SMOKE: every notebook in seconds, for the tests; nothing it makes is worth hearing.
FEW_STEPS = {
    "num_steps": 20, "batch_size": 4, "warmup_steps": 2, "log_every": 5, "validate_every": 10,
    "num_validation_clips": 4, "save_every": 10, "preview_every": 20, "snapshot_every": 10,
}  # fmt: skip
SMOKE = changed(
    CPU,
    {
        "preset": "SMOKE", "demo_music.clips": 60, "demo_music.soundfont": "built-in",
        "dataset.name": "smoke", "dataset.num_workers": 1,
        # as BASE, and small
        "spectrogram.representation": "bands", "spectrogram.max_frequency": 6_000.0,  # Hz
        "spectrogram.n_bands": 96,
        "network": NETWORKS["SMOKE"]["latent"], "train": replace(CPU.train, **FEW_STEPS),
        "sampler.num_inference_steps": 4, "guidance.method": "none",
        "edit.resamplings": 1, "edit.continue_seconds": 4.0, "edit.loop_seconds": 4.0,
        "evaluation": EvaluationConfig(
            num_samples=8, batch_size=16, compared_clips=4, samplers=("ddim", "heun"), steps=(2, 4),
            guidance_scales=(1.0, 2.0), ema_lengths=BASE.evaluation.ema_lengths, upsampler_steps=(1, 2),
        ),
        "start": None, "vae.start": None, "vae.freeze_encoder": False,
        "vae.loss": replace(BASE.vae.loss, kl_warmup_steps=200, adversarial_weight=0.0),
        "vae.network.channels": (16, 32), "vae.network.blocks_per_level": 1, "vae.network.latent_channels": 4,
        "vae.train": replace(CPU.vae.train, **FEW_STEPS),
        "upsampler.network": SMOKE_SPECTROGRAM_UNET,
        "upsampler.train": replace(CPU.upsampler.train, **FEW_STEPS),
        "upsampler.low_resolution.kept_rows": 24,  # of 96
        "upsampler.sampler.num_inference_steps": 2,
        "phase.network.channels": (16, 32), "phase.network.crop_frames": 32,
        "phase.train": replace(CPU.phase.train, **FEW_STEPS),
    },
)  # fmt: skip

PRESETS = {preset.preset: preset for preset in (STEREO, ORIGIN, BASE, CPU, SMOKE)}


def choose(name: str) -> Settings:
    """Return a preset by name; a ValueError names the known ones."""
    require(PRESETS, preset=name)
    return PRESETS[name]


def in_space(settings: Settings, space: str) -> Settings:
    """Return a preset with its diffusion in another space, by the network and the start for that space."""
    require(NETWORKS, preset=settings.preset)
    require(NETWORKS[settings.preset], space=space)
    start = settings.start if space == settings.space else STARTS.get(settings.preset, {}).get(space)
    return replace(settings, space=space, network=NETWORKS[settings.preset][space], start=start)


HAS_CUDA = pick_device().type == "cuda"
WHY = "CONF_PRESET" if "CONF_PRESET" in os.environ else f"{'a' if HAS_CUDA else 'no'} CUDA device"
conf = choose(os.environ.get("CONF_PRESET", "BASE" if HAS_CUDA else "CPU"))
set_log_level(conf.log_level)
