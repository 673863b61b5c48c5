"""What decides bits is part of a run: the same goes on, anything else is said and asked for."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import ffstream as ff
from ffstream.device import device
from ffstream.device.environment import describe_environment, find_differences, plain_torch
from ffstream.run import launch
from tests.helpers import InterruptAt, check_resumed_equals, layer_digests, run_cli

CPU = torch.device("cpu")


@pytest.fixture
def stopped(small_config, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        ff.train(small_config(), tmp_path / "run", observer=InterruptAt("on_epoch", 4))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("torch", "1.0"),
        ("device", "another GPU"),
        ("instructions", "other"),
        ("variables", "MKL_CBWR=AVX2"),
        ("arithmetic", "x"),
    ],
)
def test_what_decides_bits_and_differs_is_named_and_the_word_is_recorded(name, value, stopped, monkeypatch):
    here = describe_environment(CPU, "fp32")
    monkeypatch.setattr(launch, "describe_environment", lambda *_: here | {name: value})
    with pytest.raises(ff.RunMismatchError, match=f"{name}: .*--accept-environment"):
        ff.resume(stopped)
    assert len(ff.Run(stopped).directory.read_environments()) == 1
    with pytest.raises(KeyboardInterrupt):
        ff.resume(stopped, accept_environment=True, observer=InterruptAt("on_epoch", 1))
    assert [found[name] for found in ff.Run(stopped).directory.read_environments()] == [here[name], value]
    ff.resume(stopped)  # from here on it is what the run is trained with
    ff.Run(stopped).verify()


def test_a_finished_run_asks_for_nothing_until_it_grows(small_config, tmp_path, monkeypatch):
    run = ff.train(small_config(), tmp_path / "run")
    monkeypatch.setattr(launch, "describe_environment", lambda *_: {"torch": "1.0", "arithmetic": "x", "threads": 1})
    ff.resume(run.path)
    run.evaluate()
    with pytest.raises(ff.RunMismatchError, match="torch: 1.0"):
        ff.resume(run.path, layers=4)


def test_the_number_of_threads_is_the_runs_and_not_the_processs(small_config, tmp_path):
    """So that it need not be asked for: a run goes on with as many as it was started with."""
    torch.set_num_threads(2)
    whole = ff.train(small_config(), tmp_path / "whole").path
    with pytest.raises(KeyboardInterrupt):
        ff.train(small_config(), tmp_path / "run", observer=InterruptAt("on_epoch", 4))
    torch.set_num_threads(1)
    seen = []

    class Counting(ff.Observer):
        def on_epoch(self, *_):
            seen.append(torch.get_num_threads())

    ff.resume(tmp_path / "run", observer=Counting())
    assert set(seen) == {2}
    assert torch.get_num_threads() == 1
    check_resumed_equals(whole, tmp_path / "run")


@contextlib.contextmanager
def _default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def _default_device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def _matmul_precision():
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


PLACES = (("cuda", "matmul"), ("cuda", "all"), ("mkldnn", "matmul"), ("mkldnn", "all"), ("generic", "all"))
NEWER = {
    "cuda.matmul tf32": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "cuda.matmul ieee": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "ieee"),
    "cudnn tf32": lambda: setattr(torch.backends.cudnn, "fp32_precision", "tf32"),
    "all tf32": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "all bf16": lambda: setattr(torch.backends, "fp32_precision", "bf16"),
    "mkldnn bf16": lambda: setattr(torch.backends.mkldnn, "fp32_precision", "bf16"),
    "mkldnn alone tf32": lambda: torch.backends.mkldnn.set_flags(_fp32_precision="tf32"),
    "mkldnn.matmul bf16": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "high": lambda: torch.set_float32_matmul_precision("high"),
}


def _read_precisions():
    """What every place tells, and what each would tell if those above it said otherwise."""
    found = []
    for above in (None, "ieee", "tf32"):
        if above is not None:
            torch.backends.fp32_precision = above
        found.append([torch._C._get_fp32_precision_getter(*place) for place in PLACES])
    return found


@contextlib.contextmanager
def _newer_precision(*names):
    """The words of torch's newer interface, in the order of the names; all places are as at first on leaving."""
    before = [torch._C._get_fp32_precision_getter(*place) for place in PLACES]
    try:
        for name in names:
            NEWER[name]()
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        for place, value in zip(PLACES, before, strict=True):
            torch._C._set_fp32_precision_setter(*place, value)


GLOBALS = {
    "type": _default_dtype,
    "device": _default_device,
    "a device of this block": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "precision": _matmul_precision,
    "precision by library": lambda: _newer_precision("all tf32", "mkldnn.matmul bf16"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", GLOBALS)
@pytest.mark.parametrize("recipe", ["inject", "unsupervised"])
def test_nothing_of_ours_depends_on_what_a_program_sets_in_torch(name, recipe, small_config, tmp_path):
    config = small_config(recipe, layers=2, cache__tier="disk")
    whole = ff.train(config, tmp_path / "whole")
    images = torch.randint(0, 16, (9, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wanted = (
        whole.evaluate().error,
        whole.predict(images, calibrated=False).probabilities,
        whole.load().predict(images),
    )
    with GLOBALS[name]():
        before = (torch.get_default_dtype(), torch.get_default_device(), torch.is_inference_mode_enabled())
        with pytest.raises(KeyboardInterrupt):
            ff.train(config, tmp_path / "run", observer=InterruptAt("on_epoch", 4))
        run = ff.resume(tmp_path / "run")
        found = (
            run.evaluate().error,
            run.predict(images, calibrated=False).probabilities,
            ff.load(run.path).predict(images),
        )
        run.export(tmp_path / "export.safetensors")
        loaded = ff.load(tmp_path / "export.safetensors").predict(images)
        assert (torch.get_default_dtype(), torch.get_default_device(), torch.is_inference_mode_enabled()) == before
    assert layer_digests(run.path) == layer_digests(whole.path)
    assert found[0] == wanted[0]
    assert torch.equal(found[1], wanted[1])
    if name != "autocast":  # which a loaded network obeys, as any module does
        assert torch.equal(found[2], wanted[2])
        assert torch.equal(loaded, wanted[2])


@pytest.mark.parametrize("names", [*((name,) for name in NEWER), *itertools.permutations(NEWER, 2)], ids=", ".join)
def test_products_are_exact_in_a_block_and_what_was_asked_for_stands_behind_it(names):
    left, right = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0)).unbind()
    wanted = left @ right
    with _newer_precision(*names):
        expected = _read_precisions()
    with _newer_precision(*names):
        with plain_torch():
            assert torch.get_float32_matmul_precision() == "highest"
            for library in ("cuda", "mkldnn"):
                assert torch._C._get_fp32_precision_getter(library, "matmul") in ("none", "ieee")
            assert torch.equal(left @ right, wanted)
        assert _read_precisions() == expected


def test_the_older_word_for_the_precision_of_products_stands_behind_a_block_too():
    with _newer_precision("medium", "cuda.matmul ieee", "mkldnn.matmul bf16"):
        with plain_torch():
            pass
        assert torch.get_float32_matmul_precision() == "medium"


def test_the_arithmetic_of_an_environment_is_the_same_every_time_and_another_with_other_instructions():
    code = "import torch, ffstream.device.environment as e; print(e.describe_environment(torch.device('cpu'), 'fp32'))"

    def describe(**variables):
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | variables)
        return eval(found.stdout)

    here = describe()
    assert describe() == here
    assert describe(OMP_NUM_THREADS="2")["arithmetic"] == here["arithmetic"]
    other = describe(ATEN_CPU_CAPABILITY="default")
    assert find_differences(other, here) != []


def test_automatic_precision_follows_from_the_processor_and_never_from_a_clock(monkeypatch):
    monkeypatch.setattr("time.perf_counter", lambda: pytest.fail("asked the time"))
    for has, wanted in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(device, "has_bf16_products", lambda has=has: has)
        assert device.resolve_precision("auto", CPU) == wanted
    assert device.resolve_precision("fp32", CPU) == "fp32"


def test_plain_torch_sets_back_what_it_finds_also_after_an_error():
    with _default_dtype():
        with pytest.raises(ZeroDivisionError), plain_torch(num_threads=2):
            assert torch.get_default_dtype() == torch.float32
            assert torch.get_num_threads() == 2
            1 / 0  # noqa: B018
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_num_threads() == 1


def _in_thread(call):
    thread = threading.Thread(target=call, daemon=True)  # a test that fails waits for none
    thread.start()
    return thread


def _number_of_a_new_thread():
    found = []
    _in_thread(lambda: found.append(torch.get_num_threads())).join()
    return found[0]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_threads_leave_in_any_order_and_only_the_last_one_sets_back(order):
    """Each asks for another number of threads, of which it has its own; the rest of these states all of them share."""
    inside, leave, seen = threading.Barrier(4), [threading.Event() for _ in order], [[] for _ in order]

    def work(number):
        own = torch.get_num_threads()
        with plain_torch(num_threads=number + 2):
            inside.wait()
            leave[number].wait()
            seen[number] = [torch.get_default_dtype(), torch.get_num_threads(), torch.get_float32_matmul_precision()]
        seen[number] += [own == torch.get_num_threads()]

    with _default_dtype(), _newer_precision("cuda.matmul tf32"):
        expected = _read_precisions()
    with _default_dtype(), _newer_precision("cuda.matmul tf32"):
        threads = []
        for number in range(3):
            threads.append(_in_thread(lambda number=number: work(number)))
        inside.wait()
        for number in order:
            assert torch.get_default_dtype() == torch.float32
            leave[number].set()
            threads[number].join()
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_num_threads() == 1
        assert _number_of_a_new_thread() == 1
        assert _read_precisions() == expected
    assert seen == [[torch.float32, number + 2, "highest", True] for number in range(3)]


def test_a_block_in_a_block_sets_back_what_an_observer_set_in_between():
    with plain_torch():
        with _default_dtype():
            with plain_torch():
                assert torch.get_default_dtype() == torch.float32
            assert torch.get_default_dtype() == torch.float64
        assert torch.get_default_dtype() == torch.float32


def test_runs_are_loaded_and_predict_in_threads_side_by_side_and_leave_the_defaults_alone(small_config, tmp_path):
    run = ff.train(small_config(layers=2), tmp_path / "run")
    images = torch.randint(0, 16, (9, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wanted = run.predict(images).probabilities
    with _default_dtype():

        def work(number):
            for _ in range(10):
                found = run.predict(images).probabilities if number else ff.load(run.path)(images)
                assert torch.equal(found, wanted) if number else found.dtype == torch.float32

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(work, range(3)))
        assert torch.get_default_dtype() == torch.float64


def test_the_command_line_has_the_word(stopped, monkeypatch):
    here = describe_environment(CPU, "fp32")
    monkeypatch.setattr(launch, "describe_environment", lambda *_: here | {"torch": "1.0"})
    _, _, error = run_cli("resume", stopped)
    assert "--accept-environment" in str(error)
    assert run_cli("resume", stopped, "--accept-environment")[0] == 0
