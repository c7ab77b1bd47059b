"""Files of llama2.c (github.com/karpathy/llama2.c), version 0: a header of seven integers, then float32 numbers.

Their order is that of legacy_export in its export.py; the names here are those of its model.py.
"""

import math
import os
import struct
from typing import Any

import numpy as np
from etils import epath

from zoo.errors import ZooError
from zoo.models.decoder import Decoder, DecoderConfig, check_config
from zoo.weights import registry
from zoo.weights.imports import import_decoder
from zoo.weights.rules import DENSE, Place, Rule, Source, heads, interleaved_heads
from zoo.weights.safetensors_file import file_source

HEADER = struct.Struct("<7i")
VERSIONED = int.from_bytes(b"42ka", "little")  # "ak42": the magic number of later versions
MOST = 2**24  # of any size in the header

LLAMA2C = (
    Rule("tok_embeddings", "params/token_embed"),
    Rule("layers.{layer}.attention_norm", "params/blocks/attn_norm_scale"),
    Rule("layers.{layer}.attention.wq", "params/blocks/q", interleaved_heads()),
    Rule("layers.{layer}.attention.wk", "params/blocks/k", interleaved_heads()),
    Rule("layers.{layer}.attention.wv", "params/blocks/v", heads(1, transposed=True)),
    Rule("layers.{layer}.attention.wo", "params/blocks/out", heads(0, transposed=True)),
    Rule("layers.{layer}.ffn_norm", "params/blocks/mlp_norm_scale"),
    Rule("layers.{layer}.feed_forward.w1", "params/blocks/gate", DENSE),
    Rule("layers.{layer}.feed_forward.w2", "params/blocks/down", DENSE),
    Rule("layers.{layer}.feed_forward.w3", "params/blocks/up", DENSE),
    Rule("norm", "params/final_norm_scale"),
    Rule("output", "params/head"),
)
TABLES = r"^freq_(cos|sin)$"  # of the rotary angles, which follow from the config


def load_llama2c(
    path: str | os.PathLike[str], *, param_dtype: str = "float32", where: Place | None = None, **overrides: Any
) -> Decoder:
    """The decoder of a .bin file, with some fields of its config changed; arguments as those of `load_hf`.

    Raises ZooError for a file of another format, or of another size than its header tells.
    """
    path = epath.Path(path)
    config, sources = _read(path)
    try:
        config = registry.replace(config, overrides)
        return import_decoder(config, sources, LLAMA2C, ignore=TABLES, param_dtype=param_dtype, where=where)
    except ZooError as error:
        raise ZooError(f"{path}: {error}") from error


def _read(path: epath.Path) -> tuple[DecoderConfig, dict[str, Source]]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            header = file.read(HEADER.size)
    except OSError as error:
        raise ZooError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(header) < HEADER.size:
        raise ZooError(f"{path} has {size} bytes, fewer than the header of a llama2.c file; get it again")
    d, f, layers, n, kv_heads, vocab, context = HEADER.unpack(header)
    if d == VERSIONED:
        raise ZooError(f"{path} is a llama2.c file of version 1 or 2; export it again with --version 0")
    tied, vocab = vocab > 0, abs(vocab)  # a negative vocabulary says that the head is not the embedding
    sizes = (d, f, layers, n, kv_heads, vocab, context)
    if not all(1 <= x <= MOST for x in sizes) or layers > 10_000 or d % n or n % kv_heads or d // n % 2:
        raise ZooError(
            f"{path} is no llama2.c file of version 0: its header says d_model {d}, d_ff {f}, layers {layers},"
            f" heads {n}, kv_heads {kv_heads}, vocabulary {vocab}, context {context}; save PyTorch's as safetensors"
        )
    k = d // n
    layout = (  # (name, shape of one layer, whether there is one for each layer)
        ("tok_embeddings", (vocab, d), False),
        ("attention_norm", (d,), True),
        ("attention.wq", (d, d), True),
        ("attention.wk", (kv_heads * k, d), True),
        ("attention.wv", (kv_heads * k, d), True),
        ("attention.wo", (d, d), True),
        ("ffn_norm", (d,), True),
        ("feed_forward.w1", (f, d), True),
        ("feed_forward.w2", (d, f), True),
        ("feed_forward.w3", (f, d), True),
        ("norm", (d,), False),
        ("freq_cos", (context, k // 2), False),
        ("freq_sin", (context, k // 2), False),
        *(() if tied else (("output", (vocab, d), False),)),
    )
    wanted = HEADER.size + sum(4 * math.prod(shape) * (layers if each else 1) for _, shape, each in layout)
    if wanted != size:
        raise ZooError(f"{path} has {size:,} bytes, its header asks for {wanted:,}; get it again")
    sources, offset = {}, HEADER.size
    for name, shape, each in layout:
        for full in [f"layers.{layer}.{name}" for layer in range(layers)] if each else [name]:
            sources[full] = file_source(path, np.dtype("<f4"), shape, offset)
            offset += 4 * math.prod(shape)
    config = DecoderConfig(
        vocab_size=vocab,
        context=context,
        layers=layers,
        d_model=d,
        heads=n,
        kv_heads=None if kv_heads == n else kv_heads,
        d_ff=f,
        positions="rotary",
        norm="rms",
        activation="swiglu",
        bias=False,
        tied=tied,
    )
    check_config(config)
    return config, sources
