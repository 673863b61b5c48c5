"""The plan: every step finds what it needs, and nothing is done twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ffstream.run.schedule import Action, Step, compute_schedule, remaining_steps


def execute(steps, num_done, cached, num_in_stack):
    """What is there after the steps; fails when one lacks what it needs."""
    done, available = num_done, set(cached)
    for step in steps:
        if step.action is Action.WRITE_INPUT:
            assert step.layer % num_in_stack == 0
            available = {step.layer}
        elif step.action is Action.TRAIN:
            assert step.layer in available
            assert step.layer == done
            done += 1
        else:
            assert step.layer in available
            assert step.layer < done
            assert (step.layer + 1) % num_in_stack
            available = {step.layer + 1}
    return done, available


def test_three_layers_spelt_out():
    assert compute_schedule(3, 3) == (
        Step(Action.WRITE_INPUT, 0),
        Step(Action.TRAIN, 0),
        Step(Action.PROPAGATE, 0),
        Step(Action.TRAIN, 1),
        Step(Action.PROPAGATE, 1),
        Step(Action.TRAIN, 2),
    )


def test_a_stack_begins_with_images():
    assert compute_schedule(3, 2) == (
        Step(Action.WRITE_INPUT, 0),
        Step(Action.TRAIN, 0),
        Step(Action.PROPAGATE, 0),
        Step(Action.TRAIN, 1),
        Step(Action.WRITE_INPUT, 2),
        Step(Action.TRAIN, 2),
    )


@given(num_layers=st.integers(1, 40), num_in_stack=st.integers(1, 45), data=st.data())
def test_an_interruption_anywhere_leaves_a_plan_that_finishes(num_layers, num_in_stack, data):
    schedule = compute_schedule(num_layers, num_in_stack)
    cut = data.draw(st.integers(0, len(schedule)))
    done, available = execute(schedule[:cut], 0, (), num_in_stack)
    cached = data.draw(st.sampled_from([available, set()]))  # the disk tier keeps its caches, memory does not
    steps = remaining_steps(num_layers, num_in_stack, done, cached)
    assert execute(steps, done, cached, num_in_stack)[0] == num_layers


@given(num_layers=st.integers(1, 30), num_in_stack=st.integers(1, 35), data=st.data())
def test_no_committed_layer_is_trained_again(num_layers, num_in_stack, data):
    num_done = data.draw(st.integers(0, num_layers))
    cached = data.draw(st.sets(st.integers(0, num_layers)))
    steps = remaining_steps(num_layers, num_in_stack, num_done, cached)
    trained = [step.layer for step in steps if step.action is Action.TRAIN]
    assert trained == list(range(num_done, num_layers))


@given(num_layers=st.integers(0, 30), extra=st.integers(0, 5))
def test_a_finished_run_has_nothing_left(num_layers, extra):
    assert remaining_steps(num_layers, max(num_layers, 1), num_layers + extra, ()) == ()


@given(num_layers=st.integers(1, 30), num_in_stack=st.integers(1, 35), data=st.data())
def test_a_plan_finds_its_inputs_whatever_caches_are_left(num_layers, num_in_stack, data):
    num_done = data.draw(st.integers(0, num_layers - 1))
    cached = data.draw(st.sets(st.integers(0, num_layers)))
    done, _ = execute(remaining_steps(num_layers, num_in_stack, num_done, cached), num_done, cached, num_in_stack)
    assert done == num_layers


@given(num_layers=st.integers(1, 30), num_in_stack=st.integers(1, 35), data=st.data())
def test_a_crash_between_writing_a_cache_and_dropping_the_last_repeats_nothing(num_layers, num_in_stack, data):
    num_done = data.draw(st.integers(0, num_layers - 1))
    steps = remaining_steps(num_layers, num_in_stack, num_done, {num_done, max(num_done - 1, 0)})
    assert steps[0] == Step(Action.TRAIN, num_done)


@given(num_layers=st.integers(1, 30), data=st.data())
def test_what_is_gone_is_written_from_the_nearest_cache_that_is_left(num_layers, data):
    num_done = data.draw(st.integers(0, num_layers - 1))
    cached = data.draw(st.sets(st.integers(0, num_done), min_size=1))
    steps = remaining_steps(num_layers, num_layers, num_done, cached)
    assert Step(Action.WRITE_INPUT, 0) not in steps
    propagated = [step.layer for step in steps if step.action is Action.PROPAGATE]
    assert propagated == list(range(max(cached), num_layers - 1))


@given(num_layers=st.integers(1, 60), num_in_stack=st.integers(1, 70))
def test_a_run_from_scratch_takes_two_steps_a_layer_and_propagates_none_in_vain(num_layers, num_in_stack):
    steps = compute_schedule(num_layers, num_in_stack)
    assert len(steps) == len(set(steps)) == 2 * num_layers
    assert steps[-1] == Step(Action.TRAIN, num_layers - 1)
