"""What a layer needs, known before it exists: the ledger, the terms, and their sum against an allocator."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import ffstream as ff
from benchmarks.footprint import compare, draw_config, draw_conv_config
from ffstream.data.shape import DataShape
from ffstream.device.ledger import PAPER, Ledger
from ffstream.device.memory import measure_peak_bytes
from ffstream.device.parts import part_sizes
from ffstream.field.blueprint import Blueprint
from ffstream.plan.dry_run import do_on_paper
from ffstream.plan.footprint import add_slots

CPU = torch.device("cpu")


def footprints(num_features=100, num_samples=5000, staged=True, **settings):
    config = ff.Config(layers=settings.pop("layers", 3), width=settings.pop("width", 100), batch=128)
    config = config.override({"precision": "fp32", "cache.shard_samples": 4096} | settings)
    data = DataShape(num_features, 10, {"train": num_samples, "validation": num_samples // 10})
    blueprint = Blueprint.of(config, data)
    layers = add_slots(do_on_paper(blueprint, draws_on_device=True), blueprint, staged=staged)
    return [layer.footprint for layer in layers]


def test_the_ledger_counts_a_storage_once_until_it_is_freed():
    with Ledger() as ledger:
        first = torch.empty(100, 10, device=PAPER)
        assert ledger.live_bytes == 4000
        view = first[:50].t()
        first.add_(1)
        torch.mul(first, 2, out=first)
        assert ledger.live_bytes == 4000
        del first
        assert ledger.live_bytes == 4000  # the view keeps it
        second = torch.empty(10, dtype=torch.bfloat16, device=PAPER)
        assert ledger.live_bytes == 4020
        del view
        assert ledger.live_bytes == 20
        assert ledger.peak_bytes == 4020
        ledger.start_peak()
        assert ledger.peak_bytes == 20
        del second
    assert ledger.live_bytes == 0


def test_the_ledger_does_not_enter_what_was_there_before():
    before = torch.empty(1000, device=PAPER)
    with Ledger() as ledger:
        before.view(10, 100)[3].zero_()
        assert ledger.live_bytes == ledger.peak_bytes == 0


def test_products_are_counted_in_new_memory_in_memory_that_is_given_and_in_place():
    left, right, room = (torch.zeros(shape, device=PAPER) for shape in ((5, 7), (7, 3), (5, 3)))
    with Ledger() as ledger:
        for number, product in enumerate(
            (lambda: left @ right, lambda: torch.mm(left, right, out=room), lambda: room.addmm_(left, right)), 1
        ):
            product()
            assert ledger.work.flops == number * 2 * 5 * 7 * 3


def test_operators_that_write_to_what_is_there_hand_it_back_and_are_counted_by_what_they_read_and_write():
    first, second = (torch.zeros(4, 6, device=PAPER) for _ in range(2))
    room, places = torch.empty(4, 6, device=PAPER), torch.zeros(4, 6, dtype=torch.int64, device=PAPER)
    operators = {
        lambda: torch.add(first, second, out=room): (room, 3 * 96),
        lambda: torch.gather(first, 1, places, out=room): (room, 2 * 96 + 192),
        lambda: first.add_(second): (first, 3 * 96),
        lambda: first.scatter_(1, places, second): (first, 3 * 96 + 192),
        lambda: first.normal_(): (first, 2 * 96),
    }
    for operator, (written, moved_bytes) in operators.items():
        with Ledger() as ledger:
            assert operator() is written
            assert (ledger.peak_bytes, ledger.work.moved_bytes, ledger.work.num_operators) == (0, moved_bytes, 1)


def test_an_operator_that_turns_a_tensor_in_place_does_so_on_paper():
    tensor = torch.zeros(4, 6, device=PAPER)
    with Ledger() as ledger:
        assert tensor.t_() is tensor
        assert tensor.shape == (6, 4)
        assert ledger.peak_bytes == 0


def test_the_ledger_and_the_allocator_agree_on_what_operators_take():
    def work(device):
        rows = torch.zeros(50, 40, device=device)
        weight = torch.zeros(30, 40, device=device, requires_grad=True)
        return torch.autograd.grad((rows @ weight.t()).relu().square().sum(), [weight])

    with Ledger() as ledger:
        work(PAPER)
    assert measure_peak_bytes(lambda: work(CPU), CPU) == ledger.peak_bytes > 0


@pytest.mark.parametrize(("name", "num_state"), [("adam", 2), ("adamw", 2), ("sgd", 1)])
def test_weights_and_optimiser_state_are_counted_by_parameter(name, num_state):
    for footprint in footprints(**{"optimiser.name": name}):
        num_parameters = 100 * 100 + 100 + 10 * 100
        assert footprint.weights == 4 * (num_parameters + 100)  # and the running mean of each unit
        assert 0 <= footprint.optimiser - 4 * num_state * num_parameters <= 8  # and the number of steps


def test_slots_hold_two_shards_each_way_and_none_when_the_cache_is_on_the_device():
    shard = 4096 * 100 * 2
    validation = 500 * 100 * 2
    without, staged = footprints(staged=False)[0], footprints()[0]
    assert without.slots == 0
    assert staged.slots == 2 * shard
    assert staged.handing_on - without.handing_on == 4 * shard
    assert footprints(num_samples=4000)[0].slots == 4000 * 100 * 2  # one shard of each split
    assert validation < shard


def test_the_last_layer_hands_nothing_on():
    only, *_ = footprints(layers=1)
    first, *_ = footprints(layers=2)
    assert only.handing_on < first.handing_on
    assert only.training == first.training


def test_memory_is_flat_in_depth():
    assert footprints(layers=4) == footprints(layers=400)
    assert len(footprints(layers=400)) == 3


def test_a_layer_that_no_machine_holds_is_planned_for():
    footprint = footprints(width=1 << 18, layers=2)[1]
    assert footprint.weights > 4 << 36
    assert footprint.peak > 12 << 36


@pytest.mark.parametrize(
    ("key", "less", "more"),
    [("width", 100, 101), ("batch", 128, 256), ("network.dropout", 0.0, 0.4), ("negatives.per_step", 3, 4)],
)
def test_more_of_anything_takes_more(key, less, more):
    assert footprints(**{key: less})[1].training < footprints(**{key: more})[1].training


def test_every_term_is_positive():
    for recipe in ("inject", "hinton", "unsupervised"):
        config = ff.Config(recipe=recipe).to_flat()
        settings = {key: config[key] for key in config if key.partition(".")[0] in ("labels", "objective", "negatives")}
        for footprint in footprints(**settings):
            assert all(value > 0 for value in dataclasses.asdict(footprint).values()), footprint


@pytest.mark.parametrize("number", [0, 7, 23, 28, 29, 35, 49, 114, 124, 145, 227])
def test_planned_memory_is_what_a_run_takes(number, tmp_path):
    config, num_features = draw_config(number)
    planned, measured = compare(config, num_features, tmp_path / "sweep")
    assert measured <= planned <= 1.1 * measured


@pytest.mark.parametrize(
    "settings",
    [{}, {"augmentation.views": 5}, {"augmentation.restream": True}, {"network.stack_features": 0.5}],
)
@pytest.mark.parametrize("number", [48, 65])
def test_planned_memory_of_stacks_whose_images_are_written_again_is_what_a_run_takes(number, settings, tmp_path):
    config, num_features = draw_config(number)
    assert config.layers > config.network.stack_layers > 0
    planned, measured = compare(config.override(settings), num_features, tmp_path / "sweep")
    assert measured <= planned <= 1.1 * measured


ROUNDS = {"schedule.order": "rounds", "network.tile_units": "auto", "augmentation.views": 1}


@pytest.mark.parametrize("settings", [{}, {"augmentation.restream": True}], ids=["plain", "fresh"])
@pytest.mark.parametrize("number", [7, 28, 48, 65, 145])
def test_planned_memory_of_rounds_is_what_a_run_takes(number, settings, tmp_path):
    config, num_features = draw_config(number)
    planned, measured = compare(config.override(ROUNDS | {"epochs": 3} | settings), num_features, tmp_path / "sweep")
    assert measured <= planned <= 1.1 * measured


@pytest.mark.parametrize("number", [2, 9])
def test_planned_memory_of_convolutions_in_rounds_is_what_a_run_takes(number, tmp_path):
    config, num_features = draw_conv_config(number)
    planned, measured = compare(config.override(ROUNDS | {"epochs": 2}), num_features, tmp_path / "sweep")
    assert measured <= planned <= 1.1 * measured


@pytest.mark.parametrize(("number", "tile_units"), [(28, "auto"), (10, 70)])
def test_planned_memory_of_hard_negatives_is_what_a_run_takes(number, tile_units, tmp_path):
    config, num_features = draw_config(number)
    config = config.override({"negatives.sampler": "hard", "network.tile_units": tile_units, "epochs": 2})
    planned, measured = compare(config, num_features, tmp_path / "sweep")
    assert measured <= planned <= 1.1 * measured


@pytest.mark.parametrize(
    ("recipe", "goodness", "number", "parts"),
    [
        ("grouped", "mean", 7, {}),
        ("grouped", "sum", 10, {"network.tile_units": 70}),
        ("mono", "mean", 29, {"micro_batch": 11}),
        ("mono", "sum", 10, {"network.tile_units": 70}),
    ],
)
def test_planned_memory_of_recipes_without_negatives_is_what_a_run_takes(recipe, goodness, number, parts, tmp_path):
    config, num_features = draw_config(number)
    method = ff.Config(recipe=recipe).labels.method
    settings = {"labels.method": method, "objective.goodness": goodness, "objective.name": "cross_entropy"}
    planned, measured = compare(config.override(settings | parts), num_features, tmp_path / "sweep")
    assert measured <= planned <= 1.1 * measured


UNLABELLED = {"labels.method": "none", "objective.similarity": "none"}
UNLABELLED |= {"negatives.per_step": 2, "negatives.per_sample": 3}


@pytest.mark.parametrize("number", [0, 23, 29, 49])
def test_planned_memory_of_learning_without_labels_is_what_a_run_takes(number, tmp_path):
    config, num_features = draw_config(number)
    planned, measured = compare(config.override(UNLABELLED), num_features, tmp_path / "sweep")
    assert measured <= planned <= 1.1 * measured


@pytest.mark.parametrize("kind", ["objective", "goodness", "layer"])
def test_parts_that_leave_their_gradient_to_autograd_are_planned_for(kind, tmp_path, monkeypatch):
    """What a user registers is planned for without a formula of its own."""
    from ffstream.field.goodness import GOODNESSES, Goodness
    from ffstream.field.layers import LAYER_KINDS, Layer
    from ffstream.field.objectives import OBJECTIVES, Objective

    class Cubes(Goodness):
        def value(self, activities):
            return activities.pow(3).mean(dim=1)

    class Hinge(Objective):
        def loss(self, logits):
            return torch.relu(1 - logits[:, :1] + logits[:, 1:]).mean(dim=1)

    class Wide(Layer):
        def __init__(self, shape, compute_dtype=torch.float32):
            super().__init__(shape, compute_dtype)
            self.weight = torch.nn.Parameter(torch.empty(self.num_units, self.in_features))

        def initialise(self, generator):
            torch.nn.init.normal_(self.weight, std=0.01, generator=generator)

        def preactivations(self, rows):
            return torch.tanh(rows.float()) @ self.weight.t()

    settings = {"objective": "objective.name", "goodness": "objective.goodness", "layer": "network.kind"}
    registry = {"objective": OBJECTIVES, "goodness": GOODNESSES, "layer": LAYER_KINDS}[kind]
    monkeypatch.setattr(registry, "_parts", dict(registry._parts))
    registry.register("mine", {"objective": Hinge(), "goodness": Cubes(), "layer": Wide}[kind])
    config, num_features = draw_config(28)
    planned, measured = compare(
        config.override({settings[kind]: "mine", "network.tile_units": "auto"}), num_features, tmp_path / "sweep"
    )
    assert measured <= planned <= 1.1 * measured


def test_an_accelerator_computes_a_wide_step_in_few_parts():
    """Each operator has to be launched there; the parts of a CPU are smaller, and take less memory."""
    steps = {}
    for width in (512, 4096):
        config = ff.Config(layers=2, width=width, batch=4096).override(
            {"cache.shard_samples": 8192, "precision": "bf16"}
        )
        blueprint = Blueprint.of(config, DataShape(width, 10, {"train": 8192}))
        for device_type in ("cpu", "cuda"):
            layers = do_on_paper(blueprint, draws_on_device=False, parts=part_sizes(device_type))
            steps[device_type, width] = layers[0]
    operators = {key: layer.step.num_operators for key, layer in steps.items()}
    assert operators["cuda", 4096] < 1.5 * operators["cuda", 512]
    assert operators["cuda", 4096] < 0.5 * operators["cpu", 4096]
    flops = {key: layer.step.flops for key, layer in steps.items()}
    assert flops["cuda", 4096] == flops["cpu", 4096]
    passes = {key: layer.hand_on.num_operators / layer.parts.chunk_rows for key, layer in steps.items()}
    assert passes["cuda", 4096] < 0.6 * passes["cpu", 4096]
    memory = {key: layer.footprint.training for key, layer in steps.items()}
    assert memory["cpu", 4096] < memory["cuda", 4096] < 1.1 * memory["cpu", 4096]
