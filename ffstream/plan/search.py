"""Searching the largest size that fits, where each try takes a while. Pure."""

from __future__ import annotations

from collections.abc import Callable

_NUM_GUESSES = 8  # by interpolation, before halving, which is slower and always ends


def find_most(room_bytes: Callable[[int], int], most: int) -> int:
    """The largest number below `most` that leaves no negative room; 1 if there is none.

    The room shrinks as numbers grow, nearly along a straight line, so that few tries are enough: the number where the
    line through both ends meets zero, and its neighbours.
    """
    fits, room, lack, num_tried = 1, room_bytes(1), room_bytes(most), 0
    while most - fits > 1:
        guess = (fits + most) // 2
        if num_tried < _NUM_GUESSES and lack < 0 <= room:
            guess = fits + (most - fits) * room // (room - lack)
            guess = min(max(guess, fits + 1), most - 1)
        found, num_tried = room_bytes(guess), num_tried + 1
        if found >= 0:
            fits, room = guess, found
        else:
            most, lack = guess, found
    return fits
