"""Buffers of a step: one for each name, as large as the largest request, and no memory beside it."""

from __future__ import annotations

import weakref

import pytest
import torch

from ffstream.device.workspace import Buffer, Workspace

CPU = torch.device("cpu")
ROWS, OTHERS = Buffer("rows", "rows"), Buffer("others", "activities")


def test_a_name_is_one_buffer_in_whatever_shape_and_type():
    room = Workspace(CPU)
    first = room.take(ROWS, (4, 6), torch.float32).fill_(1.0)
    assert room.take(ROWS, (3, 2), torch.bfloat16).data_ptr() == first.data_ptr()
    assert room.take(ROWS, (4, 6), torch.float32).data_ptr() == first.data_ptr()
    assert room.take(OTHERS, (4, 6), torch.float32).data_ptr() != first.data_ptr()
    assert room.num_bytes("rows") == 96


def test_a_buffer_that_grows_leaves_no_memory_behind():
    room = Workspace(CPU)
    before = weakref.ref(room.take(ROWS, (2,), torch.float32))
    grown = room.take(ROWS, (3,), torch.float32)
    assert before() is None
    assert room.take(ROWS, (2,), torch.float32).data_ptr() == grown.data_ptr()
    assert room.num_bytes("rows") == 12


def test_a_cleared_workspace_holds_nothing():
    room = Workspace(CPU)
    before = weakref.ref(room.take(ROWS, (2,), torch.float32))
    room.clear()
    assert before() is None
    assert room.num_bytes("rows") == 0


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        (lambda room: None, True),
        (lambda room: room.take(OTHERS, (9,), torch.float32), True),
        (lambda room: room.take(ROWS, (2,), torch.bfloat16), False),
        (lambda room: room.take_again(ROWS, (4,), torch.float32, "other"), False),
        (lambda room: room.clear(), False),
    ],
)
def test_content_is_there_until_its_buffer_is_taken_for_something_else(between, expected):
    room = Workspace(CPU)
    _, is_there = room.take_again(ROWS, (4,), torch.float32, "content")
    assert not is_there
    between(room)
    _, is_there = room.take_again(ROWS, (4,), torch.float32, "content")
    assert is_there == expected
