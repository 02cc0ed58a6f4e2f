"""CIFAR-10 read from files in its true format, its download, and the digits that stand in for it."""

import hashlib
import http.server
import io
import logging
import re
import tarfile
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from Conf import PRESETS
from ImagesConf import BASE_IMAGES, IMAGES, SMOKE_IMAGES
from Libraries.Dataset import CIFAR10
from Libraries.Dataset.CIFAR10 import LabelledImages, read_cifar10, read_cifar10_batch
from Libraries.Dataset.SpectrogramDataset import DatasetError
from Libraries.Studies import Images
from Libraries.Studies.Images import (
    DownloadError,
    ImageDataset,
    fetch_cifar10,
    image_loaders,
    load_digits,
    load_images,
    split_off,
    spread_images,
    to_bytes,
    to_x0,
)

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCHES = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]


def make_members(records=20):
    """The files of the binary version with random pixels, by name: labels 0 to 9 in turn."""
    rng, members = np.random.default_rng(0), {"batches.meta.txt": "\n".join([*NAMES, ""]).encode()}
    for name in BATCHES:
        pixels = rng.integers(0, 256, (records, 3072), dtype=np.uint8)
        labels = (np.arange(records) % 10).astype(np.uint8)[:, None]
        members[name] = np.concatenate([labels, pixels], axis=1).tobytes()
    return members


def write_archive(path, members, folder="cifar-10-batches-bin/"):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(folder + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def archive(tmp_path):
    return write_archive(tmp_path / "cifar-10-binary.tar.gz", make_members())


def test_a_record_is_a_label_and_three_planes_row_by_row():
    image = np.arange(3 * 32 * 32).reshape(3, 32, 32) % 251
    record = bytes([7]) + image.astype(np.uint8).tobytes()
    images, labels = read_cifar10_batch(record * 2, "a batch")
    assert images.dtype == torch.uint8 and labels.dtype == torch.int64
    assert images.shape == (2, 3, 32, 32) and labels.tolist() == [7, 7]
    assert np.array_equal(images[1].numpy(), image)


@pytest.mark.parametrize("size", [0, 1, 3072, 3074, 3073 * 4 - 1])
def test_a_batch_of_another_size_is_refused(size):
    with pytest.raises(DatasetError, match=rf"test_batch\.bin has {size} bytes.*cut short"):
        read_cifar10_batch(bytes(size), "test_batch.bin")


def test_a_label_that_is_none_names_its_record():
    content = bytearray(3073 * 3)
    content[3073] = 10
    with pytest.raises(DatasetError, match=r"record 1 of a batch has the label 10; labels are 0 to 9"):
        read_cifar10_batch(bytes(content), "a batch")


def test_the_archive_gives_both_splits_in_the_order_of_its_batches(archive):
    members, splits = make_members(), read_cifar10(archive)
    assert [len(splits[name].labels) for name in ("train", "test")] == [100, 20]
    assert splits["train"].classes == tuple(NAMES)
    for number, name in enumerate(BATCHES[:5]):
        images, labels = read_cifar10_batch(members[name], name)
        part = slice(20 * number, 20 * (number + 1))
        assert torch.equal(splits["train"].images[part], images)
        assert torch.equal(splits["train"].labels[part], labels)
    assert torch.equal(splits["test"].images, read_cifar10_batch(members["test_batch.bin"], "")[0])


@pytest.mark.parametrize("missing", ["data_batch_3.bin", "batches.meta.txt"])
def test_an_archive_without_one_of_its_files_is_refused(tmp_path, missing):
    members = make_members()
    del members[missing]
    with pytest.raises(DatasetError, match=f"lacks {re.escape(missing)}"):
        read_cifar10(write_archive(tmp_path / "a.tar.gz", members))


def test_other_class_names_are_refused(tmp_path):
    members = make_members() | {"batches.meta.txt": b"cat\ndog\n"}
    with pytest.raises(DatasetError, match="names 2 classes; CIFAR-10 has 10"):
        read_cifar10(write_archive(tmp_path / "a.tar.gz", members))


@pytest.mark.parametrize("kept", [0, 5, 1000, 0.5, 0.99])
def test_an_archive_that_is_cut_short_is_refused(archive, kept):
    content = archive.read_bytes()
    archive.write_bytes(content[: int(kept * len(content)) if kept < 1 else kept])
    with pytest.raises(DatasetError, match=r"delete it or copy it again|lacks"):
        read_cifar10(archive)


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "a.tar.gz").write_text("<html>not found</html>")
    for path in (tmp_path / "a.tar.gz", tmp_path / "absent.tar.gz"):
        with pytest.raises(DatasetError, match=r"cannot be read as cifar-10-binary\.tar\.gz"):
            read_cifar10(path)


def test_an_archive_writes_nothing_wherever_its_paths_point(tmp_path):
    (tmp_path / "deep").mkdir()
    path = write_archive(tmp_path / "deep" / "a.tar.gz", make_members(), folder="../")
    before = sorted(tmp_path.rglob("*"))
    assert len(read_cifar10(path)["train"].labels) == 100
    assert sorted(tmp_path.rglob("*")) == before


def test_an_archive_that_unpacks_to_more_than_cifar10_is_refused_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "MOST_BYTES", 2**16)
    members = {"data_batch_1.bin": bytes(2**20)}  # zeros take a thousandth of their size in the archive
    path = write_archive(tmp_path / "a.tar.gz", members)
    assert path.stat().st_size < 2**12
    with pytest.raises(DatasetError, match=r"a\.tar\.gz unpacks to more than .* delete it"):
        read_cifar10(path)


def test_a_link_is_not_taken_for_a_batch(tmp_path):
    members = make_members()
    content = members.pop("data_batch_1.bin")
    (tmp_path / "data_batch_1.bin").write_bytes(content)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        link = tarfile.TarInfo("data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "data_batch_1.bin")
        archive.addfile(link)
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(DatasetError, match=r"lacks data_batch_1\.bin"):
        read_cifar10(tmp_path / "a.tar.gz")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine that has a small archive, and the constants that point there."""
    folder = tmp_path / "served"
    folder.mkdir()
    archive = write_archive(folder / "cifar-10-binary.tar.gz", make_members())

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http_server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{http_server.server_port}/cifar-10-binary.tar.gz"
    monkeypatch.setattr(Images, "CIFAR10_URL", url)
    monkeypatch.setattr(Images, "CIFAR10_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    yield archive
    http_server.shutdown()
    http_server.server_close()


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(Images, "CIFAR10_URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")  # nobody listens


def test_the_archive_is_downloaded_once_and_then_read_from_disk(server, tmp_path):
    path = fetch_cifar10(tmp_path / "Data")
    assert path.read_bytes() == server.read_bytes()
    server.unlink()
    assert fetch_cifar10(tmp_path / "Data") == path
    splits = load_images(replace(SMOKE_IMAGES, source="cifar10"), tmp_path / "Data")
    sizes = [len(split.labels) for split in (splits.train, splits.validation, splits.test)]
    assert (splits.name, splits.shape, sizes) == ("CIFAR-10", (3, 32, 32), [90, 10, 20])
    assert splits.mirrored and splits.classes == tuple(NAMES)


def test_what_arrives_damaged_is_refused_and_not_kept(server, tmp_path, monkeypatch):
    monkeypatch.setattr(Images, "CIFAR10_MD5", "0" * 32)
    with pytest.raises(DatasetError, match="does not have the MD5 0000"):
        load_images(replace(SMOKE_IMAGES, source="auto"), tmp_path / "Data")
    assert not list((tmp_path / "Data").iterdir())


def test_a_file_that_is_not_the_archive_is_an_error_even_without_a_network(no_network, tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"half of it")
    with pytest.raises(DatasetError, match=r"is not the file of .* delete it or copy it again"):
        load_images(replace(SMOKE_IMAGES, source="auto"), tmp_path)


def test_without_a_network_a_sentence_says_where_to_put_the_file(no_network, tmp_path):
    with pytest.raises(DownloadError, match=r"fetch http://.* where there is a network and put it into"):
        load_images(replace(SMOKE_IMAGES, source="cifar10"), tmp_path)


def test_a_server_without_the_file_is_like_no_network(server, tmp_path):
    server.unlink()
    with pytest.raises(DownloadError, match="HTTPError"):
        fetch_cifar10(tmp_path / "Data")


def test_without_a_network_auto_takes_the_digits_and_says_so(no_network, tmp_path, caplog):
    logger = logging.getLogger("MA_DDPM")
    logger.addHandler(caplog.handler)
    try:
        splits = load_images(replace(SMOKE_IMAGES, source="auto"), tmp_path)
    finally:
        logger.removeHandler(caplog.handler)
    assert splits.name == "digits, not CIFAR-10"
    warning = next(record for record in caplog.records if record.levelno == logging.WARNING).message
    assert "nothing that follows is about CIFAR-10" in warning and str(tmp_path) in warning


def test_the_published_checksum_and_address_are_set():
    assert Images.CIFAR10_URL == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert Images.CIFAR10_MD5 == "c32a1d4ab5d03f1284b67883e8d87530"


def test_digits_are_split_alike_by_class_without_overlap():
    splits = load_digits(SMOKE_IMAGES)
    parts = (splits.train, splits.validation, splits.test)
    assert splits.shape == (1, 32, 32) and not splits.mirrored
    assert sum(len(part.labels) for part in parts) == 1797
    assert all(part.images.dtype == torch.uint8 and len(part.labels.unique()) == 10 for part in parts)
    counts = torch.stack([part.labels.bincount() for part in parts]).double()
    shares = counts / counts.sum(0)
    assert torch.allclose(shares, torch.tensor([[0.72], [0.08], [0.2]]).double(), atol=0.01)
    assert splits.fingerprint() == load_digits(SMOKE_IMAGES).fingerprint()
    assert splits.fingerprint() != load_digits(replace(SMOKE_IMAGES, split_seed=1)).fingerprint()


def test_digits_look_like_the_small_ones():
    from sklearn.datasets import load_digits as small_digits

    whole = replace(SMOKE_IMAGES, test_fraction=0.999, validation_fraction=0.5)
    test = load_digits(whole).test
    small = torch.from_numpy(small_digits().images)
    averages = torch.nn.functional.avg_pool2d(test.images.float(), 4)[:, 0] / 255 * 16
    nearest = torch.cdist(averages.flatten(1), small.float().flatten(1)).min(1)
    assert nearest.values.max() < 20 and len(nearest.indices.unique()) > 0.99 * len(averages)


def test_a_share_of_every_class_is_split_off_and_nothing_lost():
    labels = torch.tensor([0] * 30 + [1] * 10 + [2] * 20)
    whole = LabelledImages(torch.arange(60, dtype=torch.uint8).reshape(60, 1, 1, 1), labels, ("a", "b", "c"))
    rest, part = split_off(whole, 0.3, seed=0)
    assert part.labels.bincount().tolist() == [9, 3, 6]
    assert sorted([*rest.images.flatten().tolist(), *part.images.flatten().tolist()]) == list(range(60))
    assert torch.equal(part.labels, labels[part.images.flatten().long()])


def test_bytes_survive_the_way_to_x0_and_back():
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    x0 = to_x0(values)
    assert (x0.min(), x0.max()) == (-1, 1) and torch.equal(to_bytes(x0), values)
    assert to_bytes(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_only_images_that_may_be_are_mirrored_and_the_seed_decides():
    images = torch.arange(32, dtype=torch.uint8).reshape(2, 1, 4, 4)
    split = LabelledImages(images, torch.tensor([3, 4]), ("x",) * 10)
    mirrored, labels = ImageDataset(split, mirrored=True).__getitems__([(0, 6), (0, 7), (1, 8)])
    assert labels.tolist() == [3, 3, 4]
    assert torch.equal(mirrored[0].flip(2), mirrored[1]) and not torch.equal(mirrored[0], mirrored[1])
    assert torch.equal(mirrored[2], to_x0(images[1]))
    plain, _ = ImageDataset(split).__getitems__([(0, 7), (1, 9)])
    assert torch.equal(plain, to_x0(images))


def test_loaders_resume_where_they_stopped_and_validate_a_spread_of_classes():
    splits = load_digits(SMOKE_IMAGES)
    options = {"batch_size": 4, "seed": 5}
    whole, validation = image_loaders(splits, 16, **options)
    later, _ = image_loaders(splits, 16, start_step=3, **options)
    whole = iter(whole)
    for _ in range(3):
        next(whole)
    x0, labels = next(whole)
    x0_later, labels_later = next(iter(later))
    assert torch.equal(x0, x0_later) and torch.equal(labels, labels_later)
    assert x0.shape == (4, 1, 32, 32) and x0.min() >= -1 and x0.max() <= 1
    seen = torch.cat([labels for _, labels in validation])
    assert torch.equal(seen, spread_images(splits.validation, 16).labels)


@pytest.mark.parametrize("preset", PRESETS)
def test_smoke_alone_never_tries_the_network(preset):
    assert (IMAGES.get(preset, BASE_IMAGES).source == "digits") == (preset == "SMOKE")


@pytest.mark.parametrize(
    "setting, value, reason",
    [
        ("source", "mnist", "choose one of auto, cifar10, digits"),
        ("test_fraction", 1.0, r"test_fraction=1.0 must be within \(0, 1\)"),
        ("num_samples", 1, "num_samples=1 must be 2 or more"),
        ("unet", replace(SMOKE_IMAGES.unet, num_classes=0), "num_classes=0 must be 10"),
        ("unet", replace(SMOKE_IMAGES.unet, patch_size=(64, 1)), "'unet' does not fit images of 32x32"),
        ("networks", ("unet", "unet_v9"), "choose one of unet, conv_unet_450k"),
        ("guidance", replace(SMOKE_IMAGES.guidance, method="autoguidance"), "choose none or classifier_free"),
    ],
)
def test_impossible_settings_are_refused(setting, value, reason):
    with pytest.raises(ValueError, match=reason):
        replace(SMOKE_IMAGES, **{setting: value})
