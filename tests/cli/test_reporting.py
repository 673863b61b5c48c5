"""What a run shows: bars on a terminal, lines elsewhere, one row a layer at the end."""

from __future__ import annotations

import dataclasses
import io
import re

import pytest
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

import ffstream as ff
from ffstream.cli import reporting
from ffstream.cli.course import Course
from ffstream.cli.plan_tables import plan_report
from ffstream.cli.reporting import BarObserver, PlainObserver, make_observer, print_table
from ffstream.cli.tables import (
    catalogue_tables,
    evaluation_report,
    format_seconds,
    format_share,
    layer_table,
)
from ffstream.data.facts import DataFacts
from ffstream.field.catalogue import read_catalogue
from ffstream.ground.units import format_bytes
from ffstream.infer.evaluation import Evaluation
from ffstream.training.epoch_figures import EpochFigures
from ffstream.training.observer import RunOutline
from tests.helpers import InterruptAt, run_cli

OUTLINE = RunOutline("runs/a", 10, 4, 1000, 1, (10,) * 10, True, "cpu", 27 << 20, 54 << 20)


def show(config, path, *, terminal, resume=False, width=100):
    """Everything that a run writes to a console of so many columns."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=width)
    observer = make_observer(console)
    assert isinstance(observer, BarObserver if terminal else PlainObserver)
    ff.train(config, path, resume=resume, observer=observer)
    return text.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_shows_where_it_is_and_ends_with_one_row_a_layer(terminal, small_config, tmp_path):
    text = show(small_config(), tmp_path / "run", terminal=terminal)
    table = text[text.rindex("layers") :].splitlines()
    assert str(tmp_path / "run") in text
    assert [row.split()[0] for row in table if row[:7].strip().isdigit()] == ["1", "2", "3"]


@pytest.mark.parametrize("width", [80, 40])
@pytest.mark.parametrize("terminal", [False, True])
def test_in_narrow_terminals_and_in_files_nothing_is_lost(terminal, width, small_config, tmp_path):
    text = show(small_config(), tmp_path / "run", terminal=terminal, width=width)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    words = text.replace("-\n", "").split()
    for heading in ("loss", "goodness", "positive", "negative", "error", "alone", "time"):
        assert [word for word in words if word.startswith(heading)], heading
    assert "…" not in text
    for figures in ff.Run(tmp_path / "run").layers:
        for value in (f"{figures.loss:.4f}", f"{figures.separation:.4f}", f"{figures.elapsed_s:.1f}"):
            assert value in words


@pytest.mark.parametrize("width", [40, 60, 80, 130])
def test_bars_take_one_line_each_and_notes_give_way_first(width):
    text = io.StringIO()
    observer = BarObserver(Console(file=text, force_terminal=True, width=width))
    observer.on_start(OUTLINE)
    figures = EpochFigures(0.5, 12.3, 4.5, 0.98, 500, 1.0)
    observer.on_tick(5, 3, 10, figures)
    observer.on_epoch(5, 3, 10, figures, 0.0321)
    observer.on_stop()
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line).rstrip() for line in re.split(r"[\r\n]", text.getvalue())]
    bars, of_layers = ([line for line in lines if line.startswith(name)] for name in ("epochs", "layers"))
    assert bars
    assert all(len(line) <= width for line in [*bars, *of_layers])
    assert "3/10" in bars[-1]
    assert (" left" in of_layers[-1]) == (width >= 60)
    assert ("goodness 12.3/4.5" in bars[-1]) == (width >= 130)


@pytest.mark.parametrize(
    ("epochs_taken", "name"),
    [(0.4, "tile 1/3 epoch 1/10"), (10, "tile 1/3 epoch 10/10"), (13, "tile 2/3 epoch 3/10")],
)
def test_epochs_are_those_of_a_tile(epochs_taken, name):
    assert Course(dataclasses.replace(OUTLINE, num_tiles=3)).name_epoch(1, epochs_taken) == name
    assert Course(OUTLINE).name_epoch(5, 7) == "epoch 7/10"


def test_errors_without_labels_are_called_so(small_config, tmp_path):
    text = show(small_config("unsupervised"), tmp_path / "run", terminal=False)
    assert "validation error of hybrids" in text
    assert "hybrid" in text[text.index("done. Next") if "done. Next" in text else text.rindex("layers") :]
    assert "hybrid" not in show(small_config(), tmp_path / "labelled", terminal=False)


def test_the_memory_of_a_layer_stands_beside_its_budget(small_config, tmp_path):
    config = small_config(memory__budget="30MiB")
    text = show(config, tmp_path / "run", terminal=False)
    plan = ff.make_plan(config)
    cache = plan.device.terms.get("cache", 0)
    assert f"planned to take {format_bytes(plan.device.num_bytes - cache)} of 30.0 MiB" in " ".join(text.split())
    assert "process " in text
    assert "peak" not in text


def test_a_table_that_is_too_wide_is_shown_row_by_row(small_config, tmp_path):
    layers = ff.train(small_config(), tmp_path / "run").layers
    text = io.StringIO()
    print_table(Console(file=text, width=30), layer_table(layers))
    lines = [line.strip() for line in text.getvalue().splitlines()]
    assert lines[0] == "layers"
    assert lines.count("") == len(layers)
    for layer in layers:
        assert f"loss: {layer.loss:.4f}" in lines
        assert f"goodness positive: {layer.goodness_positive:.4g}" in lines


@pytest.mark.parametrize("width", [*range(30, 130, 7), 80])
def test_no_table_loses_a_word_at_any_width(width, small_config):
    tables = [part for part in plan_report(ff.make_plan(small_config())) if isinstance(part, Table)]
    for table in [*tables, *catalogue_tables(read_catalogue())]:
        text = io.StringIO()
        print_table(Console(file=text, width=width), table)
        printed = set(text.getvalue().replace("-\n", "").split())
        for column in table.columns:
            for cell in column.cells:
                words = (cell.plain if isinstance(cell, Text) else str(cell)).split()
                assert set(words) <= printed, (width, words)


def test_plain_lines_hold_no_control_characters(small_config, tmp_path):
    text = show(small_config(), tmp_path / "run", terminal=False)
    assert "\x1b" not in text
    assert "\r" not in text
    for layer in (1, 2, 3):
        assert f"layer {layer}/3 done: validation error" in text
    left = re.findall(r"(\S+) left of the run", text)
    assert len(left) >= 3
    assert left[-1] == "0:00"


def test_bars_show_the_live_figures(small_config, tmp_path):
    text = show(small_config(), tmp_path / "run", terminal=True, width=160)
    for word in ("layers", "epochs", "separation", "left", "process", "error"):
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
    assert "2 of 3 layers done" in text


def test_time_left_counts_only_what_this_process_took():
    course = Course(OUTLINE)
    course._start_s -= 30  # layer 5 took 3 of 10 epochs before; since then 3 epochs in 30 s
    course.eta_s(5, 3.2)
    assert course.eta_s(5, 6.0) == pytest.approx(10 * (4 + 5 * 10), rel=0.01)


def test_figures_are_written_for_people():
    assert [format_share(0.0135), format_share(None)] == ["1.35 %", "-"]
    assert [format_seconds(s) for s in (None, 7.4, 75, 3725)] == ["-", "0:07", "1:15", "1:02:05"]


def shown(class_names, width, num_samples=10_000, noise=1.0):
    """The lines of an evaluation of so many samples, whose goodness is noise with something for the true label."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(len(class_names), (num_samples,), generator=generator)
    logits = noise * torch.randn(num_samples, len(class_names), generator=generator)
    logits[torch.arange(num_samples), labels] += 3
    data = DataFacts({"class_names": class_names, "num_classes": len(class_names)})
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
    (top,) = [number for number, line in enumerate(lines) if line.startswith("true")]
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


def test_a_resumed_run_says_where_its_layer_goes_on():
    assert "layer 5 goes on after epoch 7 of 10" in Course(dataclasses.replace(OUTLINE, num_epochs_saved=7)).describe()
    assert "goes on" not in Course(OUTLINE).describe()


def test_lines_of_a_log_are_short_and_begin_with_the_error(small_config, tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "_PLAIN_INTERVAL_S", 0.0)
    text = show(small_config(), tmp_path / "run", terminal=False, width=200)
    lines = [line for line in text.splitlines() if re.match(r"layer \d/3 ", line)]
    assert len(lines) == 3 * (3 + 1)  # epochs, and each layer once
    for line in lines:
        assert len(line) <= 130, line
        assert re.match(r"layer \d/3 (epoch \d/3|done): validation error [0-9.]+ %", line)
        assert "left of the run" in line


def test_the_table_says_which_layer_begins_a_stack(small_config, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    stacked, whole = small_config(network__stack_layers=2), small_config(network__stack_layers=3)
    for config, has_stacks in ((stacked, True), (whole, False)):
        text = show(config, tmp_path / f"{has_stacks}", terminal=False, width=80)
        shown = run_cli("inspect", tmp_path / f"{has_stacks}")[1]
        for table in (text[text.rindex("layers") :], shown[shown.rindex("layers") :]):
            assert all(len(line) <= 80 for line in table.splitlines())
        assert ("the first one of a stack reads the images again" in text) == has_stacks
        assert ("the first one of a stack reads the images again" in shown) == has_stacks
    table = layer_table(ff.Run(tmp_path / "True").layers, num_in_stack=2)
    assert [*table.columns[1].cells] == ["1", "", "2"]


def test_epochs_of_its_own_are_shown_for_each_layer(small_config, tmp_path):
    config = small_config(network__layers="dense8 dense8(epochs=2) dense8")
    show(config, tmp_path / "run", terminal=False)
    shown_table = run_cli("inspect", tmp_path / "run")[1]
    rows = [line.split() for line in shown_table.splitlines() if line[:6].strip().isdigit()]
    assert [row[1] for row in rows] == ["3", "2", "3"]
    alike = layer_table(ff.Run(tmp_path / "run").layers, num_epochs=(3, 3, 3))
    assert "epochs" not in [column.header for column in alike.columns]


@pytest.mark.parametrize("terminal", [True, False])
def test_rounds_are_shown_in_a_line_each(terminal, small_config, tmp_path):
    text = show(small_config(schedule__order="rounds"), tmp_path / "run", terminal=terminal)
    assert "3 layers in 3 rounds" in " ".join(text.split())
    assert re.findall(r"round (\d)/3 done: validation error", text) == ["1", "2", "3"]
