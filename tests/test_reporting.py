"""What a run shows: bars on a terminal, lines elsewhere, one row a layer at the end."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

import ffstream as ff
from ffstream.reporting import BarObserver, PlainObserver, _Clock, format_seconds, format_share, make_observer
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
