import ast
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.models import functional
from zoo.weights.llama2c import load_llama2c

SIZES = (8, 12, 2, 2, 1, 10, 6)  # d_model, d_ff, layers, heads, kv_heads, vocabulary, context


def content(vocab_sign=1):
    """A file whose numbers count up from 0, and how many there are before each array, by hand."""
    d, f, layers, _, _, vocab, context = SIZES
    kv, half = 4, 2
    arrays = {"embed": vocab * d, "att_norm": layers * d, "wq": layers * d * d, "wk": layers * kv * d,
              "wv": layers * kv * d, "wo": layers * d * d, "ffn_norm": layers * d, "w1": layers * f * d,
              "w2": layers * d * f, "w3": layers * f * d, "norm": d, "cos": context * half,
              "sin": context * half}  # fmt: skip
    if vocab_sign < 0:
        arrays["wcls"] = vocab * d
    starts = dict(zip(arrays, np.cumsum([0, *arrays.values()]), strict=False))
    header = struct.pack("<7i", *SIZES[:5], vocab_sign * vocab, context)
    return header + np.arange(sum(arrays.values()), dtype="<f4").tobytes(), starts


def test_greedy_text_of_a_real_model(assets):
    model = zoo.load(assets / "stories260K.bin", dtype="float32")
    lines = (assets / "stories260K.expected.txt").read_text().splitlines()
    expected = ast.literal_eval(lines[1])
    graphdef, params, _ = functional.split(model)
    choose = jax.jit(lambda p, x: jnp.argmax(functional.merge(graphdef, p, {})(x), -1))
    tokens = np.zeros((1, 257), np.int32)
    tokens[0, 0] = expected[0]
    for i in range(12):  # what is still to come is behind the mask
        tokens[0, i + 1] = choose(params, tokens)[0, i]
    assert tokens[0, :13].tolist() == expected[:13]
    tokens[0] = expected  # the rest of the 257 at once: each is what follows from those before it
    assert choose(params, tokens)[0, :-1].tolist() == expected[1:]


@pytest.mark.parametrize("tied", [True, False])
def test_numbers_come_from_their_places(tied, tmp_path):
    data, starts = content(1 if tied else -1)
    path = tmp_path / "m.bin"
    path.write_bytes(data)
    model = load_llama2c(path, context=4)
    assert model.config.context == 4
    assert model.config.tied == tied
    p = {name: np.asarray(x) for name, x in functional.flatten(functional.split(model)[1]).items()}
    assert p["token_embed"][2, 3] == 2 * 8 + 3
    assert p["blocks/up"][1, 5, 7] == starts["w3"] + 12 * 8 + 7 * 8 + 5
    assert p["blocks/gate"][0, 5, 7] == starts["w1"] + 7 * 8 + 5
    assert p["blocks/down"][1, 7, 5] == starts["w2"] + 8 * 12 + 5 * 12 + 7
    assert p["blocks/v"][1, 6, 0, 3] == starts["wv"] + 4 * 8 + 3 * 8 + 6
    assert p["blocks/out"][0, 1, 2, 6] == starts["wo"] + 6 * 8 + (4 + 2)
    # Of a head of 4, rows 0 1 2 3 are the pairs (0, 1) and (2, 3), which lie at (0, 2) and (1, 3) here.
    assert p["blocks/q"][0, 0, 1].tolist() == [starts["wq"] + 8 * (4 + row) for row in (0, 2, 1, 3)]
    assert p["blocks/k"][1, 5, 0].tolist() == [starts["wk"] + 4 * 8 + 8 * row + 5 for row in (0, 2, 1, 3)]
    assert p["blocks/attn_norm_scale"][1, 0] == starts["att_norm"] + 8
    assert p["blocks/mlp_norm_scale"][1, 0] == starts["ffn_norm"] + 8
    assert p["final_norm_scale"][7] == starts["norm"] + 7
    if not tied:
        assert p["head"][1, 0] == starts["wcls"] + 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "has 0 bytes, fewer than the header"),
        (lambda data: data[:27], "has 27 bytes"),
        (lambda data: data[:-1], r"has [\d,]+ bytes, its header asks for"),
        (lambda data: data + b"1", r"has [\d,]+ bytes, its header asks for"),
        (lambda data: b"42ka" + data[4:], "version 1 or 2"),
        (lambda data: b"PK\3\4" + data[4:], "no llama2.c file of version 0"),
        (lambda data: struct.pack("<7i", 8, 12, 2**31 - 1, 2, 1, 10, 6) + data[28:], "no llama2.c file"),
        (lambda data: struct.pack("<7i", 8, 12, 2, 0, 0, 10, 6) + data[28:], "no llama2.c file"),
        (lambda data: struct.pack("<7i", 8, 12, 2, 3, 1, 10, 6) + data[28:], "heads 3"),
        (lambda data: struct.pack("<7i", 8, 12, 2, 8, 1, 10, 6) + data[28:], "heads 8"),
        (lambda data: struct.pack("<7i", 2**24, 2**24, 9999, 2, 1, 10, 6) + data[28:], "its header asks for"),
    ],
    ids=range(11),
)
def test_damaged_files(change, message, tmp_path):
    path = tmp_path / "m.bin"
    path.write_bytes(change(content()[0]))
    with pytest.raises(zoo.ZooError, match=message):
        zoo.load(path)


def test_what_is_missing(tmp_path):
    with pytest.raises(zoo.ZooError, match="cannot be read"):
        load_llama2c(tmp_path / "m.bin")
    (tmp_path / "m.bin").write_bytes(content()[0])
    with pytest.raises(zoo.ZooError, match=r"params/blocks/gate_bias of layer 0: not filled|not filled"):
        load_llama2c(tmp_path / "m.bin", bias=True)
