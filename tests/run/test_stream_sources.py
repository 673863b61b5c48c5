"""What may befall the sources of a stream: files and data that change, waits, and what a user asks by mistake."""

from __future__ import annotations

import signal

import numpy as np
import pytest

import ffstream as ff
from ffstream.data.stream_source import FolderSource, open_source
from ffstream.errors import DataError
from ffstream.run.preparation import make_plan
from tests.run.stream_runs import NUM_SAMPLES, WINDOW, cut, learn


@pytest.fixture(scope="module")
def samples(digits):
    return digits.train.images[:NUM_SAMPLES], digits.train.labels[:NUM_SAMPLES]


@pytest.fixture
def config(small_config):
    return small_config(layers=1, schedule__window_samples=WINDOW, schedule__replays=1, epochs=100)


def write_file(path, samples, part):
    np.savez(path, x=samples[0][part].numpy(), y=samples[1][part].numpy())


def test_a_file_whose_name_sorts_before_what_was_read_is_not_left_out_silently(config, samples, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    write_file(folder / "8.npz", samples, slice(0, 100))
    write_file(folder / "9.npz", samples, slice(100, 200))
    learn(config, folder, tmp_path / "run", num_classes=10)
    (folder / "8.npz").unlink()  # a file that was learnt may go
    learn(config, folder, tmp_path / "run", resume=True)
    write_file(folder / "10.npz", samples, slice(200, 300))
    write_file(folder / "11.npz", samples, slice(300, None))
    with pytest.raises(
        DataError, match="1 of the files up to 9.npz came after 9.npz was read, allowed names that sort"
    ):
        learn(config, folder, tmp_path / "run", resume=True)
    (folder / "10.npz").rename(folder / "910.npz")
    (folder / "11.npz").rename(folder / "911.npz")
    _, listener = learn(config, folder, tmp_path / "run", resume=True)
    assert [(figures.number, figures.num_samples) for figures in listener.windows] == [(3, 100), (4, 30)]


def test_a_file_that_comes_late_while_a_folder_is_followed_is_named(samples, tmp_path):
    write_file(tmp_path / "9.npz", samples, slice(0, 100))
    batches = FolderSource(tmp_path, follows=True).read({})
    next(batches)
    write_file(tmp_path / "10.npz", samples, slice(100, 200))
    with pytest.raises(DataError, match="10.npz came after 9.npz was read"):
        next(batches)


def test_a_folder_without_a_file_yet_or_any_more_is_a_folder_of_arrays(config, samples, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / ".0.npz").write_bytes(b"half written")
    with pytest.raises(DataError, match="holds no samples"):
        learn(config, folder, tmp_path / "run", num_classes=10)
    source = open_source(str(folder), follows=True, load=lambda: pytest.fail("is no data set"), seed=0)
    write_file(folder / "0.npz", samples, slice(0, 100))
    assert len(next(source.read({})).samples) == 100
    learn(config, folder, tmp_path / "run", num_classes=10)
    (folder / "0.npz").unlink()
    _, listener = learn(config, folder, tmp_path / "run", resume=True)
    assert listener.windows == []


def test_a_data_set_that_was_changed_is_refused_as_its_samples_have_another_order(config, samples, tmp_path):
    path = tmp_path / "data.npz"
    for number, part in enumerate((slice(0, 300), slice(0, 330))):
        np.savez(path, **{"train.images": samples[0][part].numpy(), "train.labels": samples[1][part].numpy()})
        if number == 0:
            learn(config.override({"epochs": 1}), path, tmp_path / "run")
    with pytest.raises(DataError, match="is not the data set of which 300 samples were read, as its 330 labels"):
        ff.resume(tmp_path / "run", epochs=5)


@pytest.mark.parametrize("found", [0, 1, -3, True, "10", 10.0])
def test_a_number_of_classes_that_cannot_be_is_refused(found, config, samples, tmp_path):
    with pytest.raises(DataError, match="found --classes .*, allowed an integer >= 2"):
        learn(config, cut(samples), tmp_path / "run", num_classes=found)


def test_classes_other_than_those_that_a_stream_has_are_refused(config, samples, tmp_path):
    with pytest.raises(DataError, match="found --classes 5, allowed 10"):
        learn(config, "digits", tmp_path / "run", num_classes=5)
    with pytest.raises(DataError, match="found label 1000000 in a first window of 100 samples, .* --classes"):
        learn(config, iter([(samples[0], samples[1] * 0 + 10**6)]), tmp_path / "run")
    learn(config.override({"epochs": 1}), cut(samples), tmp_path / "run", num_classes=10)
    with pytest.raises(DataError, match="found --classes 12, allowed 10"):
        learn(config, cut(samples), tmp_path / "run", num_classes=12, resume=True)


def test_a_last_sample_of_which_no_hybrid_can_be_made_waits_for_more(small_config, samples, tmp_path):
    config = small_config("unsupervised", layers=1, schedule__window_samples=WINDOW, schedule__replays=1, epochs=100)
    folder = tmp_path / "files"
    folder.mkdir()
    write_file(folder / "0.npz", samples, slice(0, 101))
    _, listener = learn(config, folder, tmp_path / "run", num_classes=10)
    write_file(folder / "1.npz", samples, slice(101, 130))
    _, later = learn(config, folder, tmp_path / "run", resume=True)
    assert [figures.num_samples for figures in listener.windows + later.windows] == [100, 30]
    with pytest.raises(ff.ConfigError, match="window_samples: found 1, allowed 2 or more"):
        learn(config.override({"schedule.window_samples": 1}), folder, tmp_path / "other", num_classes=10)


def test_an_interrupt_is_met_while_a_program_waits_for_samples(config, samples, tmp_path):
    came_back = []

    def wait():
        yield samples[0][:150], samples[1][:150]
        signal.raise_signal(signal.SIGINT)
        came_back.append(True)
        yield samples[0][150:], samples[1][150:]

    with pytest.raises(KeyboardInterrupt):
        learn(config, wait(), tmp_path / "run", num_classes=10)
    assert not came_back
    assert ff.Run(tmp_path / "run").verify() == 1


def test_a_source_is_a_name_or_batches_and_a_program_may_give_the_data_set(config, samples, tmp_path):
    with pytest.raises(DataError, match="source is int, allowed the name of one, or an iterable of pairs"):
        learn(config, 5, tmp_path / "run")
    asked = {"schedule.order": "stream", "validation_fraction": 0.0, "optimiser.decay_start": 1.0, "epochs": 2}
    run = ff.train(config.override(asked), tmp_path / "run", data=samples)
    assert run.verify() == 1
    _, listener = learn(config, cut(samples), tmp_path / "run", resume=True)
    assert any("is gone on with in place of from-python" in text for text in listener.warnings)


def test_a_stream_is_planned_for_one_window_of_it(config):
    asked = {"schedule.order": "stream", "validation_fraction": 0.0, "optimiser.decay_start": 1.0, "data": "digits"}
    assert make_plan(config.override(asked)).data.num_samples == {"train": WINDOW}
