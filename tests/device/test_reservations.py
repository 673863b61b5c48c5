"""Several runs at once: each plans with the memory that the others have not reserved."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading

import pytest

import ffstream as ff
from ffstream.device.reservations import planning, reserved, reserved_by_others
from ffstream.ground.processes import Process, make_tag

GIB = 1 << 30


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A system's folder for temporary files of the test's own."""
    path = tmp_path / "tmp"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path / f"ffstream-{os.getuid()}"


@pytest.fixture
def other(place):
    """Another process, that has reserved 5 GiB."""
    code = (
        "import sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from ffstream.device.reservations import reserved\n"
        f"with reserved({5 * GIB}):\n"
        "    print('ready', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(place.parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


def test_what_others_have_reserved_and_do_not_hold_is_not_free(other, place):
    with reserved(7 * GIB):  # its own it may take
        assert 4 * GIB < reserved_by_others() < 5 * GIB
    other.stdin.close()
    other.wait()
    assert reserved_by_others() == 0
    assert [path.name for path in place.iterdir()] == []


def test_what_a_dead_process_had_reserved_is_free_and_goes(other, place):
    other.kill()
    other.wait()
    assert len(list(place.iterdir())) == 1
    assert reserved_by_others() == 0
    assert not list(place.iterdir())


@pytest.mark.parametrize("content", [b"", b"many", b"\xff", b"9" * 100, b"-5"])
def test_what_is_no_reservation_reserves_nothing(content, place):
    place.mkdir(mode=0o700)
    (place / "memory-nonsense").write_bytes(content)
    (place / f"memory-{Process.here().pid}-1-00000000-5").write_bytes(content)  # of another machine
    assert reserved_by_others() == 0
    assert len(list(place.iterdir())) == 2


@pytest.mark.parametrize("kind", ["link", "open", "file"])
def test_a_folder_that_is_not_the_users_own_is_left_alone(kind, place, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    if kind == "link":
        place.symlink_to(theirs)
    elif kind == "open":  # to everybody, who may put files there
        place.mkdir()
        place.chmod(0o777)
    else:
        place.write_text("theirs")
    with planning(), reserved(GIB):
        assert reserved_by_others() == 0
        assert not list(theirs.iterdir())
        assert kind != "open" or not list(place.iterdir())


def test_plans_are_made_one_after_another(place):
    order = []

    def plan():
        with planning():
            order.append("second")

    with planning():
        thread = threading.Thread(target=plan)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_run_plans_with_what_is_left(other, small_config, tmp_path, monkeypatch):
    monkeypatch.setattr("ffstream.plan.probe.host_free_bytes", lambda: 4 * GIB)
    with pytest.raises(ff.BudgetError):  # of which the other one will take all
        ff.train(small_config(), tmp_path / "run")
    other.kill()
    other.wait()
    ff.train(small_config(), tmp_path / "run")


def test_a_run_reserves_what_it_plans_to_take_until_it_ends(small_config, tmp_path, place):
    found = []

    class Listener(ff.Observer):
        def on_start(self, *_):
            (path,) = place.glob(f"memory-{make_tag()}-*")
            found.append(int(path.read_text()))

    run = ff.train(small_config(), tmp_path / "run", observer=Listener())
    assert found[0] > 0
    assert not list(place.glob("memory-*"))
    assert ff.make_plan(run.config, tmp_path / "other").host.num_bytes > 0
    assert not list(place.glob("memory-*"))


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "5"}])
@pytest.mark.parametrize(
    ("load", "waiting"),
    [
        ("0.10 0.20 0.30 3/250 77", {"GOMP_SPINCOUNT": "5000"}),
        ("9.10 0.20 0.30 1/250 77", {}),
        ("unlike Linux", {}),
        (None, {}),
    ],
)
def test_threads_that_wait_leave_the_cores_to_others_unless_the_user_says_how(load, waiting, given, tmp_path):
    if load is not None:
        (tmp_path / "load").write_text(load)
    code = "import os, sys; sys.argv[1:] = ['recipes', 'GOMP_SPINCOUNT', 'OMP_WAIT_POLICY']\n"
    code += f"from ffstream import cli, entry; entry._LOAD = {str(tmp_path / 'load')!r}\n"
    code += "names = sys.argv[2:]; cli.main = lambda: print({k: v for k, v in os.environ.items() if k in names})\n"
    code += "entry.main()"
    environment = {
        k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(given or waiting)
