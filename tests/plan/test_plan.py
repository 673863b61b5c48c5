"""The plan: what it chooses, what it says a run takes, and what it refuses."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffstream.errors import BudgetError
from ffstream.ground.units import parse_bytes
from ffstream.plan.fitting import choose_tier
from ffstream.plan.plan import Resources
from tests.helpers import run_cli
from tests.plan.plans import CUDA, GIB, MIB, PLENTY, plan, with_less


def test_the_fastest_tier_that_has_room_is_taken():
    cache = 66000 * 784 * 2
    assert plan(CUDA).tier == "device"
    assert plan(PLENTY).tier == "host"
    assert plan(with_less(CUDA, device_bytes=cache)).tier == "host"
    tight = with_less(CUDA, device_bytes=cache, host_bytes=GIB // 4 + 2 * 60000 * 784 + cache // 2)
    assert plan(tight).tier == "disk"


@pytest.mark.parametrize(
    ("requested", "resources", "tier"),
    [("disk", PLENTY, "disk"), ("host", CUDA, "host"), ("device", CUDA, "device"), ("device", PLENTY, "host")],
)
def test_a_tier_that_is_asked_for_is_taken(requested, resources, tier):
    assert plan(resources, **{"cache.tier": requested}).tier == tier


def test_a_tier_that_is_asked_for_is_refused_where_it_has_no_room():
    with pytest.raises(BudgetError, match="the device .* needs .* with the cache on device"):
        plan(with_less(CUDA, device_bytes=60 * MIB), **{"cache.tier": "device"})


@pytest.mark.parametrize(
    ("num_in_stack", "names"),
    [
        (0, ["layer 1", "layer 2", "layers 3-400"]),
        (4, ["layers 1, 5, ...", "layers 2, 6, ...", "layers 3-4, 7-8, ..."]),
    ],
)
def test_memory_does_not_depend_on_depth(num_in_stack, names):
    shallow, deep = (plan(layers=layers, **{"network.stack_layers": num_in_stack}) for layers in (4, 400))
    assert shallow.device.terms == deep.device.terms
    assert shallow.device.num_bytes == deep.device.num_bytes
    assert shallow.host == deep.host
    assert deep.disk.terms["layers"] > 80 * shallow.disk.terms["layers"]
    assert [layer.name for layer in deep.layers] == names


def test_shards_are_of_4096_samples_where_there_is_room_and_smaller_where_there_is_not():
    assert plan(**{"cache.tier": "disk"}).config.cache.shard_samples == 4096
    whole = plan(**{"cache.tier": "disk"}).device.num_bytes
    small = plan(with_less(device_bytes=whole - 1), **{"cache.tier": "disk"})
    assert small.config.cache.shard_samples == 2048
    assert small.fits


def test_given_shards_are_kept():
    chosen = plan(**{"cache.tier": "disk", "cache.shard_samples": 1000})
    assert chosen.config.cache.shard_samples == 1000
    given = {"cache.tier": "disk", "cache.shard_samples": 1000, "network.tile_units": 500}
    with pytest.raises(BudgetError):
        plan(with_less(device_bytes=chosen.device.num_bytes - 1), **given)


def test_the_smallest_budget_that_is_named_is_enough_and_a_smaller_one_is_not():
    with pytest.raises(BudgetError) as caught:
        plan(with_less(device_bytes=MIB))
    named = parse_bytes(str(caught.value).split("--budget ")[1].split()[0])
    assert plan(with_less(device_bytes=named)).fits
    with pytest.raises(BudgetError):
        plan(with_less(device_bytes=named - 2 * MIB))


@pytest.mark.parametrize("tier", ["device", "host", "disk"])
def test_a_device_without_memory_of_its_own_takes_that_of_the_host(tier):
    """As the GPU of a Jetson does: what lies on the device counts in both budgets."""
    apart, shared = (plan(with_less(CUDA, shares_host=shares), **{"cache.tier": tier}) for shares in (False, True))
    assert shared.device == apart.device
    assert shared.host.terms["the device"] == apart.device.num_bytes
    assert shared.host.num_bytes >= apart.host.num_bytes + apart.device.num_bytes
    just_enough = with_less(CUDA, shares_host=True, host_bytes=shared.host.num_bytes)
    assert plan(just_enough, **{"cache.tier": tier}).fits
    with pytest.raises(BudgetError, match="host memory needs"):
        plan(with_less(just_enough, host_bytes=apart.host.num_bytes), **FIXED | {"cache.tier": tier})


FIXED = {"cache.shard_samples": 4096, "micro_batch": 256, "network.tile_units": 500}


@pytest.mark.parametrize("lacking", ["device_bytes", "host_bytes", "disk_bytes"])
@pytest.mark.parametrize("is_started", [True, False])
def test_only_options_that_the_command_has_are_advised(lacking, is_started):
    tier = {"cache.tier": "disk"} if lacking == "disk_bytes" else {}
    with pytest.raises(BudgetError) as caught:
        plan(with_less(CUDA, **{lacking: 1}), is_started=is_started, **tier)
    advised = re.findall(r"--[a-z-]+", str(caught.value))
    code, text, _ = run_cli("resume" if is_started else "train", "--help")
    assert code == 0
    assert advised or is_started
    assert all(re.search(rf"{option}\b", text) for option in advised)


def test_the_batch_that_is_named_is_enough():
    needed = plan(**{"cache.tier": "disk", "cache.shard_samples": 256}).device.num_bytes
    tight, whole = with_less(device_bytes=int(0.8 * needed)), {"network.tile_units": 500}
    with pytest.raises(BudgetError, match="--batch") as caught:
        plan(tight, **whole)
    batch = int(str(caught.value).split("--batch ")[1].split(",")[0])
    assert plan(tight, batch=batch, **whole).fits


@pytest.mark.parametrize(
    ("fields", "changes", "words"),
    [
        (
            {"device_bytes": MIB},
            {"network.tile_units": 500},
            ["the device (layer 1, 784 x 500)", "weights 1.5 MiB", "optimiser", "--budget"],
        ),
        (
            {"device_bytes": MIB},
            {},
            ["the device (layer 1, 784 x 500 in 16 tiles)", "others", "a smaller --width", "--budget"],
        ),
        (
            {"device_bytes": MIB},
            {"schedule.order": "rounds"},
            ["the device (layer 1", "a smaller --width, --order sequential, in which layers are cut into tiles, or"],
        ),
        ({"host_bytes": GIB // 4 + MIB}, {}, ["host memory", "interpreter 256.0 MiB", "--host-budget"]),
        ({"disk_bytes": MIB}, {}, ["the disk needs", "layers", "--disk-budget"]),
        (
            {"host_bytes": GIB // 4 + 105 * MIB, "disk_bytes": 60 * MIB},
            {"layers": 1},
            ["the disk", "cache 9", "on disk", "--cache host, --cache-dtype int8, a smaller"],
        ),
        (
            {"host_bytes": GIB // 4 + 105 * MIB, "disk_bytes": 60 * MIB},
            {"layers": 1, "augmentation.views": 3},
            ["the disk", "--cache-dtype int8, fewer --views, a smaller --width, or --disk-budget"],
        ),
        ({"host_bytes": GIB // 4 + MIB}, {"cache.tier": "host"}, ["host memory", "use --cache disk, or --host-budget"]),
        ({"host_bytes": GIB // 4 + MIB}, {"cache.tier": "disk"}, ["host memory", "use --host-budget"]),
        (
            {"host_bytes": GIB // 4 + 85 * MIB, "disk_bytes": 30 * MIB},
            {"layers": 1, "cache.dtype": "int8"},
            ["the disk", "cache 49", "on disk", "--cache host, a smaller"],
        ),
    ],
)
def test_a_refusal_names_what_does_not_fit_and_what_helps(fields, changes, words):
    with pytest.raises(BudgetError) as caught:
        plan(with_less(**fields), **changes)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_one_cache_and_a_shard_are_enough_on_disk_and_two_are_taken_where_there_is_room():
    roomy = plan(**{"cache.tier": "disk"})
    cache = 66000 * 784 * 2
    assert roomy.max_unsynced is None
    assert roomy.disk.terms["cache"] == pytest.approx(2 * cache, rel=0.15)
    tight = plan(with_less(disk_bytes=roomy.disk.num_bytes - 1), **{"cache.tier": "disk"})
    assert tight.max_unsynced == 1
    assert cache < tight.disk.terms["cache"] <= cache + 4096 * 784 * 2


def test_finished_layers_take_no_more_disk():
    assert plan(layers=10, num_done=9).disk.terms["layers"] < plan(layers=10).disk.terms["layers"] / 5


def test_a_run_directory_in_memory_counts_as_host_memory():
    on_disk, in_memory = (plan(with_less(disk_is_memory=flag), **{"cache.tier": "disk"}) for flag in (False, True))
    assert in_memory.host.num_bytes - on_disk.host.num_bytes >= 66000 * 784 * 2


def test_what_a_run_reads_and_writes():
    first, second, rest = plan(epochs=3).layers
    assert first.read_bytes == 66000 * 784 * 2 * (3 + 1)
    assert first.written_bytes == second.cache_bytes == 66000 * 500 * 2
    assert rest.read_bytes == second.cache_bytes * 4
    assert plan(layers=1).layers[0].written_bytes == 0


def test_a_plan_is_json():
    found = plan().to_mapping()
    assert json.loads(json.dumps(found)) == found
    assert found["peaks"]["device"]["num_bytes"] == max(layer["footprint"]["peak"] for layer in found["layers"])


@settings(max_examples=6, deadline=None)
@given(device=st.integers(1, 2 * GIB), host=st.integers(1, 2 * GIB), disk=st.integers(1, 2 * GIB), on_cpu=st.booleans())
def test_a_plan_never_takes_more_than_it_may(device, host, disk, on_cpu):
    resources = Resources("cpu" if on_cpu else "cuda", device, host, 100 * MIB, disk)
    try:
        found = plan(resources, num_samples=20000)
    except BudgetError:
        return
    assert found.device.num_bytes <= device
    assert found.host.num_bytes <= host
    assert found.disk.num_bytes <= disk


@given(cache=st.integers(0, 64 * GIB), device=st.integers(0, 64 * GIB), host=st.integers(0, 64 * GIB))
def test_an_automatic_tier_fits_where_it_is_put_and_more_room_is_never_slower(cache, device, host):
    speed = ["disk", "host", "device"]
    tier = choose_tier("auto", "cuda", cache, device, host)
    assert {"device": cache <= device, "host": cache <= host, "disk": True}[tier]
    assert speed.index(choose_tier("auto", "cuda", cache, device + GIB, host + GIB)) >= speed.index(tier)
    assert choose_tier("auto", "cpu", cache, device, host) != "device"
