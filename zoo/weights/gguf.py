"""GGUF, the file of llama.cpp: decoders of the Llama, Qwen2 and Qwen3 architectures, dequantised.

Needs the optional dependency `gguf`. Keys and tensor names are those of its constants
(github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

import functools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from zoo.errors import ZooError, unknown
from zoo.models.decoder import Decoder, DecoderConfig, check_config
from zoo.models.positions import rotary_frequencies
from zoo.weights import registry
from zoo.weights.fields import Fields
from zoo.weights.imports import import_decoder
from zoo.weights.rules import DENSE, Place, Rule, Rules, Source, heads, interleaved_heads

# The rows of Llama's queries and keys are stored for pairs that are neighbours, those of the others are not.
ARCHITECTURES = {"llama": interleaved_heads(), "qwen2": heads(1, transposed=True), "qwen3": heads(1, transposed=True)}
FREQUENCIES = "rope_freqs.weight"
# What the package raises for a file with wrong bytes.
DAMAGE = (ValueError, TypeError, LookupError, OverflowError, RecursionError, MemoryError, AttributeError)


def load_gguf(
    path: str | os.PathLike[str], *, param_dtype: str = "float32", where: Place | None = None, **overrides: Any
) -> Decoder:
    """The decoder of a .gguf file, with some fields of its config changed; arguments as those of `load_hf`.

    Raises ZooError for a file that is damaged, of another architecture, or lists all tensors that do not fit.
    """
    reader = _open(path)
    config, sources = _config(reader, path), _sources(reader)
    sources.pop(FREQUENCIES, None)  # the config tells the same
    rotary = ARCHITECTURES[_values(reader)["general.architecture"]]
    reader.fields.clear()  # of a tokenizer, hundreds of thousands of small arrays
    try:
        config = registry.replace(config, overrides)
        return import_decoder(config, sources, _rules(rotary), param_dtype=param_dtype, where=where)
    except ZooError as error:
        raise ZooError(f"{path}: {error}") from error


def config_from_gguf(path: str | os.PathLike[str]) -> DecoderConfig:
    """The config that the metadata of a .gguf file describes."""
    return _config(_open(path), path)


def tokenizer_from_gguf(path: str | os.PathLike[str]) -> dict[str, Any]:
    """All that a .gguf file tells of its tokenizer, by the names after `tokenizer.` and `tokenizer.ggml.`.

    Among them: `model` ("gpt2" is byte-level BPE, "llama" SentencePiece), `pre`, `tokens`, `token_type` (1 normal,
    2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte), `scores`, `merges`, `chat_template`, `bos_token_id`,
    `eos_token_id`, `add_bos_token`. Those that the file lacks are absent. Raises ZooError for a damaged file.
    """
    values = _values(_open(path), "tokenizer.")
    if "tokenizer.ggml.tokens" not in values:
        raise ZooError(f"{path} has no tokenizer; give the file of a whole model")
    return {key.removeprefix("tokenizer.").removeprefix("ggml."): value for key, value in values.items()}


def _open(path: str | os.PathLike[str]) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ZooError(f'{path} needs the package gguf: pip install "zoo-jax[gguf]"') from error

    class Reader(GGUFReader):
        """Raises at the end of the file, where the package would go on with empty arrays."""

        def _get(self, offset: int, dtype: Any, count: int = 1, *args: Any, **kwargs: Any) -> Any:
            self.data: Any = np.asarray(self.data)  # many times faster to slice than a memmap, and as lazy
            values = super()._get(offset, dtype, count, *args, **kwargs)
            if len(values) != count:
                raise ValueError(f"it ends before byte {offset + int(count):,}")
            return values

    try:
        if not Path(path).stat().st_size:
            raise ValueError("it is empty")
        return Reader(path)
    except OSError as error:
        raise ZooError(f"{path} cannot be read: {error.strerror or error}") from error
    except DAMAGE as error:
        raise ZooError(f"{path} is not a GGUF file, or is damaged ({error}); get it again") from error


def _values(reader: Any, prefix: str = "") -> dict[str, Any]:
    """The metadata whose keys begin so; without a prefix, all but the long lists of the tokenizer."""
    fields = {
        key: field
        for key, field in reader.fields.items()
        if key.startswith(prefix) and (prefix or not key.startswith("tokenizer."))
    }
    try:
        found = {key: field.contents() for key, field in fields.items()}
    except DAMAGE as error:
        raise ZooError(f"the metadata of the GGUF file is damaged ({error}); get it again") from error
    # They were rounded to float32: 1e-5 is meant where 9.999999747378752e-06 is read.
    return {key: float(str(np.float32(value))) if isinstance(value, float) else value for key, value in found.items()}


def _config(reader: Any, path: str | os.PathLike[str]) -> DecoderConfig:
    values = _values(reader)
    kind = values.get("general.architecture")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise unknown(f"general.architecture of {path}", str(kind), ARCHITECTURES)
    read = Fields(values, f"{kind}.")
    shapes = {tensor.name: tuple(int(size) for size in reversed(tensor.shape)) for tensor in reader.tensors}
    d, n = read.size("embedding_length"), read.size("attention.head_count")
    kv_heads, head_size = read.size("attention.head_count_kv", n), read.size("attention.key_length", d // n or 1)
    read.only("attention.value_length", (head_size,))
    read.only("rope.dimension_count", (head_size,))
    read.only("rope.scaling.type", ("none",))
    read.only("expert_count", (0,))
    if "token_embd.weight" not in shapes:
        read.problems.append("token_embd.weight is missing")
    config = DecoderConfig(
        vocab_size=shapes.get("token_embd.weight", (1,))[0],
        context=read.size("context_length"),
        layers=read.size("block_count", most=10_000),
        d_model=d,
        heads=n,
        kv_heads=None if kv_heads == n else kv_heads,
        head_size=None if head_size * n == d else head_size,
        d_ff=read.size("feed_forward_length"),
        positions="rotary",
        rope_theta=read.number("rope.freq_base", 10_000.0),
        window=read.size("attention.sliding_window") if read.get("attention.sliding_window") else 0,
        norm="rms",
        norm_eps=read.number("attention.layer_norm_rms_epsilon"),
        activation="swiglu",
        bias=False,
        qkv_bias=True if kind == "qwen2" else None,
        qk_norm=kind == "qwen3",
        tied="output.weight" not in shapes,
    )
    if FREQUENCIES in shapes:
        config = _stretched(config, _sources(reader)[FREQUENCIES].read(), read)
    read.check(str(path))
    check_config(config)
    return config


def _stretched(config: DecoderConfig, factors: np.ndarray, read: Fields) -> DecoderConfig:
    """The config with Llama 3's stretching of rotary wavelengths, of which the file has only the factors."""
    config = replace(config, rope_factor=float(np.max(factors, initial=1.0)))
    k, theta = config.head_size or config.d_model // config.heads, config.rope_theta
    stretch = (config.rope_factor, config.rope_low, config.rope_high, config.rope_original)
    known = np.asarray(rotary_frequencies(k, theta)) / np.asarray(rotary_frequencies(k, theta, *stretch))
    if factors.shape != known.shape or not np.allclose(factors, known, rtol=1e-3):
        read.problems.append(
            f"{FREQUENCIES} is not Llama 3's stretching by {config.rope_factor:g} of a context of 8192"
        )
    return config


def _sources(reader: Any) -> dict[str, Source]:
    from gguf.constants import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    for kind in sorted({tensor.tensor_type for tensor in reader.tensors}):  # before any is read
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except (NotImplementedError, ValueError) as error:
            names = [tensor.name for tensor in reader.tensors if tensor.tensor_type == kind]
            raise ZooError(f"{names[0]} and {len(names) - 1} more are {kind.name}, which gguf does not read") from error

    @functools.lru_cache(maxsize=1)  # its parts are asked for one after the other
    def read(i: int) -> np.ndarray:
        tensor = reader.tensors[i]
        shape = [int(size) for size in reversed(tensor.shape)]
        if len(shape) < 2:
            return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        out = np.empty(shape, np.float32)
        rows = max(1, 2**20 * shape[0] // max(1, out.nbytes))
        for first in range(0, shape[0], rows):  # the package takes several times the memory of what it returns
            out[first : first + rows] = dequantize(tensor.data[first : first + rows], tensor.tensor_type)
        return out

    return {
        tensor.name: Source(
            tuple(int(size) for size in reversed(tensor.shape)), np.dtype(np.float32), functools.partial(read, i)
        )
        for i, tensor in enumerate(reader.tensors)
    }


def _rules(rotary: Any) -> Rules:
    layer = "blk.{layer}"
    return (
        Rule("token_embd.weight", "params/token_embed"),
        Rule(f"{layer}.attn_norm.weight", "params/blocks/attn_norm_scale"),
        Rule(f"{layer}.attn_q.weight", "params/blocks/q", rotary),
        Rule(f"{layer}.attn_k.weight", "params/blocks/k", rotary),
        Rule(f"{layer}.attn_v.weight", "params/blocks/v", heads(1, transposed=True)),
        *(Rule(f"{layer}.attn_{name}.bias", f"params/blocks/{name}_bias", heads(0)) for name in "qkv"),
        Rule(f"{layer}.attn_q_norm.weight", "params/blocks/q_norm_scale"),
        Rule(f"{layer}.attn_k_norm.weight", "params/blocks/k_norm_scale"),
        Rule(f"{layer}.attn_output.weight", "params/blocks/out", heads(0, transposed=True)),
        Rule(f"{layer}.ffn_norm.weight", "params/blocks/mlp_norm_scale"),
        Rule(f"{layer}.ffn_gate.weight", "params/blocks/gate", DENSE),
        Rule(f"{layer}.ffn_up.weight", "params/blocks/up", DENSE),
        Rule(f"{layer}.ffn_down.weight", "params/blocks/down", DENSE),
        Rule("output_norm.weight", "params/final_norm_scale"),
        Rule("output.weight", "params/head"),
    )
