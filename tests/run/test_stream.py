"""Streams: windows that are learnt one after another, each durable before that, from sources of every kind."""

from __future__ import annotations

import io
import shutil
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ffstream as ff
from ffstream.data.stream_source import PipeSource
from ffstream.errors import CorruptFileError, DataError, RunError, RunMismatchError
from ffstream.run.repair import put_aside
from ffstream.storage.metrics import MetricsFile
from tests.helpers import InterruptAt, check_resumed_equals, layer_digests, run_cli
from tests.run.stream_runs import NUM_SAMPLES, WINDOW, cut, learn


@pytest.fixture(scope="module")
def samples(digits):
    return digits.train.images[:NUM_SAMPLES], digits.train.labels[:NUM_SAMPLES]


@pytest.fixture
def config(small_config):
    return small_config(layers=2, schedule__window_samples=WINDOW, schedule__replays=2, epochs=100)


def write_folder(folder, samples, size=70):
    folder.mkdir()
    for number, (images, labels) in enumerate(cut(samples, size)):
        if number % 2:
            np.savez(folder / f"{number:03d}.npz", x=images.numpy(), y=labels.numpy())
        else:
            save_file({"images": images.clone(), "labels": labels.clone()}, folder / f"{number:03d}.safetensors")
    (folder / ".004.npz.part").write_bytes(b"half written")
    return str(folder)


def write_pipe(samples, size=45):
    pipe = io.BytesIO()
    for images, labels in cut(samples, size):
        np.save(pipe, images.numpy())
        np.save(pipe, labels.numpy())
    pipe.seek(0)
    return pipe


def read_pipe(pipe):
    return ((batch.samples.images, batch.samples.labels) for batch in PipeSource(pipe).read({}))


@pytest.fixture
def whole(config, samples, tmp_path):
    """A run that was left alone."""
    learn(config, cut(samples, 33), tmp_path / "whole", num_classes=10)
    return tmp_path / "whole"


def test_every_source_gives_the_same_bits_however_it_cuts_its_samples(config, samples, whole, tmp_path):
    in_one = iter([samples])
    sources = {"folder": write_folder(tmp_path / "files", samples), "pipe": read_pipe(write_pipe(samples))}
    for name, source in (
        sources | {"one batch": in_one, "lists": ((i.tolist(), y) for i, y in cut(samples, 7))}
    ).items():
        run, listener = learn(config, source, tmp_path / name, num_classes=10)
        assert [figures.num_samples for figures in listener.windows] == [100, 100, 100, 30]
        check_resumed_equals(whole, tmp_path / name)
        assert run.verify() == 2
        assert not (tmp_path / name / "stream").exists()  # what was learnt and has nothing after it


@pytest.mark.parametrize("save_every", ["auto", "0.001s"])
@pytest.mark.parametrize("method", ["on_epoch", "on_step", "on_round", "on_window"])
def test_a_stream_that_is_stopped_anywhere_goes_on_with_the_same_bits(method, save_every, config, samples, tmp_path):
    folder = write_folder(tmp_path / "files", samples)
    config = config.override({"save_every": save_every})
    learn(config, folder, tmp_path / "whole", num_classes=10)
    for number in range(40):
        try:
            ff.stream(
                *(config, folder, tmp_path / "pieces"),
                num_classes=10,
                resume=True,
                observer=InterruptAt(method, number + 1),
            )
            break
        except KeyboardInterrupt:
            ff.Run(tmp_path / "pieces").verify()
    assert number > 0
    check_resumed_equals(tmp_path / "whole", tmp_path / "pieces")


def test_what_a_pipe_gave_is_learnt_although_it_cannot_give_it_again(config, samples, whole, tmp_path):
    """What was read beyond a window is kept with it."""
    pipe = read_pipe(write_pipe(samples))
    for number in range(4):
        with pytest.raises(KeyboardInterrupt):
            learn_until = InterruptAt("on_window", 0)
            ff.stream(config, pipe, tmp_path / "pieces", num_classes=10, resume=number > 0, observer=learn_until)
    learn(config, pipe, tmp_path / "pieces", num_classes=10, resume=True)
    check_resumed_equals(whole, tmp_path / "pieces")


def test_the_error_of_a_window_is_that_of_the_network_before_it(config, samples, tmp_path):
    for num_windows in (1, 2):
        path = tmp_path / f"after-{num_windows}"
        run, listener = learn(config.override({"epochs": num_windows}), iter([samples]), path, num_classes=10)
        assert [figures.number for figures in listener.windows] == list(range(1, num_windows + 1))
        predicted = run.predict(samples[0][num_windows * WINDOW :][:WINDOW], calibrated=False).labels
        wrong = (predicted != samples[1][num_windows * WINDOW :][:WINDOW]).double().mean()
        _, listener = learn(config.override({"epochs": num_windows + 1}), iter(()), path, resume=True)
        (figures,) = listener.windows
        assert (figures.number, figures.error) == (num_windows + 1, pytest.approx(float(wrong)))


def test_a_stream_takes_more_windows_as_more_files_come(config, samples, whole, tmp_path):
    first, later = ([each[part] for each in samples] for part in (slice(0, 100), slice(100, None)))
    folder = tmp_path / "files"
    write_folder(folder, first, 100)
    learn(config, str(folder), tmp_path / "run", num_classes=10)
    np.savez(folder / "500.npz", images=later[0].numpy(), labels=later[1].numpy())
    (folder / "000.safetensors").unlink()  # which was learnt
    ff.resume(tmp_path / "run")
    assert layer_digests(tmp_path / "run") == layer_digests(whole)


def test_a_stream_that_follows_a_folder_waits_for_its_files(config, samples, whole, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()

    def add_files():
        for number, (images, labels) in enumerate(cut(samples, 60)):
            hidden = folder / f".{number}.npz"
            np.savez(hidden, images=images.numpy(), labels=labels.numpy())
            hidden.rename(folder / f"{number}.npz")

    writer = threading.Timer(0.7, add_files)
    writer.start()
    follow = config.override({"schedule.follow": True, "epochs": 3})
    learn(follow, str(folder), tmp_path / "run", num_classes=10)
    writer.join()
    learn(config, str(folder), tmp_path / "run", resume=True)
    check_resumed_equals(whole, tmp_path / "run")


def spoil(samples, place, *, label=None, value=None):
    images, labels = samples[0].float(), samples[1].clone()
    images[place, 3, 3] = images[place, 3, 3] if value is None else value
    labels[place] = labels[place] if label is None else label
    return images, labels


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda samples: cut(spoil(samples, 237, label=10), 50),
            "sample 237 has label 10, allowed 0 to 9; .*--classes",
        ),
        (lambda samples: cut(spoil(samples, 237, label=-1), 50), "batch 4: labels go down to -1, allowed integers"),
        (
            lambda samples: cut(spoil(samples, 237, value=float("nan")), 50),
            "batch 4: image 37 holds a value that is not",
        ),
        (lambda samples: iter([samples, (samples[0][:, :7], samples[1])]), r"shape \(7, 8\) come after .*\(8, 8\)"),
        (
            lambda samples: iter([samples, (samples[0].float(), samples[1])]),
            "float32 and shape .* come after torch.uint8",
        ),
        (
            lambda samples: iter([samples, (samples[0], samples[1][1:])]),
            r"batch 1: labels have shape .*allowed \(330,\)",
        ),
        (lambda samples: iter([samples, samples[0]]), "batch 1 is Tensor of 330, allowed a pair"),
        (lambda samples: iter([]), "holds no samples"),
    ],
)
def test_samples_that_do_not_fit_are_named_by_their_place_and_what_was_learnt_stays(
    make, words, config, samples, tmp_path
):
    with pytest.raises(DataError, match=words):
        learn(config, make(samples), tmp_path / "run", num_classes=10)
    if (tmp_path / "run").exists():
        ff.Run(tmp_path / "run").verify()


@pytest.mark.parametrize("content", [b"\x93NUMPY", b"hello, world", b"\x93NUMPY\x01\x00\x02\x00{}"])
def test_a_pipe_of_something_else_is_refused_in_one_line(content):
    with pytest.raises(DataError, match="record 0: is no array as numpy.save writes it") as error:
        next(PipeSource(io.BytesIO(content)).read({}))
    assert "\n" not in str(error.value)
    pipe = io.BytesIO()
    np.save(pipe, np.array([object()]), allow_pickle=True)
    pipe.seek(0)
    with pytest.raises(DataError, match="record 0"):
        next(PipeSource(pipe).read({}))


def test_a_damaged_window_is_named_and_learnt_again_where_it_can_be_read_again(config, samples, tmp_path):
    folder = write_folder(tmp_path / "files", samples)
    learn(config, folder, tmp_path / "whole", num_classes=10)
    with pytest.raises(KeyboardInterrupt):
        ff.stream(config, folder, tmp_path / "run", num_classes=10, observer=InterruptAt("on_epoch", 5))
    for part in ("window-*", "manifest.json"):
        shutil.rmtree(tmp_path / "rotten", ignore_errors=True)
        shutil.copytree(tmp_path / "run", tmp_path / "rotten")
        (file,) = (tmp_path / "rotten" / "stream").glob(part)
        file.write_bytes(file.read_bytes()[:-3] + b"}}\n")
        with pytest.raises(CorruptFileError, match="stream"):
            ff.resume(tmp_path / "rotten")
        with pytest.raises(CorruptFileError, match="stream"):
            ff.Run(tmp_path / "rotten").verify()
        put_aside(ff.Run(tmp_path / "rotten").directory)
        ff.resume(tmp_path / "rotten")
        check_resumed_equals(tmp_path / "whole", tmp_path / "rotten")


def test_a_damaged_window_that_cannot_be_read_again_is_said_to_be_lost(config, samples, tmp_path):
    pipe = read_pipe(write_pipe(samples))
    with pytest.raises(KeyboardInterrupt):
        ff.stream(config, pipe, tmp_path / "run", num_classes=10, observer=InterruptAt("on_epoch", 5))
    (file,) = (tmp_path / "run" / "stream").glob("window-*")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    put_aside(ff.Run(tmp_path / "run").directory)
    run, listener = learn(config, pipe, tmp_path / "run", resume=True)
    assert any("window 2 was damaged and put aside, and cannot be read again" in text for text in listener.warnings)
    assert run.verify() == 2


def test_a_stream_is_evaluated_on_any_data_of_its_shape_and_classes(config, samples, digits, tmp_path):
    run, _ = learn(config, cut(samples, 33), tmp_path / "run", num_classes=10)
    with pytest.raises(RunError, match="has learnt from a stream, -, that is no data set; .* --data"):
        run.evaluate()
    assert run.evaluate(data="digits").num_samples == len(digits.test)
    save_file({"train.images": torch.rand(20, 5), "train.labels": torch.arange(20) % 4}, tmp_path / "other.safetensors")
    with pytest.raises(RunMismatchError, match=r"learns images of shape \(8, 8\), found \(5,\)"):
        run.evaluate(split="train", data=str(tmp_path / "other.safetensors"))
    network = ff.load(tmp_path / "run")
    assert network(digits.test.images[:9]).shape == (9, 10)


def test_what_a_stream_cannot_have_is_refused(config, samples, tmp_path):
    for name, value in (("validation_fraction", 0.1), ("optimiser.decay_start", 0.5), ("optimiser.patience", 2)):
        asked = config.override({"schedule.order": "stream", "validation_fraction": 0.0, "optimiser.decay_start": 1.0})
        with pytest.raises(ff.ConfigError, match=f"{name}: found .* with schedule.order=stream"):
            ff.train(asked.override({name: value}), tmp_path / "run")
    with pytest.raises(ff.ConfigError, match="window_samples: found all, allowed a number"):
        learn(config.override({"schedule.window_samples": "all"}), cut(samples, 33), tmp_path / "run")
    with pytest.raises(DataError, match="nothing comes later there"):
        learn(config.override({"schedule.follow": True}), "digits", tmp_path / "run")


def test_the_command_tells_a_line_for_each_window_and_what_is_next(tmp_path):
    path, small = tmp_path / "run", ["--layers", "2", "--width", "24", "--device", "cpu"]
    _, told, _ = run_cli("stream", "digits", "--window", 1000, "--windows", 2, "--run-dir", path, *small)
    assert "2 layers, a stream in windows of 1,000 samples, each of which passes 4 times" in told
    assert [line.split(",")[0] for line in told.splitlines() if line.startswith("window")] == [
        "window 1: 1",
        "window 2: 1",
    ]
    assert "wrong before learning" in told
    assert f"Next: ffstream evaluate {path}" in told
    _, told, _ = run_cli("resume", path, "--epochs", 9)
    assert "window 4: 823 samples" in told
    _, told, _ = run_cli("inspect", path)
    assert "a stream: 4 windows of 3,823 samples in all learnt" in told
    assert "in the last 3 of them" in told
    assert run_cli("evaluate", path)[0] == 0


def test_metrics_are_read_as_often_for_any_number_of_windows(config, samples, tmp_path, monkeypatch):
    """A stream has ever more of them."""
    read, num_read = MetricsFile._read_sealed, []

    def count(metrics, seal):
        num_read.append(seal)
        return read(metrics, seal)

    monkeypatch.setattr(MetricsFile, "_read_sealed", count)
    found = []
    for num_windows in (2, 3):
        num_read.clear()
        learn(config.override({"epochs": num_windows}), iter([samples]), tmp_path / str(num_windows), num_classes=10)
        found.append(len(num_read))
    assert found[0] == found[1]


@pytest.mark.parametrize(("recipe", "changes"), [("deep", {}), ("inject", {"augmentation.views": 3})])
def test_views_are_refused_with_what_helps(recipe, changes, samples, tmp_path):
    config = ff.Config(recipe=recipe, layers=2, width=16).override({"schedule.window_samples": WINDOW} | changes)
    with pytest.raises(ff.ConfigError, match=r"order=stream.* add --set augmentation.views=1"):
        learn(config, iter([samples]), tmp_path / "run", num_classes=10)
    learn(config.override({"augmentation.views": 1, "epochs": 1}), iter([samples]), tmp_path / "run", num_classes=10)


def test_lines_of_a_process_that_was_killed_before_anything_was_sealed_are_dropped(config, samples, whole, tmp_path):
    folder = write_folder(tmp_path / "files", samples)
    with pytest.raises(KeyboardInterrupt):
        ff.stream(config, folder, tmp_path / "run", num_classes=10, observer=InterruptAt("on_epoch", 2))
    assert ff.Run(tmp_path / "run").directory.read_seal().num_bytes == 0
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "epoch", "layer": 1, "epoch": 1, "validation_error": null}\n')
    ff.resume(tmp_path / "run")
    check_resumed_equals(whole, tmp_path / "run")
