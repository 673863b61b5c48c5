"""What the tests of hostile data share: nothing may block or be started."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest


@pytest.fixture
def nothing_blocks():
    """What waits for a FIFO or runs after links without end is an error in seconds."""

    def stop(*_args):
        raise AssertionError("blocked")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def nothing_is_started(monkeypatch):
    """No other program is started."""

    def refuse(*_args, **_options):
        raise AssertionError("another program was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "system", refuse)
    monkeypatch.setattr(os, "posix_spawn", refuse)
