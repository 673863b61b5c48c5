"""Files as torchvision's data sets have them, of noise."""

from __future__ import annotations

from hashlib import md5

import numpy as np
import torchvision.datasets


def write_idx(path, array):
    """As MNIST and its kin are published, unpacked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes())


def write_idx_set(folder):
    noise = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    for part, images in (("train", noise[:20]), ("t10k", noise[20:])):
        write_idx(folder / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(len(images)) % 10)


def short(text):
    """A string, as Python 2 pickles it."""
    return b"U" + bytes([len(text)]) + text.encode()


CIFAR_NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()
# The published file, byte for byte, and batches as they are published, pickled by Python 2.
CIFAR_META = (
    b"\x80\x02}q\x01(" + short("num_cases_per_batch") + b"q\x02M\x10'" + short("label_names") + b"q\x03]q\x04("
    + b"".join(short(name) + b"q" + bytes([5 + number]) for number, name in enumerate(CIFAR_NAMES))
    + b"e" + short("num_vis") + b"q\x0fM\x00\x0cu."
)  # fmt: skip


def cifar_batch(pixels):
    num_images = len(pixels)
    return (
        b"\x80\x02}q\x01(" + short("batch_label") + b"q\x02" + short("training batch 1 of 5") + b"q\x03"
        + short("labels") + b"q\x04]q\x05(" + b"".join(b"K" + bytes([n % 10]) for n in range(num_images)) + b"e"
        + short("data") + b"q\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85"
        + short("b") + b"\x87Rq\x09(K\x01K" + bytes([num_images]) + b"M\x00\x0c\x86cnumpy\ndtype\nq\x0a"
        + short("u1") + b"K\x00K\x01\x87Rq\x0b(K\x03" + short("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + b"\x89T" + pixels.nbytes.to_bytes(4, "little") + pixels.tobytes() + b"tb"
        + short("filenames") + b"q\x0c]q\x0d(" + short("a.png") + b"q\x0er\x0f\x00\x00\x00h\x0eeu."
    )  # fmt: skip


def write_cifar(folder, monkeypatch):
    """Batches as CIFAR-10 is published in, and torchvision told that they are what was published."""
    archive = torchvision.datasets.CIFAR10
    folder.mkdir(parents=True)
    generator, digests = np.random.default_rng(0), {}
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for name in names:
        content = cifar_batch(generator.integers(0, 256, (10, 3072), dtype=np.uint8))
        (folder / name).write_bytes(content)
        digests[name] = md5(content).hexdigest()
    (folder / "batches.meta").write_bytes(CIFAR_META)
    monkeypatch.setattr(archive, "train_list", [[name, digests[name]] for name in names[:5]])
    monkeypatch.setattr(archive, "test_list", [["test_batch", digests["test_batch"]]])
