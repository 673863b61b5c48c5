"""Files that rot: whatever is altered is named before it is used, or makes no difference."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import ffstream as ff
from ffstream.run.repair import put_aside
from tests.torture.crash import Bench, Counts
from tests.torture.faults import in_child
from tests.torture.work import stop_in_second_layer, train

_PAGE_BYTES = 4096


def let_rot(bench: Bench, num_bits: int, stride: int, counts: Counts) -> None:
    """Alter each file of a run that was stopped in its second layer, and of a finished one: every `stride`-th case."""
    whole, other = bench.place.parent / "kept", bench.place.parent / "other"
    for stopped in (True, False):
        for place, seed in ((whole, 0), (other, 1)):
            shutil.rmtree(place, ignore_errors=True)
            assert in_child(partial(_train, bench, place, seed, stopped=stopped)).finished
        kind = "stopped" if stopped else "finished"
        identities = [ff.Run(place).directory.read_identity() or "" for place in (whole, other)]
        cases = [
            (file, how, altered)
            for file in sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
            for how, altered in _alter((whole / file).read_bytes(), other / str(file).replace(*identities), num_bits)
            if "lock" not in file.name and altered != (whole / file).read_bytes()
        ]
        for file, how, altered in cases[stride // 2 :: stride]:
            bench.clear()
            shutil.copytree(whole, bench.run_dir)
            (bench.run_dir / file).write_bytes(altered)
            problem, refused = _find_problem(bench, file)
            counts.add(f"{bench.name}, {kind}, {file} {how}", problem, refused=refused)


def _train(bench: Bench, place: Path, seed: int, *, stopped: bool) -> None:
    config = bench.config.override({"seed": seed})
    try:
        train(config, place, stop_in_second_layer(config) if stopped else None)
    except KeyboardInterrupt:
        assert stopped


def _find_problem(bench: Bench, file: Path) -> tuple[str | None, bool]:
    """What is wrong with how an altered file was met, and whether it was refused by name."""

    def work() -> str:
        if not str(file).startswith("cache"):  # which is checked as it is read, too
            ff.Run(bench.run_dir).verify()
        train(bench.config, bench.run_dir)
        return ""

    ended = in_child(work)
    if ended.refusal:
        names_it = file.name in ended.refusal or file.parent.name in ended.refusal
        if not names_it or "\n" in ended.refusal:
            return f"refused by {ended.refusal!r}", True
        return _find_unrepaired(bench, file), True
    if not ended.finished:
        return f"ended with {ended}", False
    found = bench.describe()
    if not found.finished:
        return f"was not noticed, and cannot be read after it: {found}", False
    different = [key for key in bench.whole if found.value[key] != bench.whole[key]]
    return (f"was not noticed: {', '.join(different)} differ" if different else None), False


def _find_unrepaired(bench: Bench, file: Path) -> str | None:
    """What is wrong after a repair, which there is of all but the run itself and its labels: these are restored."""
    if len(file.parts) == 1 and file.name != "metrics.jsonl":
        return None

    def work() -> None:
        directory = ff.Run(bench.run_dir).directory
        found, aside = put_aside(directory)
        assert found.problems
        assert aside is not None or not found.damaged  # a resume mends what it says, and moves nothing
        train(bench.config, bench.run_dir)
        shutil.rmtree(bench.run_dir / "damaged-1", ignore_errors=True)

    ended = in_child(work)
    if not ended.finished:
        return f"was not repaired: {ended}"
    found = bench.describe()
    if not found.finished:
        return f"cannot be read after its repair: {found}"
    unseen = ("metrics", "files") if file.name == "metrics.jsonl" else ()  # they are gone for good
    different = [key for key in bench.whole if found.value[key] != bench.whole[key] and key not in unseen]
    return f"repaired to something else: {', '.join(different)} differ" if different else None


def _alter(data: bytes, twin: Path, num_bits: int) -> Iterator[tuple[str, bytes]]:
    """In every way. `twin` is the same file of another run, which may not be there."""
    chance = random.Random(twin.name)
    for bit in sorted(chance.sample(range(8 * len(data)), min(num_bits, 8 * len(data)))):
        yield f"with bit {bit} flipped", _flip(data, bit)
    for length in range(0, len(data), _PAGE_BYTES):
        yield f"cut to {length} bytes", data[:length]
    yield "without its last byte", data[:-1]
    yield "with a byte more", data + b"\0"
    yield "of zeros", bytes(len(data))
    yield "of another run", twin.read_bytes() if twin.exists() else b"other"
    if twin.suffix == ".safetensors":
        for name, head in _HOSTILE.items():
            yield name, head + data[len(head) :]


def _flip(data: bytes, bit: int) -> bytes:
    altered = bytearray(data)
    altered[bit // 8] ^= 1 << bit % 8
    return bytes(altered)


def _header(entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


_HOSTILE = {
    "with a header longer than the file": (1 << 40).to_bytes(8, "little"),
    "with a header of 2^63 bytes": (1 << 63).to_bytes(8, "little"),
    "with tensors that overlap": _header(
        {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in ("weight", "bias", "rows")}
    ),
    "with a tensor beyond the file": _header(
        {"rows": {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 1 << 62]}}
    ),
    "with a negative shape": _header({"rows": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}),
    "with a header of nested lists": (1 << 15).to_bytes(8, "little") + b"[" * (1 << 15),
    "with another type": _header({"rows": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}}),
}
