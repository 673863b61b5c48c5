"""Shards keep their bits in whatever order a device does its work, and every wait of `transfer.py` is needed for it."""

from __future__ import annotations

import ast
import types
from pathlib import Path

import pytest

from ffstream.cache import transfer
from tests.late.orders import ORDERS
from tests.late.streams import POLICIES

WAITS = {"wait_event", "record", "synchronize"}
SOURCE = Path(transfer.__file__).read_text()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.__name__)
def test_whatever_the_order_of_the_device(order, policy):
    order(transfer, policy)


def waits_of(tree):
    """The calls that order the work of the device, wherever they are."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute))
    return sorted((node for node in calls if node.func.attr in WAITS), key=lambda node: (node.lineno, node.col_offset))


def without_wait(number):
    """The module without one of those calls."""

    class Taken(ast.NodeTransformer):
        def visit_Call(self, node):
            return ast.copy_location(ast.Constant(None), node) if node is taken else self.generic_visit(node)

    tree = ast.parse(SOURCE)
    taken = waits_of(tree)[number]
    module = types.ModuleType("transfer_without_a_wait")
    exec(compile(Taken().visit(tree), transfer.__file__, "exec"), module.__dict__)
    return module


def name_of(number):
    node = waits_of(ast.parse(SOURCE))[number]
    return f"{node.lineno}:{ast.unparse(node)}"


@pytest.mark.parametrize("number", range(len(waits_of(ast.parse(SOURCE)))), ids=name_of)
def test_a_wait_that_is_taken_away_is_noticed(number):
    module = without_wait(number)
    for order in ORDERS:
        for policy in POLICIES:
            try:
                order(module, policy)
            except AssertionError:
                return
    pytest.fail(f"nothing shows that transfer.py needs line {name_of(number)}")
