"""Parses a pickle as plain data: nothing that it names is looked up, created or called."""

from __future__ import annotations

from dataclasses import dataclass
from pickletools import genops
from typing import Any

# The opcodes of protocol 2 whose argument is the value itself.
_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "SHORT_BINSTRING", "BINSTRING", "BINUNICODE"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


@dataclass
class Call:
    """An object that unpickling would create by calling `name` with `arguments`, and then fill with `state`."""

    name: Any
    arguments: Any
    state: Any = None


def parse_pickle(content: bytes) -> Any:
    """Parse a pickle of protocol 2 into plain values, with a Call in place of any other object. Raises ValueError.

    Strings of Python 2 are read as Latin-1, byte for byte.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    try:
        for opcode, argument, _ in genops(content):
            name = opcode.name
            if name in _VALUES or name == "GLOBAL":
                stack.append(argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name == "EMPTY_LIST":
                stack.append([])
            elif name == "EMPTY_DICT":
                stack.append({})
            elif name == "MARK":
                stack.append(_MARK)
            elif name in _TUPLES:
                stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
            elif name == "TUPLE":
                items = _pop_to_mark(stack)
                stack.append(tuple(items))
            elif name == "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            elif name == "APPENDS":
                items = _pop_to_mark(stack)
                stack[-1].extend(items)
            elif name == "SETITEM":
                items = [stack.pop(), stack.pop()]
                stack[-1][items[1]] = items[0]
            elif name == "SETITEMS":
                items = _pop_to_mark(stack)
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name == "REDUCE":
                arguments = stack.pop()
                stack[-1] = Call(stack[-1], arguments)
            elif name == "BUILD":
                state = stack.pop()
                stack[-1].state = state
            elif name not in ("PROTO", "STOP"):
                raise ValueError(f"found {name}, which no plain data have")
        (value,) = stack
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError("no whole pickle") from error
    return value


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    start = len(stack) - 1
    while stack[start] is not _MARK:
        start -= 1
    items = stack[start + 1 :]
    del stack[start:]
    return items
