"""The plan: what it chooses, what it says a run takes, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ffstream as ff
from benchmarks.footprint import StopBeforeTraining, StoppedError, measure_resumed_run
from ffstream.data.shape import DataShape
from ffstream.errors import BudgetError
from ffstream.ground.units import parse_bytes
from ffstream.plan.fitting import choose_tier, compute_plan
from ffstream.plan.plan import Rates, Resources
from ffstream.plan.probe import measure_rates, survey_resources
from ffstream.run import preparation
from ffstream.settings.sections import MemoryConfig
from ffstream.storage.run_directory import RunDirectory
from tests.helpers import InterruptAt, run_cli

MIB, GIB = 1 << 20, 1 << 30
PLENTY = Resources("cpu", 64 * GIB, 64 * GIB, GIB // 4, 64 * GIB)
CUDA = dataclasses.replace(PLENTY, device_type="cuda")


def plan(resources=PLENTY, num_samples=60000, num_features=784, num_done=0, is_started=False, **changes):
    recipe = changes.pop("recipe", "inject")
    config = ff.Config(recipe=recipe, layers=changes.pop("layers", 4), width=changes.pop("width", 500), batch=256)
    config = config.override({"precision": "bf16", "negatives.sampler": "uniform"} | changes)
    data = DataShape(num_features, 10, {"train": num_samples, "validation": num_samples // 10})
    return compute_plan(config, data, num_samples * num_features, resources, num_done, is_started=is_started)


def with_less(resources=PLENTY, **fields):
    return dataclasses.replace(resources, **fields)


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
        ({"host_bytes": GIB // 4 + MIB}, {}, ["host memory", "interpreter 256.0 MiB", "--host-budget"]),
        ({"disk_bytes": MIB}, {}, ["the disk needs", "layers", "--disk-budget"]),
        (
            {"host_bytes": GIB // 4 + 150 * MIB, "disk_bytes": 60 * MIB},
            {"layers": 1},
            ["the disk", "cache 9", "on disk", "--cache host, --cache-dtype int8, a smaller"],
        ),
        (
            {"host_bytes": GIB // 4 + 150 * MIB, "disk_bytes": 60 * MIB},
            {"layers": 1, "augmentation.views": 3},
            ["the disk", "--cache-dtype int8, fewer --views, a smaller --width, or --disk-budget"],
        ),
        ({"host_bytes": GIB // 4 + MIB}, {"cache.tier": "host"}, ["host memory", "use --cache disk, or --host-budget"]),
        ({"host_bytes": GIB // 4 + MIB}, {"cache.tier": "disk"}, ["host memory", "use --host-budget"]),
        (
            {"host_bytes": GIB // 4 + 130 * MIB, "disk_bytes": 30 * MIB},
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


# --- what is installed, and what is free


def sizes(found):
    return {name: found.config.to_flat()[name] for name in ("cache.shard_samples", "micro_batch", "network.tile_units")}


def test_what_is_free_decides_the_tier_and_not_the_sizes():
    """Sizes decide bits, and the tier does not: a run that has room for them has the same ones, whatever is free."""
    roomy = plan(with_less(installed=PLENTY))
    by_tier = {"host": roomy}
    assert roomy.tier == "host"
    for host_bytes in (2 * GIB, GIB, 700 * MIB):
        found = plan(with_less(host_bytes=host_bytes, device_bytes=host_bytes, installed=PLENTY), num_samples=200_000)
        by_tier[found.tier] = found
        assert sizes(found) == sizes(roomy)
        assert found.sizes_by_free is None
    assert set(by_tier) == {"host", "disk"}


def test_sizes_follow_from_what_is_installed_even_where_more_is_free():
    whole = plan(**{"cache.tier": "disk"}).device.num_bytes
    little = with_less(device_bytes=whole - 1)
    found = plan(with_less(installed=little), **{"cache.tier": "disk"})
    assert sizes(found) == sizes(plan(little, **{"cache.tier": "disk"}))
    assert found.config.cache.shard_samples == 2048


def test_where_too_little_is_free_other_sizes_are_taken_and_named():
    whole = plan(**{"cache.tier": "disk"}).device.num_bytes
    found = plan(with_less(device_bytes=whole - 1, installed=PLENTY), **{"cache.tier": "disk"})
    assert found.fits
    assert found.config.cache.shard_samples == 2048
    assert found.sizes_by_free == "cache.shard_samples 2048, not 4096"


def test_a_run_of_more_than_its_share_of_what_is_installed_takes_what_is_free():
    found = plan(with_less(installed=with_less(host_bytes=GIB // 4 + MIB, device_bytes=MIB)))
    assert found.fits
    assert found.config.cache.shard_samples == 4096


def test_what_fits_into_nothing_that_is_installed_is_refused_by_what_is_free():
    installed = with_less(device_bytes=2 * MIB)
    with pytest.raises(BudgetError, match=r"the device .* allowed 1.0 MiB"):
        plan(with_less(installed, device_bytes=MIB, installed=installed))


def test_sizes_that_are_given_are_taken_whatever_there_is():
    given = {"cache.tier": "disk", "cache.shard_samples": 1000, "network.tile_units": 500, "micro_batch": 256}
    found = plan(with_less(installed=with_less(device_bytes=MIB)), **given)
    assert sizes(found) == {name: given[name] for name in sizes(found)}
    assert found.sizes_by_free is None


def test_what_is_installed_does_not_move_with_what_is_free(tmp_path, monkeypatch):
    found = []
    for free, resident in ((3 * GIB, 500 * MIB), (2 * GIB, 900 * MIB)):
        monkeypatch.setattr("ffstream.plan.probe.host_free_bytes", lambda free=free: free)
        monkeypatch.setattr("ffstream.plan.probe.resident_bytes", lambda resident=resident: resident)
        for told in (MemoryConfig(), MemoryConfig(host_budget="1.5GiB"), MemoryConfig(budget="100MiB")):
            found.append(survey_resources(told, CPU, tmp_path).installed)
    assert [dataclasses.replace(each, disk_bytes=0) for each in found[:3]] == [
        dataclasses.replace(each, disk_bytes=0) for each in found[3:]
    ]


def test_a_run_says_and_remembers_that_too_little_was_free(small_config, tmp_path, monkeypatch):
    config = small_config(layers=2, cache__shard_samples="auto", cache__tier="disk")
    usual = ff.train(config, tmp_path / "usual").config.cache.shard_samples
    needed = ff.make_plan(config, tmp_path / "new").device.num_bytes
    said = []

    class Listener(ff.Observer):
        def on_warning(self, text):
            said.append(text)

    survey = preparation.survey_resources

    def survey_little(*arguments):
        found = survey(*arguments)
        return dataclasses.replace(found, device_bytes=needed - 1)

    monkeypatch.setattr(preparation, "survey_resources", survey_little)
    run = ff.train(config, tmp_path / "run", observer=Listener())
    assert run.config.cache.shard_samples < usual
    words = f"cache.shard_samples {run.config.cache.shard_samples}, not {usual}"
    assert any(words in text and "too little memory is free" in text for text in said)
    assert run.directory.read_environments()[-1]["memory"] == words
    said.clear()
    monkeypatch.undo()
    grown = ff.resume(run.path, layers=3, observer=Listener())  # with the same sizes, and nothing more to say
    assert grown.config.cache.shard_samples == run.config.cache.shard_samples
    assert not said
    assert [environment["memory"] for environment in grown.directory.read_environments()] == [words]


# --- time


RATES = Rates(1e12, 1e11, 1e-6, {"host": 1e10, "disk": 1e9})


def test_without_rates_no_time_is_planned():
    assert plan().total_s is None
    assert plan().layers[0].bottleneck is None


def test_time_grows_with_epochs_and_depth_and_shrinks_with_speed():
    resources = with_less(CUDA, rates=RATES)
    base = plan(resources, epochs=5, layers=4).total_s
    assert plan(resources, epochs=10, layers=4).total_s > 1.8 * base
    assert plan(resources, epochs=5, layers=8).total_s > 1.8 * base
    faster = dataclasses.replace(RATES, flops_per_s=2e12, moved_bytes_per_s=2e11, operator_s=5e-7)
    assert plan(with_less(CUDA, rates=faster), epochs=5, layers=4).total_s == pytest.approx(base / 2)


def test_products_are_counted_as_arithmetic_says():
    """4 * d_in * d_out a row in training, 2 a row in each pass."""
    changes = {"validation_fraction": 0.0, "epochs": 3, "layers": 2, "width": 512}
    changes |= {"objective.perturbation": 0.0, "negatives.per_step": 3}
    layer = plan(with_less(CUDA, rates=RATES), num_samples=512 * 100, num_features=512, batch=512, **changes).layers[0]
    rows, embedding = 512 * 100, 4 * 2 * 10 * 512  # and dU, from one-hot rows, of four candidates
    passes = 2 * 512 * 512 * rows * 1.1 * (3 * 0.1 / 1.1 + 1)  # validation each epoch, and handing all on
    expected = 3 * rows * (4 * 512 * 512 + embedding) + passes
    assert layer.seconds["products"] * RATES.flops_per_s == pytest.approx(expected, rel=0.03)


def test_the_default_is_planned_with_the_products_of_its_adversarial_steps():
    """8 * d_in * d_out a row in training: forward twice, the input's gradient and the weights'."""
    changes = {"validation_fraction": 0.0, "epochs": 5, "layers": 2, "width": 512, "negatives.sampler": "hard"}
    layer = plan(with_less(CUDA, rates=RATES), num_samples=512 * 100, num_features=512, batch=512, **changes).layers[0]
    assert layer.read_bytes == 512 * 100 * 512 * 2 * (5 + 1) + 5120 * 512 * 2 * (5 + 1)
    rows, embedding = 512 * 100, 2 * 2 * 10 * 512
    passes = 2 * 512 * 512 * rows * (1.1 * 1 + 0.1 * 5)
    expected = 5 * rows * (8 * 512 * 512 + embedding) + passes
    assert layer.seconds["products"] * RATES.flops_per_s == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("slow", "bottleneck"),
    [
        ({"flops_per_s": 1e9}, "products"),
        ({"moved_bytes_per_s": 1e6}, "memory"),
        ({"operator_s": 1.0}, "operators"),
        ({"loaded_bytes_per_s": {"host": 1e3, "disk": 1e3}}, "loading"),
    ],
)
def test_what_is_slow_is_the_bottleneck(slow, bottleneck):
    resources = with_less(CUDA, rates=dataclasses.replace(RATES, **slow))
    assert plan(resources, **{"cache.tier": "disk"}).layers[0].bottleneck == bottleneck


def test_the_width_from_which_loading_hides_is_that_of_the_design():
    """417 units at 10 TFLOP/s and bf16 over 12 GB/s PCIe, 1667 from a disk of 3 GB/s."""
    rates = Rates(1e13, 1e11, 1e-6, {"host": 12e9, "disk": 3e9})
    for tier, units in (("host", 417), ("disk", 1667)):
        found = plan(with_less(CUDA, rates=rates), **{"cache.tier": tier}).layers[0].hiding_units
        assert found == pytest.approx(units, abs=0.5)
    assert plan(with_less(CUDA, rates=rates), **{"cache.tier": "device"}).layers[0].hiding_units is None
    overlay = {"recipe": "hinton", "cache.tier": "disk"}  # ten rows are loaded for two that are used
    assert plan(with_less(CUDA, rates=rates), **overlay).layers[0].hiding_units == pytest.approx(5 * 1667, abs=2)


def test_loading_hides_behind_the_rest():
    resources = with_less(CUDA, rates=RATES)
    staged, resident = (plan(resources, **{"cache.tier": tier}) for tier in ("host", "device"))
    assert staged.layers[0].seconds["loading"] > 0
    assert staged.total_s == resident.total_s


def test_rates_of_this_machine_are_positive_and_a_plan_made_of_them_takes_time(tmp_path):
    rates = measure_rates(ff.Config(precision="fp32"), CPU, tmp_path)
    assert min(rates.flops_per_s, rates.moved_bytes_per_s, rates.operator_s, *rates.loaded_bytes_per_s.values()) > 0
    assert plan(with_less(rates=rates), epochs=1).total_s > 0
    assert list(tmp_path.iterdir()) == []


def test_rates_are_positive_where_the_machine_was_disturbed_while_products_were_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("ffstream.plan.probe._measure_products", lambda *_: 1e6)  # each step is a hundred times as fast
    rates = measure_rates(ff.Config(precision="fp32"), CPU, tmp_path)
    assert min(rates.moved_bytes_per_s, rates.operator_s) > 0


# --- what this machine has


CPU = torch.device("cpu")


def test_resources_are_most_of_what_is_free(tmp_path):
    found = survey_resources(MemoryConfig(), CPU, tmp_path / "not" / "there" / "yet")
    assert 0 < found.host_used_bytes < found.host_bytes
    assert found.device_bytes == found.host_bytes - found.host_used_bytes
    assert 0 < found.disk_bytes < shutil.disk_usage(tmp_path).free


def test_budgets_replace_what_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("ffstream.plan.probe.resident_bytes", lambda: GIB)  # more, after some other tests
    told = MemoryConfig(budget="300MiB", host_budget="3GiB", disk_budget="1GB")
    found = survey_resources(told, CPU, tmp_path)
    assert (found.device_bytes, found.host_bytes, found.disk_bytes) == (300 * MIB, 3 * GIB, 10**9)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (MemoryConfig(host_budget="1MiB"), ["host budget", "interpreter", "already"]),
        (MemoryConfig(host_budget="900TiB"), ["host budget 900TiB", "this machine has"]),
        (MemoryConfig(budget="900TiB"), ["device budget 900TiB", "this machine has"]),
        (MemoryConfig(disk_budget="900000TiB"), ["disk budget", "this machine has"]),
    ],
)
def test_impossible_budgets_are_refused(told, words, tmp_path):
    with pytest.raises(BudgetError) as caught:
        survey_resources(told, CPU, tmp_path)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["", "lots", "-1GiB", "0", "1.5", "0GiB", "1 parsec"])
def test_nonsense_is_refused_as_a_setting(text):
    if text == "1.5":  # bytes
        assert ff.Config().override({"memory.budget": text})
        return
    with pytest.raises(ff.ConfigError, match=r"memory.budget: found .*, allowed 'auto', or a size"):
        ff.Config().override({"memory.budget": text})


# --- runs under a budget


def test_a_run_keeps_its_budget(tmp_path, small_data):
    """As the allocator tells, at the smallest budget that is not refused; and nothing is written by a refusal."""
    config = ff.Config(data=str(small_data), layers=2, width=300, epochs=1, batch=64, device="cpu", precision="fp32")
    config = config.override({"cache.tier": "disk", "memory.budget": "1KiB"})
    with pytest.raises(BudgetError) as caught:
        ff.train(config, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    named = str(caught.value).split("--budget ")[1].split()[0]
    with pytest.raises(StoppedError):
        ff.train(config.override({"memory.budget": named}), tmp_path / "a", observer=StopBeforeTraining())
    assert measure_resumed_run(tmp_path / "a") <= parse_bytes(named)


def test_shards_that_a_budget_chose_are_kept_when_a_run_goes_on_without_it(tmp_path, small_data):
    config = ff.Config(data=str(small_data), layers=1, width=64, epochs=1, batch=64, device="cpu", precision="fp32")
    config = config.override({"cache.tier": "disk"})
    run = ff.train(config.override({"cache.shard_samples": 128}), tmp_path / "a")
    grown = ff.train(dataclasses.replace(config, layers=2), tmp_path / "a", resume=True)
    assert grown.config.cache.shard_samples == run.config.cache.shard_samples == 128


def test_a_run_that_goes_on_may_use_the_space_that_its_own_files_hold(tmp_path, small_data, monkeypatch):
    """A disk that the run itself has filled does not keep it from going on."""
    config = ff.Config(data=str(small_data), layers=2, width=64, epochs=2, batch=64, device="cpu", precision="fp32")
    config = config.override({"cache.tier": "disk"})
    with pytest.raises(KeyboardInterrupt):
        ff.train(config, tmp_path / "a", observer=InterruptAt("on_epoch", 3))
    held = RunDirectory(tmp_path / "a").passing_bytes()
    usage, needed = shutil.disk_usage(tmp_path), ff.make_plan(config, tmp_path / "a", resume=True).disk
    least = needed.num_bytes - needed.terms["cache"] // 2  # one cache, not two
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=int((least - held) / 0.8) + 2))
    assert ff.train(config, tmp_path / "a", resume=True).num_layers_done == 2
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=(least - held) // 2))
    with pytest.raises(BudgetError, match="the disk needs"):
        ff.train(config, tmp_path / "b")
