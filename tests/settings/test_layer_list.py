"""How a network of unlike layers is written: each form means the same layers, and mistakes are named."""

from __future__ import annotations

import json

import pytest

import ffstream as ff
from ffstream.settings.layer_list import FORMS, LayerLine, list_lines, read_layers

LINES = ("conv 64 pool=2 pooling=max", "conv 128 kernel=5", "conv 128 kernel=5", "linear 512")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("conv6 pool pool", "conv 6 pool=4 pooling=max"),
        ("conv6(pool=2) pool3", "conv 6 pool=6 pooling=max"),
        ("conv6 avgpool avgpool", "conv 6 pool=4 pooling=average"),
    ],
)
def test_poolings_of_one_layer_multiply(text, expected):
    assert read_layers(text) == (expected,)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("conv6 pool avgpool", "two kinds of pooling"),
        ("conv6 pool(epochs=3)", "takes no options"),
        ("conv6 poolx2", "repeats a pooling"),
        ("conv6 flatten2 dense8", "takes no number"),
        ("vgg conv6", "allowed by itself"),
        ("conv\uff16", "is no layer"),
    ],
)
def test_what_would_be_dropped_without_a_word_is_refused(text, words):
    with pytest.raises(ff.ConfigError, match=words):
        read_layers(text)


@pytest.mark.parametrize(
    "given",
    [
        "conv64 pool conv128(kernel=5)x2 dense512",
        " conv64  maxpool2\tconv128( kernel = 5 )x2 flatten dense512 ",
        ["conv64", "pool", "conv128(kernel=5)x2", "linear512"],
        ["conv 64 pooling=max pool=2", {"kind": "conv", "width": 128, "kernel": 5, "repeat": 2}, "dense512"],
        LINES,
        list(LINES),
    ],
)
def test_every_form_means_the_same_layers(given):
    config = ff.Config(network=None).override({"network.layers": given})
    assert config.network.layers == LINES
    assert (config.layers, config.width) == (4, 512)
    again = ff.Config.from_mapping(json.loads(json.dumps(config.to_mapping())))
    assert again == config
    assert again.fingerprint() == config.fingerprint()


def test_tables_of_a_file_are_read_and_written(tmp_path):
    path = tmp_path / "net.toml"
    tables = '[[network.layers]]\nkind = "conv"\nwidth = 8\npool = 2\nrepeat = 2\n[[network.layers]]\nkind = "dense"\n'
    path.write_text(f"{tables}width = 16\n")
    config = ff.Config.from_toml(path)
    assert config.network.layers == ("conv 8 pool=2", "conv 8 pool=2", "linear 16")
    path.write_text(config.to_toml())
    assert ff.Config.from_toml(path) == config


@pytest.mark.parametrize("line", [*LINES, "local 144", "mine 7 flag=true rate=0.5 word=some"])
def test_a_line_reads_back(line):
    assert str(LayerLine.parse(line)) == line


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4, 5, 8, 17, 40])
def test_the_form_vgg_has_as_many_layers_as_are_asked_for_and_is_pooled_three_times_at_most(num_layers):
    config = ff.Config(recipe="conv", layers=num_layers)
    lines = config.list_layers()
    assert len(lines) == num_layers == config.layers
    assert {line.kind for line in lines} == {"conv"}
    assert [line.width for line in lines] == sorted(line.width for line in lines)
    assert 1 <= sum(dict(line.options).get("pool") == 2 for line in lines) <= 3
    deeper = config.override({"layers": num_layers + 1})
    assert len(deeper.list_layers()) == num_layers + 1


def test_the_forms_that_have_names_can_be_read():
    for form in FORMS:
        assert len(list_lines(read_layers(form), 4)) > 4


REFUSED = {
    "conv8x3(kernel=5)": r"'conv8x3\(kernel=5\)' repeats before its options, allowed conv8\(kernel=5\)x3",
    "conv64 pol": "'pol' is no layer; did you mean 'pool'",
    "pool conv64": "'pool' has no layer before it",
    "conv0": "the width is 0, allowed an integer >= 1",
    "conv64x0": "repeated 0 times",
    "conv64(kernel)": "'kernel' is no option",
    "conv64(kernel=3,kernel=5)": "stands there twice",
    "conv(kernel=3)": "'conv\\(kernel=3\\)' is no layer",
    7: "allowed a text such as",
    (7,): "allowed a text such as",
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_is_no_network_is_refused_in_one_line(given):
    with pytest.raises(ff.ConfigError, match=REFUSED[given]) as caught:
        ff.Config().override({"network.layers": given})
    assert str(caught.value).startswith("config network.layers: found ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "table",
    [
        {"width": 3},
        {"kind": "conv"},
        {"kind": "conv", "width": True},
        {"kind": 3, "width": 3},
        {"kind": "conv", "width": 3, "kernel": [3]},
        {"kind": "conv", "width": 3, "repeat": 0},
    ],
)
def test_a_table_that_is_no_layer_is_refused_in_one_line(table):
    with pytest.raises(ff.ConfigError, match="config network.layers: found {") as caught:
        ff.Config().override({"network.layers": [table]})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers": 7}, "layers: found 7, but network.layers lists 2 layers; leave one of them out"),
        ({"network.stack_layers": 2}, "network.stack_layers: found 2, allowed 0 with network.layers"),
        ({"width": 9}, "width: found 9, but network.layers has layers of 8 units or channels at most; leave one"),
    ],
)
def test_a_number_or_a_width_that_is_not_that_of_the_list_is_refused(settings, words):
    listed = {"network.layers": "conv8 dense8"}
    with pytest.raises(ff.ConfigError, match=words):
        ff.Config().override(settings | listed)
    found = ff.Config().override(settings).override(listed)
    assert (found.layers, found.width, found.network.stack_layers) == (2, 8, 0)
