"""Data sets: what each source gives, and a clear refusal for everything else."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
import urllib.error
import zipfile
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

import ffstream as ff
from ffstream.data import SOURCES, Dataset, Split, fit_images, load_dataset, split_validation
from ffstream.data.dataset import check_dataset
from ffstream.data.values import Values, find_other_units
from tests.helpers import run_cli, write_pictures


def arrays(num_samples=30, **changes):
    generator = np.random.default_rng(0)
    made = {
        "train.images": generator.integers(0, 256, (num_samples, 4, 4), dtype=np.uint8),
        "train.labels": np.arange(num_samples) % 3,
        "test.images": generator.integers(0, 256, (6, 4, 4), dtype=np.uint8),
        "test.labels": np.arange(6) % 3,
    }
    return {key: value for key, value in (made | changes).items() if value is not None}


def save(path, content):
    np.savez(path, **content)
    return str(path)


def test_embedded_digits_are_the_official_split(digits):
    assert digits.train.images.shape == (3823, 8, 8)
    assert digits.test.images.shape == (1797, 8, 8)
    assert digits.num_classes == 10
    assert digits.scale() == 16
    assert int(digits.train.images.min()) == 0
    assert digits.train.labels.bincount().tolist() == [376, 389, 380, 389, 387, 376, 377, 387, 380, 382]


@pytest.mark.parametrize("names", ["{}.images {}.labels", "{}_images {}_labels", "x_{} y_{}"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_arrays_are_found_under_the_names_in_use(names, suffix, tmp_path):
    content = arrays()
    renamed = {}
    for part in ("train", "test"):
        for name, what in zip(names.format(part, part).split(), ("images", "labels"), strict=True):
            renamed[name] = content[f"{part}.{what}"]
    path = tmp_path / f"data{suffix}"
    if suffix == ".npz":
        np.savez(path, **renamed)
    else:
        save_file({key: torch.from_numpy(value) for key, value in renamed.items()}, path)
    dataset = load_dataset(str(path))
    assert np.array_equal(dataset.train.images.numpy(), content["train.images"])
    assert dataset.test.labels.tolist() == content["test.labels"].tolist()
    assert dataset.num_classes == 3


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float16, np.float64, np.bool_])
def test_images_of_any_number_type_train(dtype, tmp_path):
    content = {key: value.astype(dtype) if "images" in key else value for key, value in arrays().items()}
    config = ff.Config(data=save(tmp_path / "data.npz", content), layers=1, width=8, epochs=1, device="cpu")
    run = ff.train(config.override({"negatives.per_step": 2}), tmp_path / "run")
    assert run.evaluate().num_samples == 6


def spoilt(array, value):
    changed = array.astype(np.float32)
    changed[2, 1, 1] = value
    return changed


BAD_ARRAYS = {
    "nan": ({"train.images": spoilt(arrays()["train.images"], np.nan)}, "train image 2 holds a value that is not fin"),
    "inf in test": ({"test.images": spoilt(arrays()["test.images"], np.inf)}, "test image 2 holds"),
    "real targets": ({"train.labels": np.arange(30) / 7}, "array train.labels: holds targets such as 0.142857"),
    "negative labels": ({"train.labels": np.arange(30) - 1}, "train labels go down to -1"),
    "one class": ({"train.labels": np.zeros(30, int)}, "one class only"),
    "labels with gaps": ({"train.labels": np.arange(30) * 10**9}, "number them without gaps"),
    "test label beyond": ({"test.labels": np.full(6, 3)}, "test labels go up to 3, allowed 0 to 2"),
    "too few labels": ({"train.labels": np.arange(29) % 3}, r"labels have shape \(29,\), allowed \(30,\)"),
    "no images": (
        {"train.images": np.zeros((0, 4, 4)), "train.labels": np.zeros(0, int)},
        r"shape \(0, 4, 4\), allowed",
    ),
    "no pixels": ({"train.images": np.zeros((30, 0))}, "images have shape"),
    "scalars": ({"train.images": np.zeros(30)}, "images have shape"),
    "test of another shape": ({"test.images": np.zeros((6, 5, 4))}, "both must be the same"),
    "labels missing": ({"train.labels": None}, "train.labels is missing"),
    "nothing known": (dict.fromkeys(arrays()) | {"a": np.zeros(3)}, "needs train.images and train.labels"),
    "objects": ({"train.images": np.array([{}] * 30)}, "cannot be read as .npz"),
    "strings": ({"train.labels": np.array(["a"] * 30)}, "cannot be read as .npz"),
    "complex": ({"train.images": np.zeros((30, 4), complex)}, "allowed real numbers"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays_are_refused_saying_what_and_where(name, tmp_path):
    changes, message = BAD_ARRAYS[name]
    path = save(tmp_path / "data.npz", arrays(**changes))
    with pytest.raises(ff.DataError, match=message) as caught:
        load_dataset(path)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_truncated_and_foreign_files_are_refused(suffix, tmp_path):
    path = tmp_path / f"data{suffix}"
    good = tmp_path / f"good{suffix}"
    if suffix == ".npz":
        np.savez(good, **arrays())
    else:
        save_file({key: torch.from_numpy(value) for key, value in arrays().items()}, good)
    for data in (b"", b"hello", good.read_bytes()[:-100], good.read_bytes()[:40]):
        path.write_bytes(data)
        with pytest.raises(ff.DataError, match="cannot be read"):
            load_dataset(str(path))


def test_validation_is_disjoint_covers_all_and_follows_the_seed(digits):
    train, validation = split_validation(digits, 0.1, seed=0)
    assert (len(train), len(validation)) == (3441, 382)
    together = torch.cat([train.images, validation.images]).flatten(1)
    rows = sorted(map(bytes, together.numpy()))
    assert rows == sorted(map(bytes, digits.train.images.flatten(1).numpy()))
    assert torch.equal(train.labels, split_validation(digits, 0.1, seed=0)[0].labels)
    assert not torch.equal(train.labels, split_validation(digits, 0.1, seed=1)[0].labels)


def test_no_validation_trains_without_one_and_a_part_left_empty_is_refused(tmp_path, small_config):
    run = ff.train(small_config(validation_fraction=0.0), tmp_path / "run")
    assert run.layers[-1].validation_error is None
    assert run.evaluate().num_samples == 100
    tiny = Dataset("tiny", Split(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])), None, ("a", "b"))
    with pytest.raises(ff.DataError, match="leaves one part empty"):
        split_validation(tiny, 0.01, 0)


def test_the_digest_knows_images_labels_and_shape(digits):
    altered = digits.train.labels.clone()
    altered[0] += 1
    others = [
        Dataset("d", Split(digits.train.images, altered), None, digits.class_names),
        Dataset("d", Split(digits.train.images.flatten(1), digits.train.labels), None, digits.class_names),
    ]
    assert len({digits.digest(), *(other.digest() for other in others)}) == 3


def test_the_test_data_have_a_digest_of_their_own(digits):
    other = Split(digits.test.images, digits.test.labels.roll(1))
    assert digits.digest() == "8510cb3366da1f9d788b3b7d0f632445c07d29418e1c78863311ff45aff7787d"
    assert digits.test_digest() == Dataset("d", digits.test, None, digits.class_names).digest()
    assert dataclasses.replace(digits, test=other).test_digest() != digits.test_digest()
    assert dataclasses.replace(digits, test=other).digest() == digits.digest()
    assert dataclasses.replace(digits, test=None).test_digest() is None


def test_without_network_and_files_the_error_says_which_files_go_where(tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)
    with pytest.raises(ff.DataError) as caught:
        load_dataset("mnist", str(tmp_path), download=True)
    for expected in ("train-images-idx3-ubyte.gz", "MNIST/raw", str(tmp_path), "--data digits"):
        assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


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


IDX_SETS = [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")]


@pytest.mark.parametrize(("name", "class_name"), [*IDX_SETS, ("cifar10", "CIFAR10")])
def test_torchvision_sets_are_read_as_torchvision_reads_them(name, class_name, tmp_path, monkeypatch):
    if name == "cifar10":
        write_cifar(tmp_path / "cifar-10-batches-py", monkeypatch)
    else:
        write_idx_set(tmp_path / class_name / "raw")
    before = sorted(tmp_path.rglob("*"))
    dataset = load_dataset(name, str(tmp_path))
    for split, is_train in ((dataset.train, True), (dataset.test, False)):
        wanted = getattr(torchvision.datasets, class_name)(str(tmp_path), train=is_train)
        assert torch.equal(split.images, torch.as_tensor(wanted.data))
        assert torch.equal(split.labels, torch.as_tensor(wanted.targets))
        assert dataset.class_names == tuple(wanted.classes)
    assert dataset.name == name
    assert split.images.dtype == torch.uint8
    assert split.images.is_contiguous()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist", "cifar10"])
def test_nothing_is_fetched_or_made_unless_download_says_so(name, tmp_path, monkeypatch):
    fetched = []
    for module in ("mnist", "cifar"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.download_and_extract_archive", lambda *given, **_: fetched.append(given)
        )
    with pytest.raises(ff.DataError, match=f"data {name}: .*add --download .*--data-root") as caught:
        load_dataset(name, str(tmp_path / "root"))
    assert "\n" not in str(caught.value)
    assert not fetched
    assert not (tmp_path / "root").exists()
    with pytest.raises(ff.DataError):  # what should have been fetched is not there either
        load_dataset(name, str(tmp_path / "root"), download=True)
    assert fetched


def test_download_fetches_what_is_missing(tmp_path, monkeypatch):
    def unpack(_url, download_root, **_options):
        write_idx_set(Path(download_root))

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", unpack)
    fetched = load_dataset("kmnist", str(tmp_path), download=True)
    assert fetched.digest() == load_dataset("kmnist", str(tmp_path)).digest()


@pytest.mark.skipif("FFSTREAM_TEST_MNIST" not in os.environ, reason="FFSTREAM_TEST_MNIST names no MNIST archives")
def test_mnist_from_its_official_archives_trains(tmp_path):
    source = Path(os.environ["FFSTREAM_TEST_MNIST"]) / "MNIST" / "raw"
    assert source.is_dir(), "FFSTREAM_TEST_MNIST names a folder that holds MNIST/raw"
    assert len(list(source.glob("*-ubyte.gz"))) == 4, "the four archives lie in MNIST/raw"
    shutil.copytree(source, tmp_path / "MNIST" / "raw", copy_function=shutil.copyfile)
    dataset = load_dataset("mnist", str(tmp_path), download=True)
    assert dataset.train.images.shape == (60000, 28, 28)
    assert len(dataset.test) == 10000
    assert load_dataset("mnist", str(tmp_path)).digest() == dataset.digest()
    config = ff.Config(data="mnist", data_root=str(tmp_path), layers=2, width=128, epochs=1, device="cpu")
    assert ff.train(config, tmp_path / "run").evaluate().error < 0.12


def test_what_is_not_there_is_refused_naming_it(tmp_path):
    for name in ("absent.npz", "absent.safetensors"):
        with pytest.raises(ff.DataError, match=f"{name}: no such file"):
            load_dataset(str(tmp_path / name))
    with pytest.raises(ff.DataError, match="neither a known data set.*did you mean 'digits'"):
        load_dataset("digit")


@pytest.mark.parametrize(
    "name", ["x" * 300, "é" * 200, "x" * 300 + "/a.npz", "x/" * 3000 + "a", "a\0b", "é" * 200 + ".npz"]
)
def test_a_name_that_no_file_can_have_is_refused(name):
    with pytest.raises(ff.DataError, match="neither a known data set, nor a file to read: "):
        load_dataset(name)


def test_a_pickle_is_refused_and_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    (tmp_path / "a.npz").write_bytes(pickle.dumps(Trap()))
    save(tmp_path / "b.npz", arrays() | {"train.images": np.array([Trap()] * 30, dtype=object)})
    for name in ("a.npz", "b.npz"):
        with pytest.raises(ff.DataError, match="cannot be read as .npz"):
            load_dataset(str(tmp_path / name))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("kind", ["stored.npz", "compressed.npz", "data.safetensors"])
def test_a_file_with_any_byte_altered_is_read_or_refused_and_nothing_else(kind, tmp_path):
    content = arrays(num_samples=6, **{"test.images": None, "test.labels": None})
    path = tmp_path / kind
    if path.suffix == ".safetensors":
        save_file({key: torch.from_numpy(value) for key, value in content.items()}, path)
    else:
        (np.savez_compressed if kind == "compressed.npz" else np.savez)(path, **content)
    data, escaped = path.read_bytes(), {}
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x81]) + data[position + 1 :])
        try:
            load_dataset(str(path))
        except ff.DataError:
            pass
        except Exception as error:
            escaped.setdefault(type(error).__name__, (position, str(error)))
    assert not escaped


def test_an_array_that_claims_more_than_all_memory_is_refused(tmp_path):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000000, 4), }\n"
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as file:
        member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
        file.writestr("train.images.npy", member)
        file.writestr("train.labels.npy", member)
    with pytest.raises(ff.DataError, match="cannot be read as .npz"):
        load_dataset(str(tmp_path / "data.npz"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_that_are_not_finite_are_refused_in_safetensors_too(value, dtype, tmp_path):
    content = {key: torch.from_numpy(array) for key, array in arrays().items()}
    content["train.images"] = content["train.images"].to(dtype)
    content["train.images"][7, 3, 0] = value
    save_file(content, tmp_path / "data.safetensors")
    with pytest.raises(ff.DataError, match="train image 7 holds a value that is not finite"):
        load_dataset(str(tmp_path / "data.safetensors"))


def test_a_file_without_a_test_split_has_none(tmp_path):
    dataset = load_dataset(save(tmp_path / "data.npz", arrays(**{"test.images": None, "test.labels": None})))
    assert dataset.test is None


def test_a_class_without_a_training_image_is_refused_before_anything_is_written(tmp_path):
    gap = save(tmp_path / "gap.npz", arrays(**{"train.labels": np.arange(30) % 3 * 2}))
    config = ff.Config(data=gap, layers=1, width=8, epochs=1).override({"negatives.per_step": 1})
    with pytest.raises(ff.DataError, match=r"found no training image of class '1' \(label 1\) and 1 more, allowed one"):
        ff.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_class_that_the_validation_split_takes_away_is_refused(tmp_path):
    labels = {"train.labels": np.arange(30) // 29, "test.labels": np.zeros(6, int)}
    rare = save(tmp_path / "rare.npz", arrays(**labels))
    config = ff.Config(data=rare, layers=1, width=8, epochs=1, validation_fraction=0.9)
    config = config.override({"negatives.per_step": 1})
    dataset = load_dataset(rare)
    kept = [1 in split_validation(dataset, 0.9, seed)[0].labels for seed in range(20)]
    seed = kept.index(False)
    with pytest.raises(ff.DataError, match=r"class '1' \(label 1\), allowed one .*lower validation_fraction"):
        ff.make_plan(dataclasses.replace(config, seed=seed), tmp_path / "run")


def test_a_class_without_a_test_image_is_a_row_of_zeros(tmp_path):
    data = save(tmp_path / "data.npz", arrays(**{"test.labels": np.array([0, 0, 0, 2, 2, 2])}))
    config = ff.Config(data=data, layers=1, width=8, epochs=1).override({"negatives.per_step": 1})
    found = ff.train(config, tmp_path / "run").evaluate()
    assert [sum(row) for row in found.confusion] == [3, 0, 3]


@settings(max_examples=50, deadline=None)
@given(num_samples=st.integers(1, 200), fraction=st.floats(0, 0.999), seed=st.integers(0, 99))
def test_any_fraction_covers_all_once_or_is_refused(num_samples, fraction, seed):
    numbers = torch.arange(num_samples)
    dataset = Dataset("d", Split(numbers.float().unsqueeze(1), numbers), None, ("a", "b"))
    try:
        train, validation = split_validation(dataset, fraction, seed)
    except ff.DataError:
        assert fraction > 0
        assert round(num_samples * fraction) in (0, num_samples)
        return
    assert sorted([*train.labels.tolist(), *validation.labels.tolist()]) == numbers.tolist()
    assert len(validation) == round(num_samples * fraction)
    for part in (train, validation):  # each image keeps its label
        assert torch.equal(part.images[:, 0], part.labels.float())


# --- data that were moved


@pytest.fixture(params=["arrays", "folder"])
def moved(request, small_data, tmp_path):
    """A run, and where its data are by now."""
    if request.param == "arrays":
        name = "d.safetensors"
        (tmp_path / "old").mkdir()
        shutil.copy(small_data, tmp_path / "old" / name)
    else:
        name, images = "pictures", np.random.default_rng(0).integers(0, 256, (40, 6, 5), dtype=np.uint8)
        for part, of_part in (("train", images[:30]), ("test", images[30:])):
            write_pictures(tmp_path / "old" / name / part, {"a": of_part[::2], "b": of_part[1::2]})
    config = ff.Config(data=str(tmp_path / "old" / name), layers=2, width=8, epochs=1, device="cpu")
    run = ff.train(config, tmp_path / "run")
    (tmp_path / "old").rename(tmp_path / "new")
    return run, tmp_path / "new" / name


def test_data_that_were_moved_are_found_where_they_are_said_to_be(moved):
    run, path = moved
    for arguments in (["evaluate", run.path], ["evaluate", run.path, "--method", "softmax"], ["resume", run.path]):
        code, _, error = run_cli(*arguments)
        assert code == 1
        assert "no such file or folder; if it was moved, say by --data where it is now" in str(error)
        for place in (["--data-root", path.parent], ["--data", path]):
            if arguments[0] == "evaluate":
                assert run_cli(*arguments, *place)[2] is None
    assert run_cli("resume", run.path, "--layers", "3", "--data", path)[0] == 0
    assert run.config.data == str(path)
    assert run_cli("evaluate", run.path)[0] == 0  # from here on it is known


def test_an_output_goes_onto_no_data_that_were_moved(moved, tmp_path):
    run, path = moved
    own = path if path.is_file() else next(path.rglob("*.png"))
    before = own.read_bytes()
    (tmp_path / "out.csv").symlink_to(own)
    np.save(tmp_path / "x.npy", np.zeros((2, *run.directory.read_data().image_shape)))
    place = ["--data-root", path.parent, "--output", tmp_path / "out.csv", "--force"]
    assert isinstance(run_cli("predict", run.path, tmp_path / "x.npy", *place)[2], ff.OutputError)
    assert own.read_bytes() == before


def test_other_data_are_not_taken_for_those_that_were_moved(moved, tmp_path):
    run, _ = moved
    for use in (lambda data: run.evaluate(data=data), lambda data: ff.resume(run.path, layers=3, data=data)):
        with pytest.raises(ff.RunMismatchError, match="other training data"):
            use("digits")
    assert run.config.data != "digits"


# --- labels of all kinds


def labelled(tmp_path, labels, **others):
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 4), dtype=np.uint8)
    return save(tmp_path / "d.npz", {"x_train": images, "y_train": labels} | others)


CLASSES = np.arange(30) % 3
SAME = {
    "(n, 1)": CLASSES[:, None],
    "one-hot": np.eye(3)[CLASSES],
    "one-hot of integers": np.eye(3, dtype=np.uint8)[CLASSES],
    "one-hot of booleans": np.eye(3, dtype=bool)[CLASSES],
    "floats": CLASSES.astype(np.float32),
    "unsigned": CLASSES.astype(np.uint64),
}
OTHERS = {
    "several labels": (np.arange(90).reshape(30, 3) % 2, "several labels a sample, or none"),
    "no label": (np.zeros((30, 3)), "several labels a sample, or none"),
    "real targets": (np.linspace(0, 1, 30), "targets such as .* allowed classes"),
    "vectors": (np.ones((30, 2)) * 0.5, "values that are not 0 or 1"),
    "not finite": (np.full(30, np.inf), "targets such as inf"),
    "missing": (np.where(CLASSES == 1, np.nan, 0.0), "targets such as nan"),
    "strings": (np.array(["a", "b", "c"])[CLASSES], "y_train"),
    "objects": (np.array(["a", "b", "c"], dtype=object)[CLASSES], "y_train"),
    "dates": (np.full(30, "2020-01-01", dtype="datetime64[D]"), "y_train"),
    "few": (CLASSES[:20], r"labels have shape \(20,\)"),
    "below 0": (CLASSES - 1, "go down to -1"),
}


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize("own", [False, True])
def test_labels_that_say_the_same_are_the_same(kind, own, tmp_path, monkeypatch):
    expected = load_dataset(labelled(tmp_path, CLASSES))
    found = load_own(monkeypatch, SAME[kind]) if own else load_dataset(labelled(tmp_path, SAME[kind]))
    assert (found.digest(), found.warning, found.class_names) == (expected.digest(), None, ("0", "1", "2"))


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("own", [False, True])
def test_targets_that_are_no_classes_are_refused_naming_the_array(kind, own, tmp_path, monkeypatch):
    labels, message = OTHERS[kind]
    with pytest.raises(ff.DataError, match=message.replace("y_train", "labels") if own else message) as caught:
        load_own(monkeypatch, labels) if own else load_dataset(labelled(tmp_path, labels))
    assert "\n" not in str(caught.value)


def load_own(monkeypatch, labels, images=None, names=("0", "1", "2")):
    """A source of the user's own, which gives arrays of numpy."""
    if images is None:
        images = np.random.default_rng(0).integers(0, 256, (30, 4, 4), dtype=np.uint8)
    monkeypatch.setitem(SOURCES._parts, "own", lambda _: Dataset("own", Split(images, labels), None, names))
    return load_dataset("own")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.full((30, 4), np.nan), CLASSES, "not finite"),
        (np.zeros((30, 4), dtype=complex), CLASSES, "allowed real numbers"),
        (np.array([["a"]] * 30), CLASSES, "found .*, allowed numbers"),
        (np.zeros((0, 4)), CLASSES[:0], "have shape"),
        (np.zeros(30), CLASSES, "have shape"),
        (np.zeros((2000, 4)), np.arange(100), "one an image"),
        (np.zeros((30, 4)), CLASSES + 1, "labels go up to 3"),
    ],
)
def test_a_data_set_of_the_users_own_is_held_to_the_same_as_a_file(images, labels, message, monkeypatch):
    with pytest.raises(ff.DataError, match=message) as caught:
        load_own(monkeypatch, labels, images)
    assert str(caught.value).startswith("data own")


@pytest.mark.parametrize(
    "names", [("X_train", "Y_train"), ("Train_Images", "TRAIN_LABELS"), ("train.images", "y_train")]
)
def test_arrays_are_known_in_any_case(names, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 4), dtype=np.uint8)
    expected = load_dataset(labelled(tmp_path, CLASSES))
    found = load_dataset(save(tmp_path / "e.npz", dict(zip(names, (images, CLASSES), strict=True))))
    assert (found.digest(), found.warning) == (expected.digest(), None)


@pytest.mark.parametrize("word", ["val", "valid", "validation"])
def test_validation_arrays_are_the_validation_split(word, tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (9, 4, 4), dtype=np.uint8)
    held_out = {f"x_{word}": images, f"y_{word}": CLASSES[:9]}
    found = load_dataset(labelled(tmp_path, CLASSES, x_test=images, y_test=CLASSES[:9], **held_out))
    assert (len(found.validation), len(found.test), found.warning) == (9, 9, None)
    found = load_dataset(labelled(tmp_path, CLASSES, **held_out))
    assert (found.validation, len(found.test)) == (None, 9)
    assert "taken as the test split" in found.warning


def test_arrays_that_are_not_used_are_named(tmp_path):
    found = load_dataset(labelled(tmp_path, CLASSES, names=np.array(["a", 1], dtype=object), weights=np.ones(30)))
    assert found.warning == "not read: ['names', 'weights']"


@pytest.mark.parametrize("dtype", [">f4", "<f8", "u2", "i8", "?", "f2"])
def test_images_of_numpy_are_predicted(dtype, small_config, tmp_path):
    run = ff.train(small_config(layers=2, epochs=1), tmp_path / "run")
    images = (np.arange(3 * 64).reshape(3, 8, 8) % 17).astype(dtype)
    expected = run.predict(torch.from_numpy(images.astype(np.float32)))
    assert torch.equal(run.predict(images).labels, expected.labels)
    with pytest.raises(ff.DataError, match="allowed numbers"):
        run.predict(np.array([["a"]]))


# --- units

UNITS = {
    "bytes": lambda x: x,
    "0 to 1": lambda x: x / 255.0,
    "mean 0, spread 1": lambda x: (x / 255.0 - 0.1307) / 0.3081,
    "-1 to 1": lambda x: (x / 255.0 - 0.5) / 0.5,
}


def photographs(num_images=200, seed=1):
    """Images of four classes by the half that is brighter or darker."""
    generator, labels = np.random.default_rng(seed), np.arange(num_images) % 4
    images = np.full((num_images, 8, 8), 128.0) + generator.normal(0, 25, (num_images, 8, 8))
    for label in range(4):
        images[labels == label, 4 * (label % 2) : 4 * (label % 2) + 4] += 90 if label < 2 else -90
    return images.clip(0, 255).astype(np.uint8), labels


@pytest.mark.parametrize("of_test", UNITS)
@pytest.mark.parametrize("of_train", UNITS)
def test_a_split_in_other_units_is_named_when_it_is_trained_and_evaluated(of_train, of_test, tmp_path):
    images, labels = photographs()
    arrays = {"x_train": UNITS[of_train](images), "y_train": labels}
    others, _ = photographs(seed=2)
    arrays |= {"x_test": UNITS[of_test](others[:100]), "y_test": labels[:100]}
    path, said = save(tmp_path / "d.npz", arrays), []
    observer = ff.Observer()
    observer.on_warning = said.append
    config = ff.Config(recipe="hinton", data=path, layers=1, width=8, epochs=1, device="cpu")
    run = ff.train(config, tmp_path / "run", observer=observer)
    found, predicted = run.evaluate(), run.predict(arrays["x_test"])
    if of_train == of_test:
        assert (said, found.warning, predicted.warning) == ([], None, None)
    else:
        for text in (*said, found.warning, predicted.warning):
            assert "do not look like those of the training images" in text
        assert len(said) == 1


@pytest.mark.parametrize("name", ["digits"])
def test_nothing_is_said_of_units_that_are_the_same(name):
    assert load_dataset(name).warning is None


@pytest.mark.parametrize("units", UNITS)
def test_pictures_are_read_as_the_arrays_that_they_were(units, tmp_path):
    images, labels = photographs(20)
    images[0, 0, :2] = 0, 255  # black and white are there
    config = ff.Config(data=save(tmp_path / "d.npz", {"x_train": UNITS[units](images), "y_train": labels}))
    config = config.override({"layers": 1, "width": 8, "epochs": 1, "device": "cpu", "validation_fraction": 0.2})
    run = ff.train(config, tmp_path / "run")
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number:02d}.png")
    read = run.load_images(sorted(tmp_path.glob("*.png")))
    np.testing.assert_allclose(read.images.numpy(), UNITS[units](images), atol=1e-5)
    assert (read.note is not None) == (UNITS[units](images).min() < 0)


def test_values_are_measured_in_parts_and_of_few_images_the_magnitude_alone_counts():
    images = torch.rand(9000, 6, generator=torch.Generator().manual_seed(0)) * 3 - 1
    found = Values.of(images)
    assert (found.low, found.high) == (float(images.min()), float(images.max()))
    assert found.mean == pytest.approx(float(images.mean()), abs=0.02)
    assert found.spread == pytest.approx(float(images.std()), abs=0.02)
    assert Values.from_mapping(found.to_mapping()) == found
    white = Values.of(torch.full((1, 6), 2.0))
    assert find_other_units(white, found) is None
    assert find_other_units(Values.of(torch.full((50, 6), 2.0)), found) is not None
    assert find_other_units(Values.of(torch.full((1, 6), 200.0)), found) is not None
    assert (find_other_units(Values.of(torch.full((1, 6), -0.5)), found) is None) == (found.low < 0)  # negative ones


# --- a split in other units than the training images, feature by feature


def table_splits(change, shape=(8,)):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(400, *shape, generator=generator)
    labels = torch.arange(400) % 2
    test = images[200:].clone()
    return check_dataset("d", Split(images[:200], labels[:200]), Split(change(test), labels[200:]))


SHIFTED = {
    "one far from the training images": lambda test: test + 5 * torch.eye(8)[3],
    "one in larger units": lambda test: test * (1 + 99 * torch.eye(8)[3]) - 40 * torch.eye(8)[3],
    "one that does not vary": lambda test: test * (1 - torch.eye(8)[3]) + 0.5 * torch.eye(8)[3],
}


@pytest.mark.parametrize("name", SHIFTED)
def test_a_feature_of_the_test_split_in_other_units_is_named(name):
    assert "feature 3" in table_splits(SHIFTED[name]).warning or "units" in table_splits(SHIFTED[name]).warning


@pytest.mark.parametrize("shape", [(8,), (4, 4), (3, 2, 2)])
def test_of_splits_that_are_alike_nothing_is_said(shape):
    assert table_splits(lambda test: test, shape).warning is None


def test_of_digits_and_few_images_nothing_is_said(digits):
    assert digits.warning is None
    few = dataclasses.replace(digits, test=digits.test.take(torch.arange(20)))
    assert few.warning is None


def test_a_test_split_that_is_the_training_split_is_said(digits):
    assert "3823 of 3823 are training images" in dataclasses.replace(digits, test=digits.train).warning


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x: np.ma.masked_greater(x, 0.9), "masked"),
        (lambda x: torch.from_numpy(x).to_sparse(), "sparse"),
        (lambda x: torch.from_numpy(x).to(torch.float8_e4m3fn), "float8"),
        (lambda x: torch.empty(x.shape, device="meta"), "meta"),
        (lambda x: x.astype(complex), "real numbers"),
        (lambda x: x * 1e300, "too large"),
        (lambda x: np.full(x.shape, np.nan), "not finite"),
    ],
)
def test_images_that_cannot_be_computed_with_are_refused(make, words):
    images = np.random.default_rng(0).random((3, 8))
    with pytest.raises(ff.DataError, match=words):
        fit_images(make(images), (8,), "images")


def test_images_of_every_other_kind_are_taken_without_a_word(recwarn):
    images = np.random.default_rng(0).random((3, 8)).astype(np.float32)
    fixed = images.copy()
    fixed.flags.writeable = False
    learnt = torch.from_numpy(images).requires_grad_()
    masked = np.ma.masked_greater(images, 9)  # none of them
    for each in (images, fixed, learnt, images.astype(">f4"), np.asfortranarray(images), masked):
        assert torch.equal(fit_images(each, (8,), "images").float(), torch.from_numpy(images))
    assert not list(recwarn)


def test_labels_of_complex_numbers_are_refused_by_name(tmp_path):
    images = np.zeros((4, 4), np.uint8)
    np.savez(tmp_path / "d.npz", x_train=images, y_train=np.array([0, 1, 0, 1], complex))
    with pytest.raises(ff.DataError, match="array y_train: found torch.complex128"):
        load_dataset(str(tmp_path / "d.npz"))


# --- features that are nearly always the same


@pytest.mark.parametrize("num_images", [60, 500, 1700])
def test_a_feature_that_is_nearly_always_the_same_may_be_so_in_all_of_a_split(num_images, digits):
    parts = (digits.train, digits.test.take(slice(num_images)))
    inverted = [Split(16 - part.images, part.labels) for part in parts]
    assert check_dataset("inverted", *inverted).warning is None


def test_a_binary_feature_that_is_rare_is_no_other_unit():
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(3000, 6, generator=generator)
    rows[:, 2] = (rows[:, 2] < 0.995).float()
    labels = torch.arange(3000) % 2
    for stop in (2060, 2300, 3000):
        train, test = (Split(rows[part], labels[part]) for part in (slice(2000), slice(2000, stop)))
        assert check_dataset("t", train, test).warning is None


# --- white, of pictures that a run of arrays is asked about


@pytest.mark.parametrize(("largest", "white"), [(1, 1), (16, 16), (200, 255), (255, 255), (1023, 1023)])
def test_white_is_the_largest_value_unless_values_are_bytes(largest, white, digits, tmp_path):
    images = digits.train.images.numpy() / 16 * largest
    np.savez(tmp_path / "d.npz", x_train=images.astype(np.float32), y_train=digits.train.labels.numpy())
    run = ff.train(ff.Config(data=str(tmp_path / "d.npz"), layers=1, width=8, epochs=1), tmp_path / "run")
    Image.new("L", (8, 8), 255).save(tmp_path / "white.png")
    assert float(run.load_images([tmp_path / "white.png"]).images.max()) == pytest.approx(white)


def test_white_is_known_where_the_source_of_the_data_is_not(digits, tmp_path, monkeypatch):
    def source(_root):
        return dataclasses.replace(digits, train=Split(digits.train.images / 16, digits.train.labels), test=None)

    monkeypatch.setitem(SOURCES._parts, "mine", source)
    run = ff.train(ff.Config(data="mine", layers=1, width=8, epochs=1), tmp_path / "run")
    monkeypatch.delitem(SOURCES._parts, "mine")
    Image.new("L", (8, 8), 255).save(tmp_path / "white.png")
    assert float(run.load_images([tmp_path / "white.png"]).images.max()) == 1.0


def test_an_empty_name_of_data_is_refused():
    with pytest.raises(ff.DataError, match="found an empty name"):
        load_dataset("")


# --- images of one class are in the same units


@pytest.mark.parametrize("standardise", ["none", "features", "channels"])
def test_many_images_of_one_class_are_no_other_units(standardise, tmp_path):
    generator = np.random.default_rng(0)
    labels = np.arange(400) % 2
    images = (20 + 180 * labels[:, None, None] + generator.normal(0, 10, (400, 8, 8))).clip(0, 255).astype(np.uint8)
    data = save(tmp_path / "d.npz", {"x_train": images, "y_train": labels})
    run = ff.train(ff.Config(data=data, layers=1, width=16, epochs=1, standardise=standardise), tmp_path / "run")
    for label in (0, 1):
        night = (20 + 180 * label + generator.normal(0, 10, (60, 8, 8))).clip(0, 255).astype(np.uint8)
        assert run.predict(night).warning is None
        assert run.predict(night / 255.0).warning is not None


def test_rare_values_that_a_split_lacks_are_no_other_units():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2000, 12, generator=generator)
    rows[:, 3] = (rows[:, 3] > 2.65).float()
    rows[:, 3] = (rows[:, 3] - rows[:, 3].mean()) / rows[:, 3].std()
    lacking = rows[1000:][rows[1000:, 3] < 1][:60]
    train = Split(rows[:1000], torch.arange(1000) % 2)
    assert check_dataset("t", train, Split(lacking, torch.arange(len(lacking)) % 2)).warning is None


@pytest.mark.parametrize("standardise", ["features", "none"])
def test_a_part_of_the_images_in_other_units_is_named_where_it_matters(standardise, digits, tmp_path):
    images, labels = digits.train.images.float().numpy() * 10, digits.train.labels.numpy()
    mixed, test = images.copy(), digits.test.images.float().numpy() * 10
    mixed[::3] /= 255
    test[5::3] /= 255
    said, observer = [], ff.Observer()
    observer.on_warning = said.append
    config = ff.Config(layers=1, width=16, epochs=1, standardise=standardise)
    for name, each in (("clean", images), ("mixed", mixed)):
        data = save(tmp_path / f"{name}.npz", {"x_train": each, "y_train": labels})
        run = ff.train(dataclasses.replace(config, data=data), tmp_path / name, observer=observer)
        if name == "clean":
            assert said == []
            assert (run.predict(test).warning is None) == (standardise == "none")
            assert standardise == "none" or "image 5, all values are" in run.predict(test).warning
    assert (said == []) == (standardise == "none")
    assert standardise == "none" or "1275 of 3823, such as image 0, all values are" in said[0]
