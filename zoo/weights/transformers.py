"""Folders of the transformers library (Hugging Face): GPT-2, Llama, Mistral, Qwen2 and Qwen3, in and out.

A folder holds `config.json` and `model.safetensors`, or shards of it that `model.safetensors.index.json` lists.
Fields of the config are those of the library's GPT2Config, LlamaConfig, MistralConfig, Qwen2Config and Qwen3Config,
in the layout of its versions 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`).
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from etils import epath

from zoo.errors import ZooError, unknown
from zoo.models import functional
from zoo.models.decoder import Decoder, DecoderConfig, check_config, sizes
from zoo.weights import registry
from zoo.weights.fields import Fields, read_json
from zoo.weights.imports import GPT2, LLAMA, PARAM_DTYPES, import_decoder
from zoo.weights.rules import Place, Source, exported
from zoo.weights.safetensors_file import nbytes, read_sources, write_sources

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 4 * 10**9
BUFFERS = r"\.attn\.(bias|masked_bias)$|rotary_emb\.inv_freq$"  # follow from the config; old files hold them

ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# What the decoder computes in one way only. A field that is absent or null has the first value.
GPT2_ONLY = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False, True),  # the same numbers in another order
    "add_cross_attention": (False,),
    "quantization_config": (None,),
}
LLAMA_ONLY = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1.0,),
    "rope_interleaved": (False,),
    "quantization_config": (None,),
}
GPT2_NEEDS = {"norm": "layer", "activation": "gelu", "bias": True, "qk_norm": False, "window": 0, "softcap": 0}
LLAMA_NEEDS = {"positions": "rotary", "norm": "rms", "activation": "swiglu", "bias": False, "softcap": 0}


def load_hf(
    folder: str | os.PathLike[str], *, param_dtype: str = "float32", where: Place | None = None, **overrides: Any
) -> Decoder:
    """The decoder of a folder, with some fields of its config changed (`dtype` is that of the computation).

    Weights of float32, float16 or bfloat16 are cast to `param_dtype` and stream to where they lie: `where(path,
    shape)` gives the sharding of a parameter, the default device is taken without it. Dropout is 0 unless asked
    for. Raises ZooError that lists all fields, or all tensors, that do not fit.
    """
    path = epath.Path(folder)
    fields = read_json(path / "config.json")
    config = registry.replace(config_from_hf(fields), overrides)
    gpt2 = fields["model_type"] == "gpt2"
    prefix = "transformer." if gpt2 else "model."
    sources = folder_sources(path)
    if not any(name.startswith(prefix) for name in sources):  # the network was saved without its head
        sources = {name if name == "lm_head.weight" else prefix + name: x for name, x in sources.items()}
    try:
        return import_decoder(
            config,
            sources,
            GPT2 if gpt2 else LLAMA,
            ignore=BUFFERS,
            param_dtype=param_dtype,
            where=where,
            tied_head="lm_head.weight",
        )
    except ZooError as error:
        raise ZooError(f"{path}: {error}") from error


def save_hf(
    model: Decoder,
    folder: str | os.PathLike[str],
    tokenizer_files: Sequence[str | os.PathLike[str]] = (),
    *,
    dtype: str = "float32",
    extra: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a folder that the transformers library loads, with the same logits.

    `tokenizer_files` (tokenizer.json, ...) are copied beside it; `extra` are more fields of config.json, such as
    eos_token_id. Above `shard_bytes` the weights are split. Raises ZooError for a config that none of the library's
    architectures has, before anything is written.
    """
    c = model.config
    fields = hf_from_config(c) | {"torch_dtype": dtype} | dict(extra or {})
    if dtype not in PARAM_DTYPES:
        raise ZooError(f"dtype {dtype!r} is not one of {', '.join(PARAM_DTYPES)}")
    copies = {epath.Path(file).name: epath.Path(file).read_bytes() for file in tokenizer_files}
    params = functional.split(model)[1]
    for table in {"token_embed", "head"} & set(params):
        if params[table].shape[0] != c.vocab_size:  # the padding stays here
            params[table] = params[table][: c.vocab_size]
    sources = exported({"params": params}, GPT2 if fields["model_type"] == "gpt2" else LLAMA)
    sources = {name: Source(x.shape, PARAM_DTYPES[dtype], x.read) for name, x in sources.items()}

    target = epath.Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    shards = _shards(sources, shard_bytes)
    for name, shard in shards.items():
        write_sources(target / f"{name}.part", shard, {"format": "pt"})
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(map(nbytes, sources.values()))},
            "weight_map": {tensor: name for name, shard in shards.items() for tensor in shard},
        }
        copies[INDEX] = _json(index)
    copies["config.json"] = _json(fields)
    for name, content in copies.items():
        (target / f"{name}.part").write_bytes(content)
    for name in (*shards, *copies):  # only when all is written
        (target / f"{name}.part").replace(target / name)
    for path in target.iterdir():  # weights that an earlier save split in another way would be read first
        weights = re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?", path.name)
        if weights and path.name not in shards and path.name not in copies:
            path.unlink()


def config_from_hf(fields: Mapping[str, Any]) -> DecoderConfig:
    """The config of the decoder that a `config.json` describes.

    Raises ZooError for an unknown model_type, and one that lists every field that is missing, is no sensible value,
    or asks for what the decoder has not.
    """
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise unknown("model_type of config.json", str(kind), ARCHITECTURES)
    read = Fields(fields)
    for key, allowed in (GPT2_ONLY if kind == "gpt2" else LLAMA_ONLY).items():
        read.only(key, allowed)
    config = _gpt2(read) if kind == "gpt2" else _llama(kind, read)
    read.check(f"config.json ({kind})")
    check_config(config)
    return config


def hf_from_config(c: DecoderConfig) -> dict[str, Any]:
    """The `config.json` of a decoder, in the layout that all versions of the library read.

    Raises ZooError that lists what none of the architectures has.
    """
    check_config(c)
    k, g, f = sizes(c)
    gpt2 = c.positions == "learned"
    needs = GPT2_NEEDS if gpt2 else LLAMA_NEEDS
    wrong = [
        f"{name} {getattr(c, name)}, where {'GPT-2' if gpt2 else 'Llama'} has {need}"
        for name, need in needs.items()
        if getattr(c, name) != need
    ]
    if gpt2 and c.qkv_bias is False:
        wrong.append("no qkv_bias, which GPT-2 has")
    if gpt2 and (g, k * c.heads) != (c.heads, c.d_model):
        wrong.append("kv_heads or head_size, where GPT-2 has heads of d_model / heads")
    if not gpt2 and c.qk_norm and c.qkv_bias:
        wrong.append("both qk_norm and qkv_bias, where Qwen3 has the first and Qwen2 the second")
    if wrong:
        raise ZooError(f"the transformers library has no architecture for this decoder: it has {'; '.join(wrong)}")
    common = {"vocab_size": c.vocab_size, "tie_word_embeddings": c.tied, "bos_token_id": None, "eos_token_id": None}
    if gpt2:
        return (
            _head("gpt2")
            | common
            | {
                "n_positions": c.context,
                "n_embd": c.d_model,
                "n_layer": c.layers,
                "n_head": c.heads,
                "n_inner": c.d_ff,
                "activation_function": "gelu_new",
                "layer_norm_epsilon": c.norm_eps,
                "embd_pdrop": c.dropout,
                "attn_pdrop": c.dropout,
                "resid_pdrop": c.dropout,
            }
        )
    kind = "qwen3" if c.qk_norm else "qwen2" if c.qkv_bias else "mistral" if c.window else "llama"
    scaling = {
        "rope_type": "llama3",
        "factor": c.rope_factor,
        "low_freq_factor": c.rope_low,
        "high_freq_factor": c.rope_high,
        "original_max_position_embeddings": c.rope_original,
    }
    fields = (
        _head(kind)
        | common
        | {
            "hidden_size": c.d_model,
            "intermediate_size": f,
            "num_hidden_layers": c.layers,
            "num_attention_heads": c.heads,
            "num_key_value_heads": g,
            "head_dim": k,
            "max_position_embeddings": c.context,
            "hidden_act": "silu",
            "rms_norm_eps": c.norm_eps,
            "rope_theta": c.rope_theta,
            "rope_scaling": scaling if c.rope_factor != 1 else None,
            "attention_dropout": 0.0,
        }
    )
    if kind in ("llama", "qwen3"):
        fields |= {"attention_bias": False}
    if kind == "llama":
        return fields | {"mlp_bias": False}
    fields |= {"sliding_window": c.window or None}
    if kind == "mistral":
        return fields
    layer_type = "sliding_attention" if c.window else "full_attention"
    return fields | {
        "use_sliding_window": bool(c.window),
        "max_window_layers": 0 if c.window else c.layers,
        "layer_types": [layer_type] * c.layers,
    }


def folder_sources(folder: epath.Path) -> dict[str, Source]:
    """The tensors of a folder by name, from the headers of `model.safetensors` or of all shards.

    Raises ZooError for a folder without weights, and one that lists what is wrong with its shards.
    """
    if (folder / WEIGHTS).exists():
        return read_sources(folder / WEIGHTS)
    path = folder / INDEX
    if not path.exists():
        raise ZooError(f"{folder} has neither {WEIGHTS} nor {INDEX}; save the model again, as safetensors")
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ZooError(f"{path} has no weight_map; get it again")
    shards = {str(name) for name in weight_map.values()}
    if outside := sorted(name[:80] for name in shards if re.fullmatch(r"[\w.-]+\.safetensors", name) is None):
        raise ZooError(f"{path} names {', '.join(outside)}, which is no safetensors file of its folder; get it again")
    if missing := sorted(name for name in shards if not (folder / name).exists()):
        raise ZooError(f"{folder} lacks {', '.join(missing)} of {INDEX}; get them as well")
    sources: dict[str, Source] = {}
    problems = []
    for shard in sorted(shards):
        for name, source in read_sources(folder / shard).items():
            if weight_map.get(name) != shard:
                problems.append(f"{name}: is in {shard}, the index has it in {weight_map.get(name, 'no file')}")
            sources[name] = source
    problems += [f"{name}: is not in {shard}" for name, shard in weight_map.items() if name not in sources]
    if problems:
        raise ZooError(f"{path} does not fit its shards:\n" + "\n".join(f"  {problem}" for problem in problems))
    return sources


def _gpt2(read: Fields) -> DecoderConfig:
    inner = read.get("n_inner")
    return DecoderConfig(
        vocab_size=read.size("vocab_size"),
        context=read.size("n_positions"),
        layers=read.size("n_layer", most=10_000),
        d_model=read.size("n_embd"),
        heads=read.size("n_head"),
        d_ff=None if inner is None else read.size("n_inner"),
        norm_eps=read.number("layer_norm_epsilon", 1e-5),
        tied=read.flag("tie_word_embeddings", True),
    )


def _llama(kind: str, read: Fields) -> DecoderConfig:
    d, heads, layers = (
        read.size("hidden_size"),
        read.size("num_attention_heads"),
        read.size("num_hidden_layers", most=10_000),
    )
    kv_heads, head_size = read.size("num_key_value_heads", heads), read.size("head_dim", d // heads or 1)
    config = DecoderConfig(
        vocab_size=read.size("vocab_size"),
        context=read.size("max_position_embeddings"),
        layers=layers,
        d_model=d,
        heads=heads,
        kv_heads=None if kv_heads == heads else kv_heads,
        head_size=None if head_size * heads == d else head_size,
        d_ff=read.size("intermediate_size"),
        positions="rotary",
        norm="rms",
        norm_eps=read.number("rms_norm_eps", 1e-6),
        activation="swiglu",
        bias=False,
        qkv_bias=True if kind == "qwen2" else None,
        qk_norm=kind == "qwen3",
        tied=read.flag("tie_word_embeddings", False),
        window=_window(kind, read, layers),
    )
    return _rope(config, read)


def _rope(config: DecoderConfig, read: Fields) -> DecoderConfig:
    scaling = read.get("rope_parameters") or read.get("rope_scaling") or {}
    if not isinstance(scaling, dict) or any(isinstance(value, dict) for value in scaling.values()):
        read.problems.append(f"rope_scaling is {str(scaling)[:80]}; it must be null, or a dict for all layers alike")
        return config
    inner = Fields({"rope_theta": read.get("rope_theta")} | scaling)
    config = replace(config, rope_theta=inner.number("rope_theta", 10_000.0))
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "llama3":
        config = replace(
            config,
            rope_factor=inner.number("factor"),
            rope_low=inner.number("low_freq_factor"),
            rope_high=inner.number("high_freq_factor"),
            rope_original=inner.size("original_max_position_embeddings"),
        )
    elif kind != "default":
        read.problems.append(f"rope_type is {str(kind)[:80]}; the decoder has default and llama3 only")
    if scaling.get("partial_rotary_factor") not in (None, 1, 1.0):
        read.problems.append("partial_rotary_factor is not 1; the decoder turns whole heads only")
    read.problems += inner.problems
    return config


def _window(kind: str, read: Fields, layers: int) -> int:
    """The sliding window, which all layers have here, or none."""
    width, types = read.get("sliding_window"), read.get("layer_types")
    sliding = layers if kind == "mistral" and width is not None else 0
    if kind in ("qwen2", "qwen3") and width is not None and read.flag("use_sliding_window", False):
        first = read.get("max_window_layers")
        sliding = max(0, layers - (first if type(first) is int and first >= 0 else 28))
    if isinstance(types, list):
        if len(types) != layers or not set(map(str, types)) <= {"full_attention", "sliding_attention"}:
            read.problems.append(f"layer_types must be {layers} of full_attention and sliding_attention")
        sliding = types.count("sliding_attention")
    if 0 < sliding < layers:
        read.problems.append(f"attention slides in {sliding} of {layers} layers; the decoder has all or none")
    return read.size("sliding_window") if sliding > 0 else 0


def _head(kind: str) -> dict[str, Any]:
    return {"model_type": kind, "architectures": [ARCHITECTURES[kind]]}


def _shards(sources: Mapping[str, Source], most: int) -> dict[str, dict[str, Source]]:
    """The tensors of each file, in order; a tensor is never split."""
    groups: list[dict[str, Source]] = [{}]
    size = 0
    for name, source in sources.items():
        if groups[-1] and size + nbytes(source) > most:
            groups.append({})
            size = 0
        groups[-1][name] = source
        size += nbytes(source)
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)}


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
