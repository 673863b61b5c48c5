"""What a layer of a list reads: every form means the same, and what is not there is refused in one line."""

from __future__ import annotations

import json

import pytest

import ffstream as ff
from ffstream.settings.layer_list import LayerLine
from ffstream.settings.reads import Reads

LINES = ("linear 8", "linear 8", "linear 8 join=sum reads=below+1", "linear 8 reads=-2+image")


def listed(given):
    return ff.Config(network=None).override({"network.layers": given})


def tables(last):
    below = {"kind": "dense", "width": 8}
    return [below | {"repeat": 2}, below | {"reads": ["below", 1], "join": "sum"}, below | {"reads": last}]


@pytest.mark.parametrize(
    "given",
    [
        "dense8x2 dense8(reads=below+1,join=sum) dense8(reads=-2+image)",
        " dense8x2 dense8( join = sum, reads = below + 1 ) dense8(join=concat,reads=-2 +image)",
        ["dense8", "dense8(reads=below)", "linear 8 reads=below+1 join=sum", "dense8(reads=-2+image)"],
        tables([-2, "image"]),
        tables("-2+image"),
        tables(["-2", "image"]),
        LINES,
    ],
)
def test_every_form_means_the_same(given):
    config = listed(given)
    assert config.network.layers == LINES
    assert config.list_reads() == ["image", "below", "below+1 (sum)", "-2+image"]
    again = ff.Config.from_mapping(json.loads(json.dumps(config.to_mapping())))
    assert again == config
    assert again.fingerprint() == config.fingerprint()


def test_a_file_of_settings_says_what_a_layer_reads(tmp_path):
    path = tmp_path / "net.toml"
    text = '[[network.layers]]\nkind = "dense"\nwidth = 8\n'
    path.write_text(f'{text}repeat = 2\n{text}reads = ["below", 1]\njoin = "sum"\n{text}reads = "-2+image"\n')
    config = ff.Config.from_toml(path)
    assert config.network.layers == LINES
    (tmp_path / "again.toml").write_text(config.to_toml())
    assert ff.Config.from_toml(tmp_path / "again.toml") == config


def test_what_every_layer_does_leaves_a_list_as_it_was():
    assert listed("dense8 dense8(reads=below)").fingerprint() == listed("dense8x2").fingerprint()


@pytest.mark.parametrize(
    ("reads", "number", "sources"),
    [
        ("below", 1, (0,)),
        ("below", 4, (3,)),
        ("image", 4, (0,)),
        ("2+image+below", 4, (2, 0, 3)),
        ("-1", 4, (3,)),
        ("-4", 4, (0,)),
    ],
)
def test_a_name_stands_for_one_source(reads, number, sources):
    assert LayerLine.parse(f"conv 8 reads={reads}").find_reads(number) == Reads(sources)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("dense8(reads=1)", r"layer 1 \(linear 8\) has reads=1, which is itself, allowed image, below or an earlier"),
        ("dense8 dense9(reads=3) dense8", r"layer 2 \(linear 9\) has reads=3, which is the later layer 3, .* 1 to 1"),
        ("dense8x2 dense8(reads=below+2)", "layer 3 .* which names layer 2 twice"),
        ("dense8(reads=below+image)", "layer 1 .* which names the image twice"),
        ("dense8 dense8(reads=-3)", "layer 2 .* which is below the image, allowed -1 to -2, which is the image"),
        ("dense8(join=sum)", "join=sum joins nothing"),
        ("dense8x2 dense8(reads=1,join=concat)", "join=concat joins nothing"),
        ("dense8x2 dense8(reads=below+1,join=product)", "join is 'product', allowed concat or sum"),
        ("dense8 dense8(reads=below+imag)", "reads 'imag', allowed below, image, the number"),
        ("dense8 dense8(reads=0)", "reads 0, allowed below"),
        ("dense8x2 dense8(reads=below+)", "reads '', allowed below"),
        ("dense8x2 dense8(reads=below+1.5)", "reads '1.5', allowed below"),
        (tables([]), "reads nothing, allowed below"),
        (tables([True]), "reads True, allowed below"),
        (tables([["below"]]), "allowed below"),
        (tables(None), "reads None, allowed below"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(given, words):
    with pytest.raises(ff.ConfigError, match=f"config network.layers: .*{words}") as caught:
        listed(given)
    assert "\n" not in str(caught.value)


def test_an_input_skip_is_not_mixed_with_layers_that_say_what_they_read():
    with pytest.raises(ff.ConfigError, match=r"input_skip: found true, but layer 2 of .* \(reads=below\+image\)"):
        listed("dense8 dense8(reads=below+image)").override({"network.input_skip": True})


@pytest.mark.parametrize("given", ["dense8x2 dense9(reads=1) dense9", "vgg"])
def test_the_first_layers_of_a_network_are_a_network(given):
    config = listed(given).override({"layers": 4})
    for number in (1, 3, 4):
        assert config.shorten(number).list_layers() == config.list_layers()[:number]
        assert config.shorten(number).layers == number
