"""What a run shows: bars on a terminal, lines elsewhere, one row a layer at the end."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

import ffstream as ff
from ffstream.cli.reporting import BarObserver, PlainObserver, _Clock, make_observer
from ffstream.cli.tables import evaluation_report, format_seconds, format_share
from ffstream.infer.evaluation import Evaluation
from tests.helpers import InterruptAt


def show(config, path, *, terminal, resume=False):
    """Everything that a run writes to a console of 100 columns."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100)
    observer = make_observer(console)
    assert isinstance(observer, BarObserver if terminal else PlainObserver)
    ff.train(config, path, resume=resume, observer=observer)
    return text.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_shows_where_it_is_and_ends_with_one_row_a_layer(terminal, small_config, tmp_path):
    text = show(small_config(), tmp_path / "run", terminal=terminal)
    table = text[text.rindex("┏") :]
    assert str(tmp_path / "run") in text
    assert [row.split("│")[1].strip() for row in table.splitlines() if row.startswith("│")] == ["1", "2", "3"]


def test_plain_lines_hold_no_control_characters(small_config, tmp_path):
    text = show(small_config(), tmp_path / "run", terminal=False)
    assert "\x1b" not in text
    assert "\r" not in text
    for layer in (1, 2, 3):
        assert f"layer {layer}/3 done: loss" in text


def test_bars_show_the_live_figures(small_config, tmp_path):
    text = show(small_config(), tmp_path / "run", terminal=True)
    for word in ("layers", "epochs", "separation", "val", "ETA", "peak", "error"):
        assert word in text


def test_a_stopped_run_leaves_the_cursor_on(small_config, tmp_path):
    text = io.StringIO()
    observer = BarObserver(Console(file=text, force_terminal=True, width=100))
    stopper = InterruptAt("on_layer", 0)
    observer.on_layer = stopper.on_layer
    with pytest.raises(KeyboardInterrupt):
        ff.train(small_config(), tmp_path / "run", observer=observer)
    observer.on_stop()
    assert text.getvalue().rindex("\x1b[?25h") > text.getvalue().rindex("\x1b[?25l")


def test_a_resumed_run_says_what_is_done(small_config, tmp_path):
    ff.train(small_config(layers=2), tmp_path / "run")
    text = show(small_config(), tmp_path / "run", terminal=False, resume=True)
    assert "2 of 3 layers are done" in text


def test_time_left_counts_only_what_this_process_took():
    clock = _Clock(num_layers=10, num_done=4)
    clock._start_s -= 30  # layer 5 took 3 of 10 epochs before; since then 3 epochs in 30 s
    clock.eta_s(5, 3.2, 10)
    assert clock.eta_s(5, 6.0, 10) == pytest.approx(10 * (4 + 5 * 10), rel=0.01)


def test_figures_are_written_for_people():
    assert [format_share(0.0135), format_share(None)] == ["1.35 %", "-"]
    assert [format_seconds(s) for s in (None, 7.4, 75, 3725)] == ["-", "0:07", "1:15", "1:02:05"]


def shown(class_names, width, num_samples=10_000, noise=1.0):
    """The lines of an evaluation of so many samples, whose goodness is noise with something for the true label."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(len(class_names), (num_samples,), generator=generator)
    logits = noise * torch.randn(num_samples, len(class_names), generator=generator)
    logits[torch.arange(num_samples), labels] += 3
    data = {"class_names": class_names, "num_classes": len(class_names)}
    found = Evaluation.of(
        "goodness", "test", labels, data,
        first_depth=1, errors_by_depth=[0.1], layer_errors=[0.1], uncalibrated_logits=logits,
    )  # fmt: skip
    text = io.StringIO()
    console = Console(file=text, width=width)
    for part in evaluation_report(found, width):
        console.print(part, highlight=False, markup=False, soft_wrap=isinstance(part, str))
    return found, text.getvalue().splitlines()


@pytest.mark.parametrize(
    ("class_names", "headings"),
    [
        ([str(label) for label in range(10)], [str(label) for label in range(10)]),
        ("airplane automobile bird cat deer dog frog horse ship truck".split(), ["airpl", "autom", "bird", "cat"]),
        ([f"{label} - word" for label in range(10)], [str(label) for label in range(10)]),
        ([f"class {label}" for label in range(10)], [str(label) for label in range(10)]),
    ],
)
def test_the_confusion_of_ten_classes_is_a_matrix_of_eighty_columns(class_names, headings):
    found, lines = shown(class_names, 80)
    (top,) = [number for number, line in enumerate(lines) if line.startswith("true")]
    assert lines[top].split()[1 : 1 + len(headings)] == headings
    for row, name, line in zip(found.confusion, class_names, lines[top + 2 :], strict=False):
        assert line.startswith(name)
        assert line.split()[-12:-2] == [str(count or ".") for count in row]
        assert line.split()[-2:] == [f"{100 * (1 - max(row) / sum(row)):.2f}", "%"]
    assert max(map(len, lines[: top + 12])) <= 80


def test_of_more_classes_than_fit_the_most_confused_pairs_are_shown():
    found, lines = shown([f"class {label}" for label in range(100)], 80)
    (top,) = [number for number, line in enumerate(lines) if line.startswith(" true")]
    pairs = [line.split() for line in lines[top + 2 : top + 17]]
    counts = sorted((n for t, row in enumerate(found.confusion) for p, n in enumerate(row) if t != p), reverse=True)
    assert [int(words[4]) for words in pairs] == counts[:15]
    for words in pairs:
        assert found.confusion[int(words[1])][int(words[3])] == int(words[4])
    assert f"and {sum(counts[15:])} samples in {sum(n > 0 for n in counts[15:])} more pairs" in lines[top + 17]


def test_many_classes_of_which_none_is_mistaken_show_no_pairs():
    _, lines = shown([f"class {label}" for label in range(100)], 80, noise=0.0)
    assert not [line for line in lines if "predicted" in line]


def test_an_evaluation_says_what_its_probabilities_are_calibrated_on(small_config, tmp_path):
    run = ff.train(small_config(), tmp_path / "run")
    for split, words in (("test", "calibrated on the validation split"), ("validation", "calibrated on this very")):
        lines = [part for part in evaluation_report(run.evaluate(split=split), 80) if isinstance(part, str)]
        assert words in lines[-2]
        assert lines[-1].startswith("not calibrated: negative log likelihood")
    fitted = [part for part in evaluation_report(run.evaluate("fitted"), 80) if isinstance(part, str)]
    assert ["weight" in line for line in fitted[:3]] == [True] * 3
    bare = ff.train(small_config(validation_fraction=0.0), tmp_path / "bare").evaluate()
    assert "no validation split to calibrate them on" in [*evaluation_report(bare, 80)][-1]
