import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import zoo
from zoo.models import functional
from zoo.models.decoder import SHARDING, VARIANTS, DecoderConfig
from zoo.train.mesh import MeshConfig, make_mesh, param_spec
from zoo.weights import rules
from zoo.weights.transformers import config_from_hf, hf_from_config, load_hf, save_hf

GOLDEN = Path(__file__).parent.parent / "golden"
FAMILIES = ("gpt2", "llama", "mistral", "qwen2", "qwen3")


class Golden:
    """A tiny model that the transformers library wrote, in a folder, with tokens and logits."""

    def __init__(self, family, folder):
        path = GOLDEN / f"hf_{family}.safetensors"
        arrays = load_file(path)
        with safe_open(path, "np") as file:
            self.fields = json.loads(file.metadata()["config"])
        self.tokens, self.logits = arrays["tokens"], arrays["logits"]
        self.weights = {name.removeprefix("weights/"): x for name, x in arrays.items() if name.startswith("weights/")}
        self.folder = write(folder, self.fields, self.weights)


def write(folder, fields, weights):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def goldens(tmp_path_factory):
    return {family: Golden(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


@pytest.fixture
def llama(goldens, tmp_path):
    """(folder of its own, config fields, weights) of the tiny Llama."""
    golden = goldens["llama"]
    return write(tmp_path / "llama", golden.fields, golden.weights), dict(golden.fields), dict(golden.weights)


def logits(model, tokens):
    graphdef, params, _ = functional.split(model)
    return np.asarray(jax.jit(lambda p, x: functional.merge(graphdef, p, {})(x))(params, tokens))


def params_of(model):
    return {name: np.asarray(x) for name, x in functional.flatten(functional.split(model)[1]).items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers_and_the_folder_comes_back(goldens, family, tmp_path):
    golden = goldens[family]
    model = zoo.load(golden.folder)
    np.testing.assert_allclose(logits(model, golden.tokens), golden.logits, atol=1e-4, rtol=0)

    (tmp_path / "vocab.txt").write_text("a")
    save_hf(model, tmp_path / "out", [tmp_path / "vocab.txt"], extra={"eos_token_id": 7})
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["config.json", "model.safetensors", "vocab.txt"]
    back = load_file(tmp_path / "out" / "model.safetensors")
    assert back.keys() == golden.weights.keys()
    assert all(np.array_equal(back[name], x) and back[name].dtype == x.dtype for name, x in golden.weights.items())
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["architectures"] == golden.fields["architectures"]
    assert fields["eos_token_id"] == 7
    assert config_from_hf(fields) == model.config
    # What the library would take for a field that we write differently shows in the logits of the live test below.
    same = set(fields) & set(golden.fields) - {
        "eos_token_id",
        "bos_token_id",
        "attn_pdrop",
        "embd_pdrop",
        "resid_pdrop",
    }
    assert {key: fields[key] for key in same - {"max_window_layers"}} == {
        key: golden.fields[key] for key in same - {"max_window_layers"}
    }


def test_transformers_loads_what_is_exported(goldens, tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch and transformers")
    transformers = pytest.importorskip("transformers", reason="needs torch and transformers")
    windows = {"mistral": {}, "qwen2": {"window": 5}, "qwen3": {"window": 6}}
    for family, golden in goldens.items():
        model = load_hf(golden.folder, pad_vocab=16, **windows.get(family, {}))
        save_hf(model, tmp_path / family, shard_bytes=20_000)
        theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / family, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        with torch.no_grad():
            wanted = theirs.eval()(torch.tensor(golden.tokens).long()).logits.numpy()
        ours = logits(model, golden.tokens)[..., : wanted.shape[-1]]
        print(f"{family}: logits differ by at most {np.abs(ours - wanted).max():.1e}")
        np.testing.assert_allclose(ours, wanted, atol=1e-4, rtol=0)


LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
PUBLISHED = {  # what matters of the config.json files on the hub, in the layouts that they have there
    "gpt2": {"model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
             "activation_function": "gelu_new", "layer_norm_epsilon": 1e-05, "resid_pdrop": 0.1, "vocab_size": 50257},
    "llama3.2-1b": {"model_type": "llama", "attention_bias": False, "head_dim": 64, "hidden_act": "silu",
                    "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072,
                    "mlp_bias": False, "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
                    "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0, **LLAMA3}, "rope_theta": 500000.0,
                    "tie_word_embeddings": True, "vocab_size": 128256},
    "llama3.1-8b": {"model_type": "llama", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
                    "max_position_embeddings": 131072, "num_attention_heads": 32, "num_hidden_layers": 32,
                    "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
                    "rope_scaling": {"factor": 8.0, **LLAMA3}, "rope_theta": 500000.0,
                    "tie_word_embeddings": False, "vocab_size": 128256},
    "smollm2-135m": {"model_type": "llama", "attention_bias": False, "hidden_act": "silu", "hidden_size": 576,
                     "intermediate_size": 1536, "max_position_embeddings": 8192, "num_attention_heads": 9,
                     "num_hidden_layers": 30, "num_key_value_heads": 3, "rms_norm_eps": 1e-05, "rope_scaling": None,
                     "rope_theta": 100000, "tie_word_embeddings": True, "vocab_size": 49152},
    "qwen2.5-0.5b": {"model_type": "qwen2", "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864,
                     "max_position_embeddings": 32768, "max_window_layers": 24, "num_attention_heads": 14,
                     "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
                     "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True,
                     "use_sliding_window": False, "vocab_size": 151936},
    "qwen3-0.6b": {"model_type": "qwen3", "attention_bias": False, "head_dim": 128, "hidden_act": "silu",
                   "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960,
                   "max_window_layers": 28, "num_attention_heads": 16, "num_hidden_layers": 28,
                   "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000,
                   "sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False,
                   "vocab_size": 151936},
    "mistral-7b": {"model_type": "mistral", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
                   "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 32,
                   "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
                   "tie_word_embeddings": False, "vocab_size": 32000},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_the_variants(name):
    config = config_from_hf(PUBLISHED[name])
    assert config == VARIANTS[name]
    assert config_from_hf(hf_from_config(config)) == config


def test_both_layouts_of_the_rotary_fields():
    old = PUBLISHED["llama3.2-1b"]
    new = {key: value for key, value in old.items() if key not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = {"rope_theta": 500000.0, "factor": 32.0, **LLAMA3}
    assert config_from_hf(new) == config_from_hf(old)
    assert config_from_hf(old).rope_factor == 32
    plain = {key: value for key, value in new.items() if key != "rope_parameters"}
    assert config_from_hf(plain) == replace(config_from_hf(new), rope_theta=1e4, rope_factor=1.0)
    typed = plain | {"rope_scaling": {"type": "linear", "factor": 2.0}}
    with pytest.raises(zoo.ZooError, match="rope_type is linear"):
        config_from_hf(typed)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gpt2", {"model_type": "gpt3"}, "did you mean gpt2"),
        ("gpt2", {"model_type": None}, "unknown model_type"),
        ("gpt2", {"activation_function": "relu"}, "activation_function is relu"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ("gpt2", {"n_embd": "many"}, "n_embd is 'many'"),
        ("gpt2", {"n_layer": 10**9}, "n_layer is 1000000000; it must be a number from 1 to 10,000"),
        ("llama3.2-1b", {"attention_bias": True}, "attention_bias is True"),
        ("llama3.2-1b", {"mlp_bias": True, "hidden_act": "gelu"}, r"(?s)hidden_act is gelu.*mlp_bias is True"),
        ("llama3.2-1b", {"hidden_size": None, "vocab_size": -1}, r"(?s)hidden_size is missing.*vocab_size is -1"),
        ("llama3.2-1b", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type is yarn"),
        ("llama3.2-1b", {"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "low_freq_factor is missing"),
        ("llama3.2-1b", {"rope_scaling": "llama3"}, "rope_scaling is llama3"),
        ("llama3.2-1b", {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "for all layers"),
        ("llama3.2-1b", {"num_key_value_heads": 5}, "kv_heads"),
        ("llama3.2-1b", {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ("llama3.2-1b", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama3.2-1b", {"layer_types": ["sliding_attention"] * 16}, "sliding_window is missing"),
        ("qwen3-0.6b", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 4}, "24 of 28 layers"),
        ("qwen3-0.6b", {"layer_types": ["linear_attention"] * 28}, "layer_types must be"),
        ("mistral-7b", {"sliding_window": 0}, "sliding_window is 0"),
        ("mistral-7b", {"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
    ],
)  # fmt: skip
def test_what_the_decoder_has_not_is_refused(name, change, message):
    with pytest.raises(zoo.ZooError, match=message):
        config_from_hf(PUBLISHED[name] | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": "sinusoidal"}, "positions sinusoidal, where Llama has rotary"),
        ({"activation": "relu2", "softcap": 15.0}, "activation relu2.*softcap 15.0"),
        ({"kv_heads": 2}, "kv_heads or head_size"),
        ({"qkv_bias": False}, "no qkv_bias"),
        ({"positions": "rotary", "norm": "rms", "activation": "swiglu", "bias": False, "qk_norm": True,
          "qkv_bias": True}, "both qk_norm and qkv_bias"),
    ],
)  # fmt: skip
def test_decoders_that_no_architecture_has_are_not_exported(change, message):
    with pytest.raises(zoo.ZooError, match=message):
        hf_from_config(replace(DecoderConfig(), **change))


def test_all_that_does_not_fit_is_in_one_report(llama):
    folder, fields, weights = llama
    weights["model.layers.0.self_attn.q_proj.weight"] = np.zeros((16, 24), np.float32)
    weights["model.layers.1.mlp.up_proj.weight"] = np.zeros((24, 32), np.float32)
    weights["model.layers.1.self_attn.q_proj.bias"] = np.zeros(24, np.float32)
    weights["model.norm.weight"] = np.ones(24, np.float64)
    weights["model.layers.2.input_layernorm.weight"] = np.ones(24, np.float32)
    weights["extra"] = np.ones(1, np.float32)
    del weights["model.layers.0.mlp.down_proj.weight"]
    write(folder, fields, weights)
    with pytest.raises(zoo.ZooError) as error:
        zoo.load(folder)
    assert sorted(line.strip() for line in str(error.value).split("\n")[1:]) == [
        "extra: the model has nothing by this name",
        "model.layers.0.self_attn.q_proj.weight: shape [16, 24], wanted 1 × [24, 24] along axis 1",
        "model.layers.1.mlp.up_proj.weight: is [32, 24], params/blocks/up of layer 1 is [24, 32]",
        "model.layers.1.self_attn.q_proj.bias: the model has no params/blocks/q_bias of layer 1",
        "model.layers.2.input_layernorm.weight: the model has no params/blocks/attn_norm_scale of layer 2",
        "model.norm.weight: is float64, which is not one of float32, float16, bfloat16",
        "params/blocks/down of layer 0: not filled",
    ]


def test_known_buffers_and_a_copy_of_the_embedding_pass(goldens, llama):
    folder, fields, weights = llama
    embedding = weights["model.embed_tokens.weight"]
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32), "lm_head.weight": embedding}
    bare = {name.removeprefix("model."): x for name, x in weights.items()}  # saved without its head
    wanted = params_of(load_hf(folder))
    for tensors in (weights | extra, bare | {"lm_head.weight": embedding}):
        loaded = params_of(load_hf(write(folder, fields, tensors)))
        jax.tree.map(np.testing.assert_array_equal, loaded, wanted)
    write(folder, fields, weights | {"lm_head.weight": embedding + 1})
    with pytest.raises(zoo.ZooError, match=r"lm_head\.weight is not the embedding.*tied=False"):
        load_hf(folder)
    np.testing.assert_array_equal(load_hf(folder, tied=False).head[...], embedding + 1)

    gpt2 = goldens["gpt2"]
    old = {name.removeprefix("transformer."): x for name, x in gpt2.weights.items()}
    for layer in range(2):
        old[f"h.{layer}.attn.bias"] = np.ones((1, 1, 32, 32), np.uint8)
        old[f"h.{layer}.attn.masked_bias"] = np.ones((), np.float32)
    loaded = params_of(load_hf(write(folder, gpt2.fields, old)))
    jax.tree.map(np.testing.assert_array_equal, loaded, params_of(load_hf(gpt2.folder)))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_cast_and_comes_back(goldens, dtype, tmp_path):
    weights = {name: x.astype(dtype) for name, x in goldens["qwen2"].weights.items()}
    folder = write(tmp_path / "in", goldens["qwen2"].fields, weights)
    model = load_hf(folder, dtype="float32")
    name = "model.layers.1.self_attn.k_proj.weight"
    k = model.blocks["k"][...]
    assert k.dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(k[1]).reshape(24, 12).T, weights[name].astype(np.float32))
    save_hf(model, tmp_path / "out", dtype=np.dtype(dtype).name)
    back = load_file(tmp_path / "out" / "model.safetensors")
    assert all(back[key].dtype == dtype and np.array_equal(back[key], x) for key, x in weights.items())
    kept = load_hf(folder, param_dtype=np.dtype(dtype).name)
    assert kept.blocks["k"][...].dtype == dtype
    with pytest.raises(zoo.ZooError, match="param_dtype 'int8' is not one of"):
        load_hf(folder, param_dtype="int8")


def test_the_vocabulary_is_padded_with_zeros_and_exported_without(goldens, tmp_path):
    golden = goldens["mistral"]
    model = load_hf(golden.folder, pad_vocab=16)
    for table, name in ((model.token_embed, "model.embed_tokens.weight"), (model.head, "lm_head.weight")):
        assert table.shape == (48, 24)
        np.testing.assert_array_equal(table[:45], golden.weights[name])
        assert not np.any(table[45:])
    save_hf(model, tmp_path / "out")
    back = load_file(tmp_path / "out" / "model.safetensors")
    assert all(np.array_equal(back[name], x) for name, x in golden.weights.items())
    np.testing.assert_allclose(logits(model, golden.tokens)[..., :45], golden.logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_weights_stream_into_their_shardings(goldens, platform, monkeypatch):
    """As an accelerator is filled, too: through pieces of three rows, or of one layer."""
    monkeypatch.setattr(rules, "_platform", lambda sharding: platform)
    monkeypatch.setattr(rules, "PIECE_BYTES", 3 * 24 * 4)
    monkeypatch.setattr(rules, "SLAB_BYTES", 200)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    asked = {}

    def where(name, shape):
        asked[name] = NamedSharding(mesh, param_spec(name, shape, SHARDING, mesh))
        return asked[name]

    model = load_hf(goldens["mistral"].folder, where=where, pad_vocab=16)
    whole = load_hf(goldens["mistral"].folder, pad_vocab=16)
    assert not whole.token_embed[...].committed  # it may still be placed on any mesh
    monkeypatch.undo()
    wanted = params_of(load_hf(goldens["mistral"].folder, pad_vocab=16))
    for loaded in (model, whole):
        jax.tree.map(np.testing.assert_array_equal, params_of(loaded), wanted)
    leaves = functional.flatten(functional.split(model)[1])
    assert asked.keys() == leaves.keys()
    assert all(leaf.sharding == asked[name] for name, leaf in leaves.items())
    assert leaves["blocks/up"].addressable_shards[0].data.shape == (2, 12, 16)


def test_large_models_are_split_into_shards(goldens, tmp_path):
    golden, out = goldens["qwen3"], tmp_path / "out"
    model = load_hf(golden.folder)
    save_hf(model, out)
    save_hf(model, out, shard_bytes=20_000)
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert shards == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]  # and no whole file from before
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in golden.weights.values())
    assert index["weight_map"].keys() == golden.weights.keys()
    assert all(sum(x.nbytes for x in load_file(out / name).values()) <= 20_000 for name in shards)
    jax.tree.map(np.testing.assert_array_equal, params_of(zoo.load(out)), params_of(model))

    path = out / "model.safetensors.index.json"
    first = next(iter(index["weight_map"]))

    def refused(change, message):
        path.write_text(json.dumps({"weight_map": index["weight_map"] | change}))
        with pytest.raises(zoo.ZooError, match=message):
            zoo.load(out)

    refused({first: "../secret.safetensors"}, r"names \.\./secret\.safetensors")
    refused({first: "/etc/passwd"}, "names /etc/passwd")
    refused({first: 3}, "names 3")
    refused({first: shards[2]}, rf"{first}: is in {shards[0]}, the index has it in {shards[2]}")
    refused({"more": shards[2]}, "more: is not in")
    refused({first: "gone.safetensors"}, r"lacks gone\.safetensors")
    path.write_text("[" * 100_000)
    with pytest.raises(zoo.ZooError, match=r"index\.json is not JSON"):
        zoo.load(out)
    save_hf(model, out)
    assert [path.name for path in out.glob("model*")] == ["model.safetensors"]


def header(content, numbers=b""):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + numbers


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a file of 0 bytes"),
        (b"\xff" * 8, "has a header of 18,446,744,073,709,551,615"),
        (header(b"[" * 100_000), "damaged"),
        (header(b"\xff\xfe"), "damaged"),
        (header([1]), "not a dict"),
        (header({"a": entry()}, b"1234567"), r"end at byte \d+, the file at"),
        (header({"a": entry()}, b"123456789"), r"end at byte \d+, the file at"),
        (header({"a": entry(shape=(2**62, 2**62))}, bytes(8)), "is not the 8 bytes"),
        (header({"a": entry(shape=(-2,), offsets=(8, 0))}, bytes(8)), "natural numbers"),
        (header({"a": entry(shape=(1,) * 1000)}, bytes(8)), "at most 32"),
        (header({"a": entry(dtype="F4")}, bytes(8)), "unknown dtype F4"),
        (header({"a": {"dtype": "F32"}}), "a has no dtype, shape and data_offsets"),
        (header({"a": entry(), "b": entry()}, bytes(8)), "overlap"),
        (header({"a": entry(offsets=(4, 12))}, bytes(12)), "gap"),
    ],
    ids=range(14),
)
def test_damaged_weights(llama, content, message):
    folder, _, _ = llama
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(zoo.ZooError, match=message):
        zoo.load(folder)


def test_what_is_missing(llama, tmp_path):
    folder, _, _ = llama
    (folder / "model.safetensors").unlink()
    with pytest.raises(zoo.ZooError, match=r"has neither model\.safetensors nor"):
        load_hf(folder)
    with pytest.raises(zoo.ZooError, match=r"has no model\.safetensors"):
        zoo.load(folder)
    with pytest.raises(zoo.ZooError, match=r"config\.json cannot be read"):
        load_hf(tmp_path / "nothing")
    with pytest.raises(zoo.ZooError, match="did you mean rope_theta"):
        load_hf(folder, rope_teta=1.0)


MEASURE = """
import os, sys
import jax, jax.numpy as jnp
from zoo.models import functional
from zoo.weights.transformers import load_hf

def status(key):  # of this process alone, unlike getrusage's
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

jnp.ones((64, 64)).block_until_ready()
try:
    open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
except OSError:
    pass
before = status("VmRSS")
params = functional.split(load_hf(sys.argv[1]))[1]
jax.block_until_ready(params)
print(status("VmHWM") - before, sum(x.nbytes for x in jax.tree.leaves(params)))
"""


def test_memory_stays_below_the_model_and_its_largest_tensor(tmp_path):
    """The peak of the host, where the CPU's arrays lie too, on 84 MB of bfloat16 that become 168 MB."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process is read from /proc")
    fields = {"model_type": "llama", "hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 8}
    fields |= {"vocab_size": 32000, "intermediate_size": 1376, "max_position_embeddings": 64}
    fields |= {"tie_word_embeddings": True}
    d, f, v = 512, 1376, 32000
    shapes = {"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,)}
    for layer in range(8):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.{norm}_layernorm.weight": (d,) for norm in ("input", "post_attention")}
        shapes |= {f"{name}.self_attn.{x}_proj.weight": (d, d) for x in "qkvo"}
        shapes |= {f"{name}.mlp.{x}_proj.weight": (f, d) for x in ("gate", "up")}
        shapes |= {f"{name}.mlp.down_proj.weight": (d, f)}
    write(tmp_path, fields, {name: np.ones(shape, ml_dtypes.bfloat16) for name, shape in shapes.items()})
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True)
    peak, target = map(int, done.stdout.split())
    largest = 4 * v * d
    assert target == 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    print(f"{(peak - target) / largest:.2f} of the largest tensor above the model's {target:,} bytes")
    assert peak - target < 1.3 * largest
