"""All settings, and nothing but settings: presets, each built from the one above it.

    from Conf import conf          # puts the repository on the path; everything else follows

Choose a preset with the environment variable CONF_PRESET (ORIGIN, BASE, CPU, TRIAL, SMOKE), name the folder
of your music with CONF_MUSIC, move Data, Models and Results elsewhere with CONF_ROOT. Change a setting here,
or in one visible cell of a notebook:

    conf = replace(conf, train=replace(conf.train, batch_size=8))
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))

from Libraries.Dataset.Manifest import DatasetConfig  # noqa: E402
from Libraries.DemoMusic.Corpus import ENSEMBLES, DemoMusicConfig  # noqa: E402
from Libraries.Diffusion import DiffusionConfig  # noqa: E402
from Libraries.Phase import PhaseConfig  # noqa: E402
from Libraries.Runs.Settings import ComparisonConfig, ExperimentsConfig, Settings  # noqa: E402
from Libraries.Sampling.Editing import EditConfig  # noqa: E402
from Libraries.Sampling.Guidance import GuidanceConfig  # noqa: E402
from Libraries.Sampling.Loop import SamplerConfig  # noqa: E402
from Libraries.Sound.LowResolution import ConditioningConfig, LowResolutionConfig  # noqa: E402
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig  # noqa: E402
from Libraries.Studies.ImagesConfig import ImagesConfig  # noqa: E402
from Libraries.Training.TrainConfig import TrainConfig  # noqa: E402
from Libraries.Training.VAELoss import VAELossConfig  # noqa: E402
from Libraries.U_Net import UNetConfig  # noqa: E402
from Libraries.Utils import set_log_level  # noqa: E402
from Libraries.VAE import VAEConfig  # noqa: E402

ROOT = Path(os.environ.get("CONF_ROOT", REPOSITORY))
MUSIC = Path(os.environ["CONF_MUSIC"]) if "CONF_MUSIC" in os.environ else None

# The autoencoder that works, at 8 to 64 spectrogram values a latent value, and the origin's three.
RESIDUAL_VAE = VAEConfig(
    kind="residual",  # linear | conv | conv_v2 | residual
    channels=(64, 128),  # a level, finest first
    row_strides=(4, 2),  # rows are divided by this on the way into each level
    frame_strides=(4, 2),  # frames likewise
    latent_channels=4,  # 8·8 values of the spectrogram to 4
    blocks_per_level=1,  # residual only
    frequency_features=8,  # channels; residual only
    norm_groups=8,  # residual only
    activation="silu",  # silu | gelu; residual only
)
CONV_VAE = replace(
    RESIDUAL_VAE,
    kind="conv",
    channels=(32, 64, 128),
    row_strides=(2, 2, 2),
    frame_strides=(2, 2, 2),
    latent_channels=64,  # 8·8 values to 64: the latent is as large as the spectrogram
)
VAES = {
    "linear": replace(CONV_VAE, kind="linear", latent_channels=256),  # the whole latent
    "conv": CONV_VAE,
    "conv_v2": replace(
        CONV_VAE,
        kind="conv_v2",
        channels=(32, 64, 128, 256),
        row_strides=(2, 2, 2, 2),
        frame_strides=(2, 2, 2, 2),
        latent_channels=128,  # 16·16 values to 128: half as large
    ),
    "residual_8": replace(RESIDUAL_VAE, latent_channels=8),
    "residual_16": RESIDUAL_VAE,
    "residual_32": replace(RESIDUAL_VAE, latent_channels=2),
}

# The journal's loss, 10,000·reproduction + KL: sums over a clip there, both divided by its values here.
ORIGIN_VAE_LOSS = VAELossConfig(
    reconstruction="l2",  # l1 | l2
    reconstruction_weight=10_000.0,
    spectral_weight=0.0,  # of the error of differences between neighbouring rows and frames
    spectral_scales=(1, 2, 4),  # rows and frames averaged before the differences
    kl_weight=1.0,
    kl_warmup_steps=0,  # optimiser steps
    adversarial_weight=0.0,  # 0: no critic
    adversarial_start=0,  # optimiser step
    critic_channels=(),  # width of each halving
)

BASE_UNET = UNetConfig(
    block="residual",  # residual | double_conv | double_conv_se | convnext
    channels=(48, 96, 192, 320),  # a level, finest first
    blocks_per_level=2,
    attention_levels=(2, 3),  # indices into channels; (): none
    linear_attention_levels=(),  # for levels too large for the other
    head_dim=32,  # channels
    time_injection="modulate",  # add | modulate (scale and shift)
    skips="layer",  # none | level | block | layer (stem, blocks and downsamplings)
    first_skip=False,  # one more, from the first convolution to a last block
    modulated_skips=False,  # True: skip + scale(time)·h; False: side by side
    patch_size=(4, 4),  # rows, frames
    frequency_features=8,  # channels
    embedding_dim=256,
    norm="group",  # group | batch
    norm_groups=8,  # group only; 1: over all channels
    activation="silu",  # silu | gelu
    dropout=0.1,
    output="linear",  # linear | sigmoid (for data in [0, 1]) | sigmoid_experiment (the origin's mistake)
    num_classes=0,  # 0: unconditional
)

# Training on one GPU; diffusion and autoencoder differ in a few values.
BASE_TRAIN = TrainConfig(
    num_steps=40_000,  # optimiser steps
    batch_size=32,  # clips
    grad_accumulation=1,  # batches a step
    learning_rate=3e-4,
    lr_schedule="cosine",  # constant | cosine | step
    warmup_steps=1_000,  # optimiser steps
    betas=(0.9, 0.99),  # of AdamW
    weight_decay=0.01,
    max_grad_norm=1.0,
    ema_decay=0.9995,  # a step
    mixed_precision="auto",  # auto | no | fp16 | bf16
    compile=False,  # torch.compile, on CUDA
    dataset_on_device=True,  # on CUDA, when it fits
    num_workers=0,  # processes that read batches
    seed=0,
    log_every=50,  # optimiser steps
    validate_every=1_000,
    save_every=1_000,
    preview_every=2_000,
    power_ema=(0.05, 0.10),  # share of the steps so far; any other length is rebuilt from these
    snapshot_every=2_000,  # optimiser steps
)

BASE_DIFFUSION = DiffusionConfig(
    schedule="cosine",  # linear | cosine | sigmoid | edm
    num_train_timesteps=1000,
    beta_start=1e-4,  # linear only
    beta_end=0.02,  # linear only
    sigma_min=0.002,  # edm only; of the noise beside data as they are
    sigma_max=80.0,  # edm only
    log_snr_shift=0.0,  # nats; 2·log(64/size) for data larger than 64 (about -3 for 224x416); 0: none
    zero_terminal_snr=False,  # True: no signal at all at the last timestep; not with epsilon
    prediction_type="v_prediction",  # epsilon | v_prediction | sample | edm
    sigma_data=0.5,  # edm prediction only; standard deviation of the data
    learned_variance=False,  # True: twice the output channels, for ddpm with variance="learned"
    vlb_weight=0.001,  # learned_variance only; weight of the variational bound in the loss
    timestep_sampling="uniform",  # uniform | log_normal (continuous time, EDM)
    log_normal_mean=-1.2,  # log_normal only; of ln σ
    log_normal_std=1.2,  # log_normal only; of ln σ
    loss_weighting="uniform",  # uniform | min_snr | uncertainty (learned for every t, EDM2)
    min_snr_gamma=5.0,  # min_snr only
    label_dropout=0.1,  # fraction of labels hidden in training, for guidance; no effect while num_classes=0
)

# The networks on CIFAR-10 (CIFAR10.ipynb), apart from the music.
BASE_IMAGES = ImagesConfig(
    source="auto",  # auto (CIFAR-10, or the digits where it cannot be downloaded) | cifar10 | digits
    validation_share=0.1,  # of the training images
    test_share=0.2,  # of the digits
    split_seed=0,
    num_validation_images=1_000,
    networks=("unet", "unet_v0"),  # the second as wide as it takes to have the parameters of the first
    unet=replace(
        BASE_UNET,
        channels=(128, 256, 256),
        attention_levels=(1,),  # 16x16
        patch_size=(1, 1),
        frequency_features=0,  # a picture has no frequencies
        num_classes=10,
    ),
    diffusion=BASE_DIFFUSION,
    train=replace(BASE_TRAIN, num_steps=50_000, batch_size=128, learning_rate=2e-4, power_ema=()),
    classifier_train=replace(
        BASE_TRAIN, num_steps=5_000, batch_size=128, learning_rate=2e-3, warmup_steps=200, power_ema=()
    ),
    sampler=SamplerConfig(
        name="dpmpp_2m_sde",
        num_inference_steps=50,
        spacing="karras",
        clip_x0=1.0,
    ),
    guidance=GuidanceConfig(method="none", scale=1.5, rescale=0.0, guide_at=0.3),  # or classifier_free
    num_samples=10_000,  # images of every network, classes in turn
    sample_batch_size=256,
    inception_file=None,  # path of inception-2015-12-05.pt, TorchScript: an Inception FID as well
)

# BASE: the best this repository knows, for one GPU.
BASE = Settings(
    preset="BASE",
    root=ROOT,
    music_dir=MUSIC,
    log_level="INFO",  # DEBUG | LIGHT_DEBUG | INFO | WARNING
    demo_music=DemoMusicConfig(
        clips=7_800,  # the size of the origin's own set
        minutes=None,  # or this many minutes, and clips=None
        clip_seconds=4.0,  # s
        ensembles=tuple(ENSEMBLES),
        sample_rate=32_000,  # Hz
        seed=0,
    ),
    spectrogram=SpectrogramConfig(
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
    ),
    dataset=DatasetConfig(
        name="base",  # folder below Data
        overlap=0.02,  # share of a clip; a few frames let neighbours be joined
        split=(0.8, 0.1, 0.1),  # training, validation, test
        seed=0,
        num_workers=max(1, (os.cpu_count() or 2) - 1),  # processes that build
        silence_db=-50.0,  # dB of full scale; a quieter clip is dropped
        random_gain_db=0.0,  # ± dB at read time, with dataset normalisation
        random_polarity=True,  # where the representation carries sign
        time_shift=True,  # where neighbouring clips allow
    ),
    # unet: the settings above | conv_unet_450k | attention_unet | se_unet | conv_unet_17m | modulated_unet |
    # residual_unet | unet_v0: networks of the journal, which take num_classes alone from above
    network="unet",
    network_width=1.0,  # factor on all widths of the network
    unet=BASE_UNET,
    diffusion=BASE_DIFFUSION,
    train=BASE_TRAIN,
    sampler=SamplerConfig(
        name="ddim",  # ddpm | ddim | euler | heun | dpmpp_2m | dpmpp_2m_sde | unipc
        num_inference_steps=50,
        spacing="trailing",  # leading | trailing | linspace | karras | log_snr
        clip_x0=1.0,  # None: leave x0 as predicted
        dynamic_threshold=None,  # or a fraction, such as 0.995, of |x0| that is scaled into ±clip_x0 first
        eta=0.0,  # ddim: 0 to 1; ddpm has variance instead (fixed_small | fixed_large | learned), heun churn
    ),
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
    comparison=ComparisonConfig(
        clips=64,  # of every variant
        samplers=("ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "heun", "unipc"),
        steps=(2, 5, 10, 20, 50, 250),
        guidance_scales=(1.0, 1.5, 2.0, 3.0),
        ema_lengths=(0.02, 0.05, 0.1, 0.15, 0.2),  # relative to the training
        upsampler_steps=(1, 2, 4),
    ),
    experiments=ExperimentsConfig(
        seeds=(0, 1, 2),  # trainings of every variant
        clips=256,  # that every training is measured by
        names=(),  # which run in the notebook's last cell; (): all
    ),
    vae_run=None,  # None: diffusion on spectrograms; "latest" or a name in Models/vae: in its latents
    latent_unet=replace(
        BASE_UNET, channels=(192, 384), attention_levels=(0, 1), patch_size=(1, 1), frequency_features=8
    ),
    latent_train=BASE_TRAIN,
    vae=replace(RESIDUAL_VAE, channels=(96, 192), blocks_per_level=2),
    vae_loss=replace(
        ORIGIN_VAE_LOSS,
        reconstruction="l1",
        reconstruction_weight=1.0,
        spectral_weight=0.5,
        kl_weight=1e-2,
        kl_warmup_steps=1_000,
    ),
    vae_train=replace(BASE_TRAIN, learning_rate=5e-4, batch_size=16, power_ema=()),
    cascade=False,  # True (and vae_run=None): diffusion of small spectrograms, then the upsampler
    view=LowResolutionConfig(
        kind="smaller",  # lower_bands | smaller
        kept_rows=48,  # lower_bands only; of 224
        row_factor=2,  # smaller only; rows averaged to one
        frame_factor=2,  # smaller only; frames averaged to one
    ),
    view_unet=replace(BASE_UNET, channels=(96, 192, 320), attention_levels=(1, 2)),
    view_train=BASE_TRAIN,
    upsampler=ConditioningConfig(
        max_augmentation=1.0,  # level of the noise on the conditioning in training; 1: nothing else is left
        augmentation=0.1,  # its level on a generated low-resolution spectrogram
        restored_fraction=0.3,  # of training clips: given the lower rows up to any one, to restore lost bands
        data_consistency=True,  # keep x0 consistent with the low-resolution spectrogram at every step
    ),
    upsampler_unet=replace(BASE_UNET, attention_levels=(3,), dropout=0.0),
    upsampler_train=BASE_TRAIN,
    upsampler_sampler=SamplerConfig(
        name="ddim",
        num_inference_steps=4,
        spacing="trailing",
        clip_x0=None,  # what is sampled are residuals; x0 is always cut to the range of values
        eta=0.0,
    ),
    phase_run="latest",  # the newest that fits, or a name in Models/phase or Models/released
    phase_net=PhaseConfig(
        channels=(64, 128, 256),  # a level, finest first; 3.5 M parameters
        blocks_per_level=1,
        fold_bins=8,
        frequency_features=8,  # channels
        norm_groups=8,
        activation="silu",  # silu | gelu
        weight_power=0.5,  # of each of a difference's two magnitudes in the loss
        crop_frames=64,
        mix=0.25,  # share of clips to which another is added
    ),
    phase_train=replace(
        BASE_TRAIN,
        num_steps=20_000,
        learning_rate=1e-3,
        batch_size=32,  # crops
        warmup_steps=100,
        dataset_on_device=False,  # clips are read from the music
        num_workers=4,
        power_ema=(),
    ),
    num_validation_clips=128,
    num_samples=128,
    sample_batch_size=16,
    images=BASE_IMAGES,
)

# ORIGIN: the settings of the journal this repository grew from, exactly.
ORIGIN = replace(
    BASE,
    preset="ORIGIN",
    spectrogram=replace(
        BASE.spectrogram,
        representation="magnitude",
        clip_seconds=4.0,  # s
        n_fft=480,  # samples = 15 ms
        win_length=480,
        max_frequency=16_000.0,  # Hz; size_multiple leaves 224 of 241 bins and 416 of 445 frames
    ),
    dataset=replace(BASE.dataset, name="origin"),
    unet=replace(
        BASE.unet,
        block="double_conv",
        channels=(32, 64, 128, 256, 304),  # 17.1 M parameters
        blocks_per_level=1,
        attention_levels=(),
        time_injection="add",
        patch_size=(1, 1),  # full resolution
        frequency_features=0,
        dropout=0.0,
    ),
    diffusion=replace(BASE.diffusion, schedule="linear", prediction_type="epsilon"),
    train=replace(BASE.train, batch_size=16, grad_accumulation=2, learning_rate=1e-4),
    vae=VAES["conv_v2"],
    vae_loss=ORIGIN_VAE_LOSS,
    vae_train=replace(BASE.vae_train, batch_size=32, learning_rate=1e-4, lr_schedule="constant"),
    # half as many bins as in BASE, and more to learn in quiet ones
    phase_net=replace(BASE.phase_net, fold_bins=4, weight_power=0.3),
)

# CPU: a task of its own size that two cores learn in minutes; `make demo` runs it.
CPU_TRAIN = replace(
    BASE.train,
    num_steps=1_000,
    batch_size=8,  # small: at this length steps count more than clips
    learning_rate=1e-3,
    warmup_steps=50,
    ema_decay=0.99,
    log_every=10,
    validate_every=100,
    save_every=100,
    preview_every=500,
    snapshot_every=100,  # optimiser steps
)
CPU_IMAGES = replace(
    BASE_IMAGES,
    num_validation_images=128,
    unet=replace(
        BASE_IMAGES.unet, channels=(32, 64, 128), blocks_per_level=1, attention_levels=(2,), dropout=0.0
    ),
    train=replace(CPU_TRAIN, batch_size=16, power_ema=()),
    classifier_train=replace(CPU_TRAIN, num_steps=600, batch_size=64, learning_rate=2e-3, power_ema=()),
    sampler=replace(BASE_IMAGES.sampler, num_inference_steps=20),
    num_samples=320,
    sample_batch_size=32,
)

CPU = replace(
    BASE,
    preset="CPU",
    demo_music=replace(
        BASE.demo_music, clips=800, clip_seconds=2.0, ensembles=("acoustic_guitar",), sample_rate=16_000
    ),
    spectrogram=replace(
        BASE.spectrogram,
        sample_rate=16_000,  # Hz
        clip_seconds=2.048,  # s = 128 hops
        phase="pghi",  # there is no learned one for these magnitudes until Train Phase makes it
        n_fft=768,  # samples = 48 ms
        win_length=768,
        hop_length=256,  # samples = 16 ms
        n_bands=96,
        narrow_frequency=1_500.0,  # Hz
        max_frequency=6_000.0,  # Hz
    ),
    dataset=replace(BASE.dataset, name="cpu"),
    unet=replace(
        BASE.unet,
        channels=(32, 64, 128),
        blocks_per_level=1,  # at equal time better than 2
        attention_levels=(2,),
        patch_size=(2, 2),  # larger patches blur the partials
        dropout=0.0,
    ),
    train=CPU_TRAIN,
    # as good as ddpm with 250 steps on this model, and better than ddim with 50 (README)
    sampler=replace(BASE.sampler, name="dpmpp_2m_sde", num_inference_steps=20, spacing="karras", eta=None),
    comparison=replace(BASE.comparison, clips=24),
    latent_unet=replace(BASE.latent_unet, channels=(64, 128), dropout=0.0),
    vae_run="latest",  # in latents: better at the same time than on spectrograms (README)
    latent_train=CPU_TRAIN,
    vae=VAES["residual_16"],
    vae_loss=replace(BASE.vae_loss, kl_warmup_steps=200),
    vae_train=replace(CPU_TRAIN, num_steps=1_700, learning_rate=2e-3, preview_every=850, power_ema=()),
    view=replace(BASE.view, kept_rows=24),  # of 96
    view_unet=replace(
        BASE.view_unet, channels=(64, 128), attention_levels=(1,), patch_size=(2, 2), dropout=0.0
    ),
    view_train=CPU_TRAIN,
    upsampler_unet=replace(
        BASE.upsampler_unet,
        channels=(32, 64, 128),
        blocks_per_level=1,
        attention_levels=(2,),
        patch_size=(2, 2),
    ),
    upsampler_train=replace(CPU_TRAIN, power_ema=()),
    phase_train=replace(
        BASE.phase_train,
        num_steps=3_000,  # about 20 minutes of one core
        batch_size=4,  # small: at this length steps count more than crops
        ema_decay=0.998,
        num_workers=0,
        log_every=10,
        validate_every=250,
        save_every=250,
        preview_every=500,
    ),
    num_validation_clips=16,
    num_samples=48,
    images=CPU_IMAGES,
)

# TRIAL: the journal's experiments, each in about ten minutes on two cores: one second at 8 kHz.
TRIAL = replace(
    CPU,
    preset="TRIAL",
    demo_music=replace(CPU.demo_music, sample_rate=8_000),
    spectrogram=replace(
        CPU.spectrogram,
        sample_rate=8_000,  # Hz
        clip_seconds=1.024,  # s = 64 hops
        n_fft=512,  # samples = 64 ms
        win_length=512,
        hop_length=128,  # samples = 16 ms
        n_bands=64,
        narrow_frequency=750.0,  # Hz
        max_frequency=4_000.0,  # Hz
    ),
    dataset=replace(CPU.dataset, name="trial"),
    unet=replace(CPU.unet, channels=(16, 32, 64), head_dim=16, embedding_dim=128),
    vae_run=None,
    train=replace(CPU_TRAIN, num_steps=600, validate_every=200, save_every=300, power_ema=()),
    experiments=replace(CPU.experiments, clips=96),
    num_validation_clips=32,
    num_samples=96,
)

# SMOKE: every notebook in seconds, for the tests; nothing it makes is worth hearing.
SMOKE_STEPS = {  # of every training
    "num_steps": 20,
    "batch_size": 4,
    "warmup_steps": 2,
    "log_every": 5,
    "validate_every": 10,
    "save_every": 10,
    "preview_every": 20,
    "snapshot_every": 10,
}

SMOKE = replace(
    CPU,
    preset="SMOKE",
    demo_music=replace(CPU.demo_music, clips=60),
    dataset=replace(CPU.dataset, name="smoke", num_workers=1),
    unet=replace(
        CPU.unet, channels=(16, 32), blocks_per_level=1, attention_levels=(1,), head_dim=16, patch_size=(4, 4)
    ),
    train=replace(CPU.train, **SMOKE_STEPS),
    sampler=replace(CPU.sampler, num_inference_steps=4),
    edit=replace(CPU.edit, resamplings=1, continue_seconds=4.0, loop_seconds=4.0),
    comparison=replace(
        CPU.comparison,
        clips=4,
        samplers=("ddim", "heun"),
        steps=(2, 4),
        guidance_scales=(1.0, 2.0),
        upsampler_steps=(1, 2),
    ),
    experiments=replace(CPU.experiments, seeds=(0, 1), clips=4, names=("06-norm",)),
    latent_unet=replace(CPU.latent_unet, channels=(16, 32), blocks_per_level=1, head_dim=16),
    latent_train=replace(CPU.latent_train, **SMOKE_STEPS),
    vae=replace(CPU.vae, channels=(16, 32)),
    vae_train=replace(CPU.vae_train, **SMOKE_STEPS),
    view_unet=replace(
        CPU.view_unet,
        channels=(16, 32),
        attention_levels=(1,),
        head_dim=16,
        patch_size=(4, 4),
        blocks_per_level=1,
    ),
    view_train=replace(CPU.view_train, **SMOKE_STEPS),
    upsampler_unet=replace(
        CPU.upsampler_unet, channels=(16, 32), attention_levels=(1,), head_dim=16, patch_size=(4, 4)
    ),
    upsampler_train=replace(CPU.upsampler_train, **SMOKE_STEPS),
    upsampler_sampler=replace(CPU.upsampler_sampler, num_inference_steps=2),
    phase_net=replace(CPU.phase_net, channels=(16, 32), crop_frames=32),
    phase_train=replace(CPU.phase_train, **SMOKE_STEPS),
    num_validation_clips=4,
    num_samples=8,
    images=replace(
        CPU_IMAGES,
        source="digits",  # the tests need no network
        num_validation_images=16,
        unet=replace(CPU_IMAGES.unet, channels=(16, 32), attention_levels=(1,), head_dim=16),
        train=replace(CPU_IMAGES.train, **SMOKE_STEPS),
        classifier_train=replace(CPU_IMAGES.classifier_train, **SMOKE_STEPS),
        sampler=replace(CPU_IMAGES.sampler, num_inference_steps=4),
        num_samples=40,
    ),
)

PRESETS = {preset.preset: preset for preset in (ORIGIN, BASE, CPU, TRIAL, SMOKE)}


def choose(name: str) -> Settings:
    """Return a preset by name.

    Raises:
        ValueError: there is none of that name; the known are listed.
    """
    if name not in PRESETS:
        raise ValueError(f"CONF_PRESET={name!r} is unknown; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


conf = choose(os.environ.get("CONF_PRESET", "BASE"))
set_log_level(conf.log_level)
