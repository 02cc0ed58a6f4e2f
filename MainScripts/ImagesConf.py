"""The settings of `CIFAR10.ipynb`, apart from those for music; `conf` follows the preset in Conf.py."""

from dataclasses import replace

from Conf import BASE, CPU, SMOKE, UNET
from Conf import conf as music_conf
from Libraries.Studies.ImagesConfig import ImagesConfig

BASE_IMAGES = ImagesConfig(
    source="auto",  # auto (CIFAR-10, or the digits if it cannot be downloaded) | cifar10 | digits
    validation_fraction=0.1,  # of the training images
    test_fraction=0.2,  # of the digits
    split_seed=0,
    networks=("unet", "unet_v0"),  # the second scaled to the parameter count of the first
    unet=replace(
        UNET,
        channels=(128, 256, 256),
        attention_levels=(1,),  # 16x16
        patch_size=(1, 1),
        frequency_features=0,  # a picture has no frequencies
        num_classes=10,
    ),
    diffusion=BASE.diffusion,
    train=replace(
        BASE.train,
        num_steps=50_000,
        batch_size=128,
        learning_rate=2e-4,
        num_validation_clips=1_000,
        power_ema=(),
    ),
    classifier_train=replace(
        BASE.train,
        num_steps=5_000,
        batch_size=128,
        learning_rate=2e-3,
        warmup_steps=200,
        num_validation_clips=1_000,
        power_ema=(),
    ),
    sampler=replace(BASE.sampler, name="dpmpp_2m_sde", spacing="karras", eta=None),
    guidance=replace(BASE.guidance, scale=1.5),  # method: none | classifier_free
    num_samples=10_000,  # images per network, classes in turn
    sample_batch_size=256,
    inception_file=None,  # path of inception-2015-12-05.pt (TorchScript) to measure an Inception FID as well
)
CPU_TRAIN = replace(CPU.train, num_validation_clips=128, power_ema=())
CPU_IMAGES = replace(
    BASE_IMAGES,
    unet=replace(
        BASE_IMAGES.unet, channels=(32, 64, 128), blocks_per_level=1, attention_levels=(2,), dropout=0.0
    ),
    train=replace(CPU_TRAIN, batch_size=16),
    classifier_train=replace(CPU_TRAIN, num_steps=600, batch_size=64, learning_rate=2e-3),
    sampler=replace(BASE_IMAGES.sampler, num_inference_steps=20),
    num_samples=320,
    sample_batch_size=32,
)
SMOKE_TRAIN = replace(SMOKE.train, num_validation_clips=16, power_ema=())
SMOKE_IMAGES = replace(
    CPU_IMAGES,
    source="digits",  # the tests download nothing
    unet=replace(CPU_IMAGES.unet, channels=(16, 32), attention_levels=(1,), head_dim=16),
    train=SMOKE_TRAIN,
    classifier_train=replace(SMOKE_TRAIN, learning_rate=2e-3),
    sampler=replace(CPU_IMAGES.sampler, num_inference_steps=4),
    num_samples=40,
)

IMAGES = {"CPU": CPU_IMAGES, "SMOKE": SMOKE_IMAGES}  # BASE_IMAGES for the others
conf = IMAGES.get(music_conf.preset, BASE_IMAGES)
