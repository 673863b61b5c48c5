"""Files of arrays and arrays of a user's own: what is read of them, and what is refused."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ffstream as ff
from ffstream.data import SOURCES, Dataset, Split, fit_images, load_dataset
from tests.data.array_files import CLASSES, arrays, labelled, save

# --- names and types


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


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float16, np.float64, np.bool_])
def test_images_of_any_number_type_train(dtype, tmp_path):
    content = {key: value.astype(dtype) if "images" in key else value for key, value in arrays().items()}
    config = ff.Config(data=save(tmp_path / "data.npz", content), layers=1, width=8, epochs=1, device="cpu")
    run = ff.train(config.override({"negatives.per_step": 2}), tmp_path / "run")
    assert run.evaluate().num_samples == 6


@pytest.mark.parametrize("dtype", [">f4", "<f8", "u2", "i8", "?", "f2"])
def test_images_of_numpy_are_predicted(dtype, small_config, tmp_path):
    run = ff.train(small_config(layers=2, epochs=1), tmp_path / "run")
    images = (np.arange(3 * 64).reshape(3, 8, 8) % 17).astype(dtype)
    expected = run.predict(torch.from_numpy(images.astype(np.float32)))
    assert torch.equal(run.predict(images).labels, expected.labels)
    with pytest.raises(ff.DataError, match="allowed numbers"):
        run.predict(np.array([["a"]]))


@pytest.mark.filterwarnings("ignore::UserWarning")  # nested and masked tensors are prototypes
@pytest.mark.parametrize("part", ["images", "labels", "negatives"])
def test_an_own_source_of_nested_tensors_is_refused_and_one_of_noted_negations_is_read(part, monkeypatch):
    arrays = {"images": torch.rand(20, 4), "labels": torch.arange(20) % 2, "negatives": torch.rand(20, 2, 4)}

    def load(**other):
        split = Split(**arrays | other)
        monkeypatch.setitem(SOURCES._parts, "own", lambda _: Dataset("own", split, None, ("a", "b")))
        return load_dataset("own")

    nested = torch.nested.nested_tensor(list(arrays[part].flatten(1) if part != "labels" else arrays[part].view(20, 1)))
    with pytest.raises(ff.DataError, match=f"data own: train {part}: found a nested tensor"):
        load(**{part: nested})
    negated = torch._neg_view(-arrays[part])
    assert load(**{part: negated}).digest() == load().digest()
    conjugate = torch.complex(arrays[part].float(), -arrays[part].float()).conj().imag
    assert load(**{part: conjugate}).digest() == load().digest()


def test_images_of_every_other_kind_are_taken_without_a_word(recwarn):
    images = np.random.default_rng(0).random((3, 8)).astype(np.float32)
    fixed = images.copy()
    fixed.flags.writeable = False
    learnt = torch.from_numpy(images).requires_grad_()
    masked = np.ma.masked_greater(images, 9)  # none of them
    for each in (images, fixed, learnt, images.astype(">f4"), np.asfortranarray(images), masked):
        assert torch.equal(fit_images(each, (8,), "images").float(), torch.from_numpy(images))
    assert not list(recwarn)


def test_a_file_without_a_test_split_has_none(tmp_path):
    dataset = load_dataset(save(tmp_path / "data.npz", arrays(**{"test.images": None, "test.labels": None})))
    assert dataset.test is None


# --- what is refused


def spoilt(array, value):
    changed = array.astype(np.float32)
    changed[2, 1, 1] = value
    return changed


BAD_ARRAYS = {
    "nan": ({"train.images": spoilt(arrays()["train.images"], np.nan)}, "train image 2 holds a value that is not fin"),
    "inf in test": ({"test.images": spoilt(arrays()["test.images"], np.inf)}, "test image 2 holds"),
    "real targets": ({"train.labels": np.arange(30) / 7}, "array train.labels: holds targets such as 0.142857"),
    "negative labels": ({"train.labels": np.arange(30) - 1}, "train label of sample 0 is -1"),
    "one class": ({"train.labels": np.zeros(30, int)}, "one class only"),
    "labels with gaps": ({"train.labels": np.arange(30) * 10**9}, "number them without gaps"),
    "test label beyond": ({"test.labels": np.full(6, 3)}, "test label of sample 0 is 3, allowed 0 to 2"),
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


@pytest.mark.filterwarnings("ignore::UserWarning")  # nested and masked tensors are prototypes
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x: np.ma.masked_greater(x, 0.9), "masked"),
        (lambda x: torch.from_numpy(x).to_sparse(), "sparse"),
        (lambda x: torch.nested.nested_tensor(list(torch.from_numpy(x))), "nested"),
        (lambda x: torch.nested.nested_tensor(list(torch.from_numpy(x)), layout=torch.jagged), "nested"),
        (lambda x: torch.masked.masked_tensor(torch.from_numpy(x), torch.from_numpy(x < 0.9)), "masked"),
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
