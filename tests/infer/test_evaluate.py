"""Reading out: the label sweep, the softmax readout, and the resident module, one against another."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ffstream as ff
from ffstream.cache.transfer import Transfer
from ffstream.data import load_dataset, split_validation
from ffstream.data.classes import find_renamed
from ffstream.infer.chance import count_confusion
from ffstream.infer.combination import RIDGES, fit_weights
from ffstream.infer.evaluation import LabelSweep, error_rate
from tests.helpers import InterruptAt, write_pictures

LABELS = torch.tensor([0, 1, 1])
RIGHT = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
WRONG = -RIGHT


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_data):
    config = ff.Config(data=str(small_data), layers=3, width=48, epochs=16, batch=32, device="cpu", precision="fp32")
    return ff.train(config, tmp_path_factory.mktemp("evaluate") / "run")


def test_error_rate_is_the_share_of_wrong_labels():
    assert error_rate(RIGHT, LABELS) == 0
    assert error_rate(WRONG, LABELS) == 1
    assert error_rate(torch.cat([RIGHT[:2], WRONG[2:]]), LABELS) == pytest.approx(1 / 3)


def test_the_sweep_leaves_out_the_first_layer_and_sums_the_rest():
    sweep = LabelSweep(LABELS)
    assert sweep.add(10 * WRONG) == (1, 1)  # nothing else is there yet
    assert sweep.add(RIGHT) == (0, 0)
    assert sweep.add(3 * WRONG) == (1, 1)
    assert sweep.add(3 * RIGHT) == (0, 0)


def test_the_first_counted_layer_can_be_chosen():
    sweep = LabelSweep(LABELS, first_layer=1)
    assert sweep.add(10 * WRONG) == (1, 1)
    assert sweep.add(RIGHT) == (0, 1)


def test_streamed_evaluation_equals_the_resident_module(run, small_data):
    arrays = load_file(small_data)
    images, labels = arrays["test.images"], arrays["test.labels"]
    with torch.no_grad():
        by_layer = run.load().goodness_by_layer(images)
    found = run.evaluate()
    assert found.layer_errors == pytest.approx([error_rate(goodness, labels) for goodness in by_layer])
    sums = [by_layer[0], by_layer[1], by_layer[1] + by_layer[2]]
    assert found.errors_by_depth == pytest.approx([error_rate(total, labels) for total in sums])
    assert found.error == found.errors_by_depth[-1] < 0.4


def test_validation_error_is_the_one_recorded_while_training(run):
    found = run.evaluate(split="validation")
    assert found.errors_by_depth == pytest.approx([layer.validation_error_to_here for layer in run.layers])
    assert found.layer_errors == pytest.approx([layer.validation_error for layer in run.layers])


@pytest.mark.parametrize("tier", ["host", "disk"])
def test_evaluation_does_not_depend_on_the_tier_and_leaves_the_run_as_it_is(tier, small_config, tmp_path):
    run = ff.train(small_config("hinton", cache__tier=tier), tmp_path / "run")
    before = sorted(path for path in run.path.rglob("*"))
    assert run.evaluate() == ff.train(small_config("hinton"), tmp_path / "other").evaluate()
    assert sorted(path for path in run.path.rglob("*")) == before


@pytest.mark.parametrize(("units", "decay"), [(24, 3 * (24 / 2000) ** 2), (2500, 3.0)])
def test_a_decay_that_is_left_open_goes_with_the_square_of_the_units_up_to_2000(units, decay, small_config, tmp_path):
    def fit(name, weight_decay):
        config = small_config(width=units, layers=2, epochs=1, readout__weight_decay=weight_decay)
        run = ff.train(config, tmp_path / name)
        run.evaluate("softmax")
        return load_file(run.path / "readout/weights.safetensors")

    left_open, told, other = fit("open", "auto"), fit("told", decay), fit("other", decay / 2)
    assert all(torch.equal(left_open[name], told[name]) for name in told)
    assert not all(torch.equal(left_open[name], other[name]) for name in told)


def test_the_softmax_readout_learns_and_counts_the_layers_it_reads(run):
    found = run.evaluate("softmax")
    assert found.first_depth == 2
    assert len(found.errors_by_depth) == 2
    assert found.error < 0.4
    assert run.evaluate("softmax", first_layer=3).first_depth == 3


def test_a_readout_of_other_layers_is_fitted_anew(small_config, tmp_path):
    run = ff.train(small_config(layers=2), tmp_path / "run")
    run.evaluate("softmax")
    before = (run.path / "readout/manifest.json").read_text()
    ff.resume(run.path, layers=3).evaluate("softmax")
    assert (run.path / "readout/manifest.json").read_text() != before


@pytest.mark.parametrize("use", ["evaluate", "predict"])
def test_a_device_without_memory_is_one_line_that_says_what_helps(use, run, monkeypatch):
    def fail(*_, **__):
        raise torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported")

    monkeypatch.setattr(Transfer, "blocks", fail)
    images = torch.zeros(3, *run.directory.read_data().image_shape)
    with pytest.raises(ff.DeviceError, match=r"device cpu: out of memory \(CUDA error: out of memory\); free some"):
        run.evaluate() if use == "evaluate" else run.predict(images)


def test_it_is_said_when_a_readout_cannot_be_kept(small_config, tmp_path):
    run = ff.train(small_config(layers=2), tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    (run.path / "readout").symlink_to(tmp_path / "elsewhere")
    assert "the readout is not kept" in run.evaluate("softmax").warning
    (run.path / "readout").unlink()
    assert run.evaluate("softmax").warning is None
    assert run.evaluate("softmax").warning is None


@pytest.mark.parametrize("method", ["goodness", "fitted", "softmax"])
def test_confusion_counts_every_sample_once_and_the_wrong_ones_off_the_diagonal(method, run, small_data):
    found, labels = run.evaluate(method), load_file(small_data)["test.labels"]
    confusion = torch.tensor(found.confusion)
    assert confusion.sum(dim=1).tolist() == labels.bincount(minlength=10).tolist()
    assert 1 - int(confusion.trace()) / len(labels) == pytest.approx(found.error)
    assert found.class_names == [str(label) for label in range(10)]


def test_confusion_has_true_classes_in_rows():
    assert count_confusion(torch.tensor([1, 1, 2]), torch.tensor([0, 1, 1]), 3) == [[0, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_fitted_errors_of_each_depth_are_those_of_weights_for_the_layers_to_it(run, small_data):
    found = run.evaluate("fitted")
    arrays = load_file(small_data)
    _, validation = split_validation(load_dataset(str(small_data)), run.config.validation_fraction, run.config.seed)
    held_out = [run.directory.load_validation_goodness(index) for index in range(3)]
    with torch.no_grad():
        by_layer = run.load().goodness_by_layer(arrays["test.images"])
    for depth in (1, 2, 3):
        weighted = fit_weights(held_out[:depth], validation.labels, 2, found.combination.ridge)
        error = error_rate(weighted.logits(by_layer[:depth]), arrays["test.labels"])
        assert found.errors_by_depth[depth - 1] == pytest.approx(error)
    assert found.layer_errors == run.evaluate().layer_errors
    assert found.combination.ridge in RIDGES


def test_weights_make_up_for_layers_that_went_wrong(small_config, tmp_path):
    run = ff.train(small_config(layers=8, width=16, epochs=8), tmp_path / "run")
    plain, fitted = run.evaluate(split="validation"), run.evaluate("fitted", split="validation")
    assert fitted.calibrated.negative_log_likelihood <= plain.calibrated.negative_log_likelihood + 1e-6


def test_calibration_is_on_the_validation_split_and_lowers_the_likelihoods_loss_there(run):
    found = run.evaluate(split="validation")
    assert found.calibrated.negative_log_likelihood <= found.uncalibrated.negative_log_likelihood
    assert found.combination == run.evaluate().combination
    assert found.error == run.evaluate("goodness", "validation").error


def test_an_evaluation_is_json(run):
    for method in ("goodness", "fitted", "softmax"):
        found = run.evaluate(method)
        read = json.loads(json.dumps(found.to_mapping()))
        assert read["confusion"] == found.confusion
        assert read["uncalibrated"]["negative_log_likelihood"] == found.uncalibrated.negative_log_likelihood
        assert (read["combination"] is None) == (method == "softmax")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "goodnes"}, ff.ConfigError, "did you mean 'goodness'"),
        ({"split": "tset"}, ff.ConfigError, "did you mean 'test'"),
        ({"first_layer": 0}, ff.ConfigError, "first layer 0: allowed an integer >= 1"),
        ({"first_layer": 9}, ff.RunError, "has 3 layers, allowed first layer 1 to 3"),
        ({"method": "softmax", "first_layer": 9}, ff.RunError, "reads layers 9 and above, found 3"),
        ({"device": "tpu"}, ff.DeviceError, "allowed: auto, cpu, cuda"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(run, arguments, error, message):
    with pytest.raises(error, match=message):
        run.evaluate(**arguments)


def test_a_run_without_a_finished_layer_is_refused(small_config, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        ff.train(small_config(), tmp_path / "run", observer=InterruptAt("on_epoch", 0))
    for use in (lambda run: run.evaluate(), lambda run: run.load(), lambda run: run.export(tmp_path / "x.safetensors")):
        with pytest.raises(ff.RunError, match="no layer is finished yet"):
            use(ff.Run(tmp_path / "run"))


def test_an_unfinished_run_can_be_evaluated_and_loaded_as_far_as_it_is(small_config, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        ff.train(small_config(), tmp_path / "run", observer=InterruptAt("on_layer", 1))
    run = ff.Run(tmp_path / "run")
    assert len(run.evaluate().errors_by_depth) == 2
    assert len(run.load().layers) == 2


def test_a_module_refuses_images_of_another_shape(run):
    with pytest.raises(ValueError, match=r"images have shape .*this network reads"):
        run.load()(torch.zeros(3, 28, 28))


def test_files_that_were_not_exported_are_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    for name, message in (
        ("foreign", "not exported by ffstream"),
        ("text", "cannot be read"),
        ("no", "cannot be read"),
    ):
        with pytest.raises(ff.RunError, match=message):
            ff.load(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize("settings", [{}, {"network__stack_layers": 2}, {"network__tile_units": 10}])
def test_a_run_can_be_read_while_it_is_trained_and_shows_committed_layers_alone(settings, small_config, tmp_path):
    path, seen = tmp_path / "run", []

    class Reading(ff.Observer):
        def on_epoch(self, layer, *_args):
            run = ff.Run(path)
            run.verify()
            seen.append((layer, run.num_layers_done))
            if run.num_layers_done:
                assert len(run.layers) == run.num_layers_done
                assert len(run.evaluate().errors_by_depth) == run.num_layers_done
                assert len(run.load().layers) == run.num_layers_done

    ff.train(small_config(cache__tier="disk", **settings), path, observer=Reading())
    assert {layer - num_done for layer, num_done in seen} <= {1, 2}  # a layer is committed behind the next one's start
    assert max(num_done for _, num_done in seen) == 2


def test_classes_that_have_other_names_by_now_are_said(tmp_path):
    """The images and labels are those of the run, so it is evaluated; the names of a run are shown."""
    shades = np.random.default_rng(0).integers(0, 256, (2, 20, 6, 6), dtype=np.uint8)
    write_pictures(tmp_path / "data", dict(zip(("cats", "dogs"), shades, strict=True)))
    config = ff.Config(data=str(tmp_path / "data"), layers=1, width=16, epochs=1, batch=16, device="cpu")
    run = ff.train(config, tmp_path / "run")
    assert run.evaluate(split="train").warning is None
    (tmp_path / "data" / "dogs").rename(tmp_path / "data" / "dons")
    assert "label 1 is called 'dons' in the data and 'dogs' in the run" in run.evaluate(split="train").warning
    told = []
    observer = ff.Observer()
    observer.on_warning = told.append
    ff.train(run.config.override({"layers": 2}), run.path, resume=True, observer=observer)
    assert "'dons'" in told[0]


def test_numbers_are_no_names():
    assert find_renamed(["0", "1"], ["cats", "dogs"]) is None
    assert find_renamed(["cats", "dogs"], ["0", "1"]) is None
    assert find_renamed(["cats", "dogs"], ["cats", "dogs"]) is None
    assert "'cats' in the data and 'dogs'" in find_renamed(["cats", "dogs"], ["dogs", "cats"])
