"""The late device itself: it is as late, as forgetful and as strict as a device can be."""

from __future__ import annotations

import threading

import pytest
import torch

from ffstream.device.accelerator import find_accelerator
from ffstream.device.device import resolve_device
from tests.late.accelerator import late_cuda
from tests.late.streams import POLICIES
from tests.late.tensors import DEVICE

SHAPE = (5, 4)


def numbers():
    return torch.arange(20.0).view(SHAPE)


def in_pinned_memory(late, values):
    memory = late.allocate_pinned(values.nbytes).view(values.dtype).view(values.shape)
    return memory.copy_(values)


def causes(late):
    return sorted(wait.cause for wait in late.waits.elements())


def test_the_package_finds_it_in_the_place_of_cuda():
    with late_cuda():
        device = resolve_device("auto")
        assert device.type == "cuda"
        accelerator = find_accelerator(device)
        assert accelerator.total_bytes(device) > accelerator.requested_bytes(device)
        assert torch.zeros(SHAPE, device=device).device == DEVICE
    assert resolve_device("auto").type == "cpu" or torch.cuda.is_available()


@pytest.mark.parametrize("policy", POLICIES)
def test_operators_give_what_they_give_on_the_host(policy):
    def compute(rows):
        rows = rows * 2 - 7
        rows[1:3] += rows[0]
        rows[:, 1].clamp_(min=0)
        out = torch.empty_like(rows).fill_(1)
        torch.mul(rows, rows, out=out[: len(rows)])
        value, place = out.max(dim=1)
        index = torch.arange(len(rows), device=rows.device)
        chosen = rows.index_select(0, index[place > 0])
        parts = chosen.reshape(-1).bfloat16().split(3)
        return [out.t() @ rows, value, place, chosen[chosen > 1], *parts, torch.cat([index, place]).float().mean()]

    want = compute(numbers())
    with late_cuda(policy):
        found = [tensor.cpu() for tensor in compute(numbers().to("cuda"))]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, want, strict=True))


@pytest.mark.parametrize("waits", [False, True])
def test_who_does_not_wait_for_a_copy_to_the_host_reads_what_was_there(waits):
    with late_cuda() as late:
        accelerator = find_accelerator(DEVICE)
        room, done = in_pinned_memory(late, torch.zeros(SHAPE)), accelerator.make_event(DEVICE)
        room.copy_(numbers().to(DEVICE) + 1, non_blocking=True)
        done.record(accelerator.current_stream(DEVICE))
        if waits:
            done.synchronize()
        assert torch.equal(room, numbers() + 1 if waits else torch.zeros(SHAPE))


@pytest.mark.parametrize("waits", [False, True])
def test_a_stream_that_does_not_wait_for_another_reads_what_was_there(waits):
    with late_cuda("computing first") as late:
        accelerator = find_accelerator(DEVICE)
        source, copied, side = in_pinned_memory(late, numbers()), late.make_event(), accelerator.make_stream(DEVICE)
        rows = torch.empty(SHAPE, device=DEVICE)
        with accelerator.queueing_on(side):
            rows.copy_(source, non_blocking=True)
            copied.record(side)
        if waits:
            accelerator.current_stream(DEVICE).wait_event(copied)
        found = rows.clone()
        accelerator.synchronise(DEVICE)
        assert torch.equal(found.host, numbers()) == waits
        assert waits or found.host.isnan().all()


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_recorded_anew_does_not_move_who_waits_already(policy):
    with late_cuda(policy) as late:
        event, side, room = late.make_event(), late.queues.make_stream(), torch.zeros(1, device=DEVICE)
        event.record(late.stream)
        side.wait_event(event)
        room += 1
        event.record(late.stream)
        late.queues.drain(side)
        assert late.queues.computing.tasks or policy in ("computing first", "eager")
        event.synchronize()
        assert float(room.host) == 1


def test_freed_memory_is_poisoned_and_handed_out_again():
    with late_cuda() as late:
        first = torch.ones(SHAPE, device=DEVICE)
        taken, address = late.arena.requested_bytes, first.host.data_ptr()
        view = first[1:]
        del first
        assert late.arena.requested_bytes == taken  # the view keeps it
        del view
        assert late.arena.requested_bytes < taken
        again = torch.empty(SHAPE, device=DEVICE)
        assert again.host.data_ptr() == address
        assert torch.isnan(again).all()
        with late.queueing_on(late.queues.make_stream()):  # which would have to wait
            assert torch.empty(SHAPE, device=DEVICE).host.data_ptr() != address
        assert late.arena.peak_bytes >= taken


def test_memory_ends():
    with late_cuda(capacity_bytes=4096):
        held = torch.empty(3000, dtype=torch.uint8, device=DEVICE)
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(3000, dtype=torch.uint8, device=DEVICE)
        del held
        torch.empty(3000, dtype=torch.uint8, device=DEVICE)


def test_the_host_waits_for_copies_of_pageable_memory_and_not_for_those_of_pinned_memory():
    with late_cuda() as late:
        pinned, pageable, rows = in_pinned_memory(late, numbers()), numbers(), torch.empty(SHAPE, device=DEVICE)
        assert pinned.is_pinned()
        assert pinned[1:].is_pinned()
        assert not pageable.is_pinned()
        assert not rows.is_pinned()
        rows.copy_(pinned, non_blocking=True)
        pinned.copy_(rows, non_blocking=True)
        assert rows.to("cpu", non_blocking=True).is_pinned()  # as torch has it
        assert not late.waits
        rows.copy_(pageable, non_blocking=True)
        pageable.copy_(rows, non_blocking=True)
        rows.copy_(pinned.double(), non_blocking=True)  # converted on the way
        assert causes(late) == 2 * ["pageable copy to the device"] + ["pageable copy to the host"]
        late.waits.clear()
        rows.copy_(pinned)
        assert not bool((rows.cpu() > 99).any())
        assert causes(late) == ["copy to the device", "copy to the host"]


def test_whatever_reads_a_number_waits_and_is_counted_with_its_line():
    with late_cuda() as late:
        rows = torch.ones(SHAPE, device=DEVICE)
        for read in (lambda: rows.sum().item(), rows.tolist, rows.cpu, lambda: bool(rows.any()), rows.nonzero):
            before = late.waits.total()
            read()
            assert late.waits.total() == before + 1
        assert rows[torch.tensor([0, 2])].shape == (2, 4)
        assert "index on the host" in causes(late)
        assert {wait.line.split(":")[0] for wait in late.waits} == {"late/test_device.py"}
        assert {wait.thread for wait in late.waits} == {threading.current_thread().name}
        assert late.operators["aten::sum"] == 1


def test_operators_of_two_devices_are_refused_unless_one_gives_a_number():
    with late_cuda():
        rows = torch.ones(SHAPE, device=DEVICE)
        for other in (lambda: rows + torch.ones(SHAPE), lambda: torch.ones(SHAPE).add_(rows)):
            with pytest.raises(RuntimeError, match="same device"):
                other()
        assert torch.equal((rows + torch.tensor(2.0)).cpu(), torch.full(SHAPE, 3.0))


def test_products_that_are_left_out_are_zero_and_take_the_same_memory():
    peaks = []
    for multiplies in (True, False):
        with late_cuda(multiplies=multiplies) as late:
            rows, room = torch.ones(SHAPE, device=DEVICE), torch.ones(5, 5, device=DEVICE)
            torch.mm(rows, rows.t(), out=room)
            sums = room + rows @ rows.t()
            assert torch.equal(sums.cpu(), torch.full((5, 5), 8.0 if multiplies else 0.0))
            assert torch.equal((rows * 2).cpu(), torch.full(SHAPE, 2.0))
            peaks.append(late.arena.peak_bytes)
    assert peaks[0] == peaks[1]


def test_a_thread_that_is_started_meanwhile_has_the_device():
    found = []
    with late_cuda() as late:
        rows = torch.ones(SHAPE, device=DEVICE)
        thread = threading.Thread(target=lambda: found.append((rows + torch.zeros(SHAPE, device="cuda")).sum().item()))
        thread.start()
        thread.join()
        assert found == [20.0]
        assert {wait.thread for wait in late.waits} == {thread.name}


def test_a_layer_moves_there_and_its_generators_draw_what_those_of_the_host_draw():
    module, seed = torch.nn.Linear(4, 3), 5
    want = module(numbers()).detach()
    drawn = torch.empty(SHAPE).uniform_(generator=torch.Generator().manual_seed(seed))
    with late_cuda(), torch.no_grad():
        assert torch.equal(module.to("cuda")(numbers().to("cuda")).cpu(), want)
        there = torch.empty(SHAPE, device=DEVICE).uniform_(generator=torch.Generator("cuda").manual_seed(seed))
        assert torch.equal(there.cpu(), drawn)
