"""An interrupt ends the work, whatever becomes of the exception on its way; and nothing is committed after it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

import ffstream as ff
from ffstream.cache import DiskCache
from ffstream.cache.transfer import Transfer
from ffstream.ground import plain_globals as plain_globals_module
from ffstream.ground.interrupts import Interrupts, check_interrupts
from ffstream.storage import tensor_file
from ffstream.storage.run_directory import RunDirectory
from tests.helpers import check_resumed_equals, layer_digests


def send(number=signal.SIGINT):
    """A signal to this process, whose handler has been called when this returns or raises."""
    os.kill(os.getpid(), number)


def send_and_lose(number=signal.SIGINT):
    """As foreign code does that clears what a callback of its own raised."""
    with contextlib.suppress(KeyboardInterrupt):
        send(number)


@pytest.fixture(autouse=True)
def python_handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_error_that_an_interrupt_was_made_of_is_the_interrupt_again():
    with pytest.raises(KeyboardInterrupt) as found, Interrupts():
        send_and_lose()
        raise ValueError("could not determine the shape")
    assert isinstance(found.value.__context__, ValueError)


def test_an_interrupt_that_is_lost_is_raised_when_it_is_looked_for():
    with pytest.raises(KeyboardInterrupt), Interrupts():
        check_interrupts()
        send_and_lose()
        check_interrupts()


def test_a_second_interrupt_does_not_come_into_the_cleaning_up_after_the_first():
    cleaned = []
    with pytest.raises(KeyboardInterrupt), Interrupts(), Interrupts():
        try:
            send()
        finally:
            send()
            cleaned.append("inner")
            send(signal.SIGINT)
            cleaned.append("outer")
    assert cleaned == ["inner", "outer"]
    with pytest.raises(KeyboardInterrupt), Interrupts():  # another block is not concerned
        send()


def test_a_handler_that_does_not_raise_is_called_in_the_cleaning_up_too():
    called = []
    signal.signal(signal.SIGTERM, lambda *_: called.append(1))
    with pytest.raises(KeyboardInterrupt), Interrupts():
        try:
            send()
        finally:
            send(signal.SIGTERM)
    assert called == [1]


@pytest.mark.parametrize("line", range(1, 40))
def test_an_interrupt_at_any_line_leaves_settings_of_the_whole_process_as_they_were(line):
    """Where a signal comes cannot be chosen from outside, so a tracer sends it at each line in turn."""

    class Library:
        first, second = "own", "own"

    settings, left = [(Library, "first", "plain"), (Library, "second", "plain")], [line]

    def trace(frame, event, _argument):
        if frame.f_code.co_filename == plain_globals_module.__file__:
            if event == "line":
                left[0] -= 1
                if not left[0]:
                    send()
            return trace
        return None

    before = sys.gettrace()
    with contextlib.suppress(KeyboardInterrupt):
        sys.settrace(trace)
        try:
            with plain_globals_module.plain_globals(settings):
                pass
        finally:
            sys.settrace(before)
    assert (Library.first, Library.second) == ("own", "own")
    assert not [key for key in plain_globals_module._needed if key[0] == id(Library)]


def test_an_error_without_an_interrupt_stays_what_it_is():
    with pytest.raises(ff.DataError), Interrupts():
        check_interrupts()
        raise ff.DataError("nothing there")


def test_what_a_handler_raises_is_what_comes_back():
    def leave(_number, _frame):
        sys.exit(7)

    signal.signal(signal.SIGTERM, leave)
    with pytest.raises(SystemExit) as found, Interrupts():
        try:
            send(signal.SIGTERM)
        except SystemExit:
            raise ValueError from None
    assert found.value.code == 7


def test_a_handler_that_does_not_raise_is_let_be():
    seen = []
    signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    with pytest.raises(ZeroDivisionError), Interrupts():
        send(signal.SIGTERM)
        check_interrupts()
        raise ZeroDivisionError
    assert seen == [signal.SIGTERM]


def test_handlers_are_those_of_before_afterwards():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which is none of Python's
    with Interrupts(), Interrupts():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_each_of_two_within_one_another_hears_of_it():
    with pytest.raises(KeyboardInterrupt), Interrupts():
        with pytest.raises(KeyboardInterrupt), Interrupts():
            send_and_lose()
            raise ValueError
        check_interrupts()


def test_another_thread_gets_no_signals_and_is_left_alone():
    found = []

    def work():
        with Interrupts():
            found.append(signal.getsignal(signal.SIGINT))
            check_interrupts()
            found.append("went on")

    thread = threading.Thread(target=work)
    with pytest.raises(KeyboardInterrupt), Interrupts(defers=True):
        handler = signal.getsignal(signal.SIGINT)
        send()
        thread.start()
        thread.join()
    assert found == [handler, "went on"]


def test_with_threads_at_work_the_first_waits_to_be_looked_for_and_the_second_does_not():
    with pytest.raises(KeyboardInterrupt), Interrupts(defers=True):
        send()
        with pytest.raises(KeyboardInterrupt):
            check_interrupts()
        with pytest.raises(KeyboardInterrupt):
            send()
    with pytest.raises(KeyboardInterrupt), Interrupts(defers=True):
        send()


def test_no_interrupt_is_raised_while_work_is_handed_to_a_thread():
    """Within a semaphore of the executor, whose lock would stay locked, and the thread wait for it for ever."""
    reached, committed = [], []

    class Interrupted(threading.Semaphore):
        def acquire(self, *arguments, **settings):
            reached.append("before")
            send()
            reached.append("behind")
            return super().acquire(*arguments, **settings)

    with pytest.raises(KeyboardInterrupt), Interrupts(defers=True), Transfer(torch.device("cpu")) as transfer:
        transfer._committer._idle_semaphore = Interrupted(0)
        transfer.commit(lambda: committed.append("first"))
        transfer.commit(lambda: committed.append("second"))
    assert reached == ["before", "behind"]
    assert committed == ["first"]


@pytest.mark.parametrize("tier", ["device", "disk"])
def test_an_interrupt_is_seen_between_two_shards(tier, small_config, tmp_path):
    config, order = small_config(cache__tier=tier), []

    class Ticking(ff.Observer):
        def on_step(self, description):
            order.append(description)
            if description == "propagating through layer 1":
                send()

    with pytest.raises(KeyboardInterrupt):
        ff.train(config, tmp_path / "run", observer=Ticking())
    assert order[-1] == "propagating through layer 1"
    assert ff.Run(tmp_path / "run").num_layers_done == 1


def interrupt_once(monkeypatch, module, name, nth, after):
    """Have the nth call of a function get an interrupt, lose it, and do something else then."""
    right, calls = getattr(module, name), []

    def wrong(*arguments, **settings):
        calls.append(name)
        if len(calls) == nth:
            send_and_lose()
            after()
        return right(*arguments, **settings)

    monkeypatch.setattr(module, name, wrong)


def fail():
    raise ValueError("could not determine the shape of object type 'torch.storage.UntypedStorage'")


@pytest.mark.parametrize("after", [fail, lambda: None], ids=["turned", "lost"])
@pytest.mark.parametrize(
    ("module", "name", "nth"),
    [(tensor_file, "read_header", 2), (DiskCache, "allocate", 5), (RunDirectory, "read_data", 1)],
    ids=["reading a layer", "writing a cache", "looking at the run"],
)
def test_a_run_ends_by_an_interrupt_that_foreign_code_hid(
    module, name, nth, after, small_config, tmp_path, monkeypatch
):
    config = small_config(cache__tier="disk", augmentation__restream=True, augmentation__max_shift=1)
    whole = ff.train(config, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_once(patch, module, name, nth, after)
        ff.train(config, tmp_path / "run")
    layers = layer_digests(tmp_path / "run")
    assert len(layers) < len(layer_digests(whole.path))
    check_resumed_equals(whole.path, ff.resume(tmp_path / "run").path)


def test_the_command_line_says_interrupted_not_what_was_made_of_it(tmp_path):
    (tmp_path / "run").mkdir()
    program = (
        "import os, signal, sys\n"
        "import ffstream.run.run as run\n"
        "from ffstream.cli.app import main\n"
        "def broken(*_):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt:\n"
        "        raise ValueError('nonsense') from None\n"
        "run.Run.__init__ = broken\n"
        "import ffstream.cli\n"
        "sys.argv = ['ffstream', 'inspect', 'run']\n"
        "main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (ended.returncode, ended.stderr) == (130, "ffstream: interrupted\n")
