"""A loaded network is a torch module like any other: what people do with modules works, for every recipe."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrize, prune

import ffstream as ff
from ffstream.data import load_dataset

_OF_CONV = ("conv", "conv of groups", "local head")
RECIPES = ("inject", "mono", "grouped", "hinton", "unsupervised", "local", "fields", *_OF_CONV)
KINDS = (*RECIPES, "stacks", "int8", "skip", "reads", "standardised")
PLAIN = (nn.Linear, nn.Conv2d)
OF_MODULES = [kind for kind in KINDS if kind != "fields"]  # whose every place has weights of its own
_SETTINGS = {
    "stacks": {"network.stack_layers": 1},
    "int8": {"cache.dtype": "int8"},
    "skip": {"network.input_skip": True},
    "reads": {
        "network.layers": "conv16 conv16(reads=below+image) conv16(reads=below+1,join=sum) dense64(reads=image+below)",
        "layers": 4,
    },
    "standardised": {"standardise": "features"},
    "local": {"network.kind": "local", "width": 144},
    "fields": {"network.layers": "local3(field=5) local4(field=4,stride=2)", "width": 4},
    "conv": {"network.layers": "conv16 pool dense64"},
    "conv of groups": {
        "network.layers": "conv20(normalise=samples) pool conv10",
        "labels.method": "groups",
        "width": 20,
    },
    "local head": {
        "network.layers": "conv12 pool conv16",
        "labels.method": "classifier",
        "labels.head_layers": 3,
        "objective.goodness": "mean",
        "width": 16,
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each kind, made when it is asked for first."""
    made = {}

    def find(kind):
        if kind not in made:
            config = ff.Config(recipe=kind if kind in ("mono", "grouped", "hinton", "unsupervised") else "inject")
            settings = {"layers": 2, "width": 64, "epochs": 1, "device": "cpu"} | _SETTINGS.get(kind, {})
            made[kind] = ff.train(config.override(settings), tmp_path_factory.mktemp("run") / kind)
            if kind == "unsupervised":
                made[kind].evaluate()
        return made[kind]

    return find


@pytest.fixture
def images():
    return torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(0)) * 16


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_called_with_gradients_on_as_without(runs, images, kind):
    network = runs(kind).load()
    with torch.no_grad():
        expected = network(images)
    assert torch.equal(network(images), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_that_the_output_depends_on_gets_a_gradient(runs, images, kind):
    network, labels = runs(kind).load(), torch.arange(5)
    torch.nn.functional.cross_entropy(network(images), labels).backward()
    first_counted = 0 if kind in ("unsupervised", "stacks") else 1  # of two layers, the second one has the goodness
    for name, parameter in network.named_parameters():
        is_unread = name.startswith(("layers.0.label_", "layers.0.head.")) and first_counted == 1
        if not is_unread and not (kind == "unsupervised" and name.startswith("readout.000")):
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name


@pytest.mark.parametrize("kind", ["inject", "mono"])
def test_the_gradient_of_an_embedding_is_right(runs, images, kind):
    network, labels = runs(kind).load().double(), torch.arange(5)

    def loss():
        return torch.nn.functional.cross_entropy(network(images), labels)

    layer, step = network.layers[1], 1e-3
    embedding = layer.label_embedding if kind == "inject" else layer.label_classifier.weight
    loss().backward()
    place = int(embedding.grad.abs().flatten().argmax())
    with torch.no_grad():
        flat = embedding.flatten()
        flat[place] += step
        above = loss()
        flat[place] -= 2 * step
        below = loss()
    assert float((above - below) / (2 * step)) == pytest.approx(float(embedding.grad.flatten()[place]), rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_fine_tuning_lowers_the_loss(runs, images, kind):
    network, labels = runs(kind).load(), torch.arange(5)
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3)
    before = torch.nn.functional.cross_entropy(network(images), labels)
    before.backward()
    optimiser.step()
    with torch.no_grad():
        assert torch.nn.functional.cross_entropy(network(images), labels) < before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_it_can_be_of_another_type(runs, images, kind, dtype):
    expected = runs(kind).load()(images)
    found = runs(kind).load().to(dtype)(images)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05 * float(expected.detach().abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_exported_for_batches_of_any_size(runs, images, kind):
    network = runs(kind).load()
    shapes = ({0: torch.export.Dim("n", min=2, max=999)},)
    with torch.no_grad():
        exported = torch.export.export(network, (images,), dynamic_shapes=shapes).module()
        for num_images in (2, 5, 15):
            other = images.repeat(3, 1, 1)[:num_images]
            torch.testing.assert_close(exported(other), network(other), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_traced_for_batches_of_any_size(runs, images, kind):
    network = runs(kind).load()
    with torch.no_grad():
        traced = torch.jit.trace(network, (images,))
        torch.testing.assert_close(
            traced(images.repeat(3, 1, 1)), network(images.repeat(3, 1, 1)), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("kind", ["inject", "grouped", "hinton", "int8", "local head"])  # whose operators differ most
def test_it_is_compiled_whole(runs, images, kind):
    torch._dynamo.reset()  # which counts what was compiled for other networks too
    network = runs(kind).load()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), network(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_sees_what_each_layer_reads_and_makes(runs, images, kind):
    network, seen = runs(kind).load(), []
    for layer in network.layers:
        layer.register_forward_hook(lambda layer, rows, made: seen.append((layer, rows[0].shape[1], made.shape[1])))
    network(images)
    assert seen == [(layer, layer.in_features, layer.num_units) for layer in network.layers]


def test_a_hook_may_change_what_a_layer_makes(runs, images):
    network = runs("inject").load()
    before = network(images)
    network.layers[0].register_forward_hook(lambda _layer, _rows, made: torch.zeros_like(made))
    assert not torch.equal(network(images), before)


@pytest.mark.parametrize("kind", KINDS)
def test_no_images_at_all_have_no_rows(runs, images, kind):
    assert tuple(runs(kind).load()(images[:0]).shape) == (0, 10)


@pytest.mark.parametrize("kind", KINDS)
def test_it_has_a_shape_on_paper_where_nothing_is_computed(runs, images, kind):
    network, paper = copy.deepcopy(runs(kind).load()).to("meta"), images.to("meta")
    assert network(paper).device.type == "meta"
    assert tuple(network(paper).shape) == (5, 10)
    assert [tuple(found.shape) for found in network.features(paper)] == [
        (5, layer.handed_on_by(layer.shape).num_features) for layer in network.layers
    ]
    with pytest.raises(ff.DataError, match="on the meta device, which holds no values"):
        network.predict(paper)


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_numpy_and_images_of_bytes_are_taken(runs, images, kind):
    network, images = runs(kind).load(), images.to(torch.uint8)
    assert torch.equal(network(images.numpy()), network(images.float()))
    assert torch.equal(network(images), network(images.float()))


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_differentiated_by_what_it_reads(runs, images, kind):
    network, image = runs(kind).load(), images[0]
    jacobian = torch.func.jacrev(lambda each: network(each.unsqueeze(0))[0])(image)
    assert tuple(jacobian.shape) == (10, 8, 8)
    assert bool(jacobian.isfinite().all())
    assert float(jacobian.detach().abs().sum()) > 0


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch's own, where it first differentiates forwards
@pytest.mark.parametrize("kind", KINDS)
def test_a_blank_image_has_a_gradient_and_leaves_those_of_the_others_as_they_are(runs, images, kind):
    """Its rows have no length to divide by, in the network's input or in any layer that its units leave silent."""
    network, labels = runs(kind).load(), torch.arange(5)
    blank = network._scaling.mean.view(8, 8) if kind == "standardised" else torch.zeros(8, 8)
    images[3] = blank
    trunk = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3, padding=1, bias=False), torch.nn.Flatten(0, 1), network)

    def differentiate(chosen):
        leaf = images[chosen].unsqueeze(1).requires_grad_()
        loss = torch.nn.functional.cross_entropy(trunk(leaf), labels[chosen], reduction="sum")
        return torch.autograd.grad(loss, [trunk[0].weight, leaf])

    for make_silent in (False, True):
        if make_silent:
            with torch.no_grad():
                next(each for name, each in network.layers[0].named_parameters() if "bias" in name).fill_(-1e6)
        weight, through = differentiate([0, 1, 2, 3, 4])
        others, _ = differentiate([0, 1, 2, 4])
        (saliency,) = torch.autograd.grad(network(leaf := images.clone().requires_grad_()).sum(), leaf)
        assert all(bool(found.isfinite().all()) for found in (weight, through, saliency))
        if kind != "standardised":  # where a blank image is far from the mean
            torch.testing.assert_close(weight, others, rtol=1e-3, atol=1e-3 * float(others.abs().max()) + 1e-9)
    jacobian = torch.func.jacfwd(lambda each: network(each.unsqueeze(0))[0])(blank)
    assert bool(jacobian.isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_pruned_or_given_are_used(runs, images, kind):
    network = runs(kind).load()
    given = {name: torch.zeros_like(parameter) for name, parameter in network.named_parameters()}
    assert float(torch.func.functional_call(network, given, (images,)).abs().sum()) == 0
    before = network(images)
    for name, _ in plain_modules(network.layers[1]) or [("", None)]:
        prune.l1_unstructured(network.layers[1].get_submodule(name), "weight", 0.5)
    assert not torch.equal(network(images), before)


# --- the modules of torch's own that it is made of


def plain_modules(module):
    """The linear modules and convolutions, of these very types, by name."""
    return [(name, each) for name, each in module.named_modules() if type(each) in PLAIN]


class Adapted(nn.Module):
    """A module with a trained addition of its own, as users put into the place of one; it adds nothing at first."""

    def __init__(self, base):
        super().__init__()
        self.base, self.added = base, copy.deepcopy(base)
        nn.init.zeros_(self.added.weight)
        if self.added.bias is not None:
            nn.init.zeros_(self.added.bias)

    def forward(self, rows):
        return self.base(rows) + self.added(rows)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, weight):
        return weight * self.factor


@pytest.mark.parametrize("kind", OF_MODULES)
def test_all_that_multiplies_is_a_module_of_torch_which_is_called_in_every_call(runs, images, kind):
    network, called = runs(kind).load(), []
    named = dict(plain_modules(network))
    for layer in network.layers:
        assert plain_modules(layer)
    own = {f"{name}.weight" for name in named}
    matrices = {name for name, each in network.named_parameters() if each.dim() > 1 and "label_embedding" not in name}
    assert matrices == own
    for name, module in named.items():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    for call in (network, network.predict):
        called.clear()
        call(images)
        assert sorted(called) == sorted(named)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch's own
@pytest.mark.parametrize("kind", OF_MODULES)
def test_its_linear_modules_are_quantised(runs, images, kind):
    network = runs(kind).load()
    quantised = torch.ao.quantization.quantize_dynamic(network, {nn.Linear})
    assert not any(type(each) is nn.Linear for each in quantised.modules())
    with torch.no_grad():
        expected, found = network(images), quantised(images)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", OF_MODULES)
def test_a_module_is_replaced_by_one_of_the_users_own(runs, images, kind):
    network, labels = runs(kind).load().requires_grad_(False), torch.arange(5)
    expected = network(images)
    for name, module in plain_modules(network):
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, Adapted(module).requires_grad_())
    torch.testing.assert_close(network(images), expected)
    torch.nn.functional.cross_entropy(network(images), labels).backward()
    adapted = [each for each in network.layers[1].modules() if isinstance(each, Adapted)]
    assert all(bool(each.added.weight.grad.any()) for each in adapted)


@pytest.mark.parametrize("kind", OF_MODULES)
def test_its_weights_are_parametrised(runs, images, kind):
    network = runs(kind).load()
    expected = network(images)
    for _, module in plain_modules(network):
        parametrize.register_parametrization(module, "weight", Scaled())
    torch.testing.assert_close(network(images), expected)
    network(images).sum().backward()
    assert all(
        each.parametrizations.weight[0].factor.grad is not None
        for each in network.layers[1].modules()
        if parametrize.is_parametrized(each)
    )


@pytest.mark.parametrize("kind", RECIPES)
def test_tensors_with_the_names_of_an_exported_file_are_taken(runs, images, kind, tmp_path):
    run = runs(kind)
    network, expected = run.load(), run.load()(images)
    run.export(tmp_path / "model.safetensors")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    tensors = load_file(tmp_path / "model.safetensors")
    assert "layers.1.weight" in tensors
    network.load_state_dict(tensors)
    assert torch.equal(network(images), expected)
    with pytest.raises(RuntimeError, match="Missing key"):
        network.load_state_dict({name: tensors[name] for name in sorted(tensors)[1:]})


@pytest.mark.parametrize("kind", RECIPES)
def test_it_is_copied_and_pickled(runs, images, kind):
    network = runs(kind).load()
    expected, file = network(images), io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    for copied in (copy.deepcopy(network), torch.load(file, weights_only=False)):
        assert torch.equal(copied(images), expected)


def test_a_state_dict_goes_through_a_file_of_torchs_own(runs, images, tmp_path):
    network, other = runs("inject").load(), runs("inject").load()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    assert torch.equal(network(images), other(images))


def test_a_loaded_network_says_once_that_images_are_in_other_units(small_config, small_data, tmp_path):
    network = ff.train(small_config(layers=2), tmp_path / "run").load()
    images = load_dataset(str(small_data)).test.images
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network.predict(images)
        network.predict(images[:0])
    with pytest.warns(UserWarning, match="do not look like those of the training images") as told:
        [network.predict(images * factor) for factor in (100.0, 200.0)]
    assert len(told) == 1
