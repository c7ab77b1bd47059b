"""One Transformer decoder: GPT-2's architecture, the sinusoids of the original Transformer, and modern choices.

Shape letters: b batch, t query time, s key time, d d_model, h heads, g key/value heads, r query heads of one
key/value head (h = g r), k head size, f hidden size of the MLP, v vocabulary, l layers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from zoo.errors import ZooError, unknown
from zoo.models.layers import DTYPES, REMAT, constrain, dropout, remat, resolve_dtype

Params = dict[str, jax.Array]
Features = dict[str, jax.Array]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),  # So et al. 2021, arXiv:2109.08668
    "swiglu": jax.nn.silu,  # of the gate; Shazeer 2020, arXiv:2002.05202
}


@dataclass(frozen=True)
class DecoderConfig:
    """The defaults are GPT-2 of 124 million parameters."""

    vocab_size: int = 50257
    """Number of token ids."""
    context: int = 1024
    """Longest sequence, in tokens."""
    layers: int = 12
    """Blocks of attention and MLP."""
    d_model: int = 768
    """Width of the residual stream."""
    heads: int = 12
    """Query heads."""
    kv_heads: int | None = None
    """Key and value heads, each shared by heads / kv_heads query heads; as many as heads if not given."""
    head_size: int | None = None
    """Width of a head; d_model / heads if not given."""
    d_ff: int | None = None
    """Hidden width of the MLP; 4 d_model if not given."""
    positions: Literal["learned", "sinusoidal", "rotary"] = "learned"
    """Where the order of the tokens comes in."""
    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm or RMSNorm, before attention and MLP and at the end."""
    norm_eps: float = 1e-5
    """Added to the variance (or mean square)."""
    activation: Literal["gelu", "swiglu", "relu2"] = "gelu"
    """GELU (tanh form), SwiGLU or squared ReLU."""
    bias: bool = True
    """Biases in projections and LayerNorms."""
    qk_norm: bool = False
    """RMSNorm of queries and keys over the head, before the rotation."""
    tied: bool = True
    """The head is the token embedding."""
    softcap: float = 0.0
    """Logits become softcap · tanh(logits / softcap); 0 is off."""
    dropout: float = 0.0
    """Rate on embeddings, attention weights and what enters the residual stream."""
    residual_init: Literal["scaled", "zero"] = "scaled"
    """Start of the two projections into the residual stream: normal, 0.02 / sqrt(2 layers), or zero."""
    dtype: str = "auto"
    """Compute dtype; auto is bfloat16 on TPU and GPU, float32 on CPU."""
    loop: Literal["scan", "unroll"] = "scan"
    """The loop over layers: scanned compiles faster, unrolled runs faster."""
    remat: str = "none"
    """What the backward pass computes again: none, full, dots or dots_no_batch."""


class Decoder(nnx.Module):
    """The network of `DecoderConfig`. Every array of `blocks` holds all layers, on its first axis."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        check_config(config)
        c, self.config = config, config
        k, g, f = sizes(c)
        residual_std = 0.02 / math.sqrt(2 * c.layers) if c.residual_init == "scaled" else 0.0

        def normal(std: float, *shape: int) -> nnx.Param:
            return nnx.Param(std * jax.random.normal(rngs.params(), shape))

        def full(value: float, *shape: int) -> nnx.Param:
            return nnx.Param(jnp.full(shape, value, jnp.float32))

        self.token_embed = normal(0.02, c.vocab_size, c.d_model)
        if c.positions == "learned":
            self.position_embed = normal(0.01, c.context, c.d_model)
        blocks = {
            "attn_norm_scale": full(1, c.layers, c.d_model),
            "q": normal(0.02, c.layers, c.d_model, c.heads, k),
            "k": normal(0.02, c.layers, c.d_model, g, k),
            "v": normal(0.02, c.layers, c.d_model, g, k),
            "out": normal(residual_std, c.layers, c.heads, k, c.d_model),
            "mlp_norm_scale": full(1, c.layers, c.d_model),
            "up": normal(0.02, c.layers, c.d_model, f),
            "down": normal(residual_std, c.layers, f, c.d_model),
        }
        if c.activation == "swiglu":
            blocks["gate"] = normal(0.02, c.layers, c.d_model, f)
        if c.qk_norm:
            blocks["q_norm_scale"] = full(1, c.layers, k)
            blocks["k_norm_scale"] = full(1, c.layers, k)
        self.final_norm_scale = full(1, c.d_model)
        if c.bias:
            if c.norm == "layer":
                blocks["attn_norm_bias"] = full(0, c.layers, c.d_model)
                blocks["mlp_norm_bias"] = full(0, c.layers, c.d_model)
                self.final_norm_bias = full(0, c.d_model)
            blocks["q_bias"] = full(0, c.layers, c.heads, k)
            blocks["k_bias"] = full(0, c.layers, g, k)
            blocks["v_bias"] = full(0, c.layers, g, k)
            blocks["out_bias"] = full(0, c.layers, c.d_model)
            blocks["up_bias"] = full(0, c.layers, f)
            blocks["down_bias"] = full(0, c.layers, c.d_model)
            if c.activation == "swiglu":
                blocks["gate_bias"] = full(0, c.layers, f)
        self.blocks = nnx.Dict(blocks)
        if not c.tied:
            self.head = normal(0.02, c.vocab_size, c.d_model)

    def __call__(
        self, tokens_bt: jax.Array, train: bool = False, key: jax.Array | None = None, features: bool = False
    ) -> Any:
        """Logits float32 [B, T, vocab] of the token after each of `tokens_bt`, int [B, T].

        Dropout acts only with `train` and a key. With `features`, returns (logits, named intermediates):
        "embedded" and "final" [B, T, D], "residual" [L, B, T, D] after each block, and "attention"
        [L, B, H, T, T]. Raises ZooError when T is longer than the context.
        """
        h_btd, out = self._trunk(tokens_bt, train, key, features)
        logits_btv = self.logits(h_btd)
        return (logits_btv, out) if features else logits_btv

    def hidden(self, tokens_bt: jax.Array, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """What `logits` is applied to: the final hidden states [B, T, D], normed, in the compute dtype."""
        return self._trunk(tokens_bt, train, key, False)[0]

    def logits(self, h_btd: jax.Array) -> jax.Array:
        """Logits float32 [B, T, vocab] of final hidden states [B, T, D]; any part of them may be given."""
        table_vd = (self.token_embed if self.config.tied else self.head)[...].astype(h_btd.dtype)
        logits_btv = jnp.einsum("btd,vd->btv", h_btd, table_vd, preferred_element_type=jnp.float32)
        cap = self.config.softcap
        return cap * jnp.tanh(logits_btv / cap) if cap else logits_btv

    def _trunk(
        self, tokens_bt: jax.Array, train: bool, key: jax.Array | None, features: bool
    ) -> tuple[jax.Array, Features]:
        c = self.config
        length = tokens_bt.shape[1]
        if length > c.context:
            raise ZooError(f"{length} tokens do not fit a context of {c.context}; shorten them or raise config.context")
        positions_t = jnp.arange(length)
        embed_key = layer_keys = None
        if train and c.dropout and key is not None:
            embed_key, layer_key = jax.random.split(key)
            layer_keys = jax.random.split(layer_key, c.layers)

        x_btd = self.token_embed[...][tokens_bt]
        if c.positions == "learned":
            x_btd += self.position_embed[...][None, :length]
        elif c.positions == "sinusoidal":  # the embedding is scaled as in section 3.4 of the paper
            x_btd = x_btd * math.sqrt(c.d_model) + sinusoids(positions_t, c.d_model)[None]
        x_btd = constrain(x_btd.astype(resolve_dtype(c.dtype)), BATCH)
        x_btd = dropout(x_btd, c.dropout, embed_key)
        embedded_btd = x_btd

        def layer(x_btd: jax.Array, inputs: tuple[Params, jax.Array | None]) -> tuple[jax.Array, Features]:
            x_btd, attention_bhts = block(c, inputs[0], x_btd, positions_t, inputs[1])
            return x_btd, {"residual": x_btd, "attention": attention_bhts} if features else {}

        layer = remat(layer, c.remat, in_scan=c.loop == "scan")
        inputs = {name: param[...] for name, param in self.blocks.items()}, layer_keys
        if c.loop == "scan":
            x_btd, out = jax.lax.scan(layer, x_btd, inputs)
        else:
            outs = []
            for layer_inputs in unstack(inputs, c.layers):
                x_btd, out = layer(x_btd, layer_inputs)
                outs.append(out)
            out = jax.tree.map(lambda *parts: jnp.stack(parts), *outs)
        bias = self.final_norm_bias[...] if hasattr(self, "final_norm_bias") else None
        x_btd = normalise(c, x_btd, self.final_norm_scale[...], bias)
        return x_btd, out | {"embedded": embedded_btd, "final": x_btd} if features else out


def block(
    c: DecoderConfig, p: Params, x_btd: jax.Array, positions_t: jax.Array, key: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """One layer: x + attention(norm(x)), then x + mlp(norm(x)). `p` holds this layer's parameters.

    Returns the residual stream [B, T, D] and the attention weights [B, H, T, T].
    """
    keys = (None, None, None) if key is None else jax.random.split(key, 3)
    h_btd = normalise(c, x_btd, p["attn_norm_scale"], p.get("attn_norm_bias"))
    q_bhtk = project("btd,dhk->bhtk", h_btd, p["q"], p.get("q_bias"))
    k_bgsk = project("bsd,dgk->bgsk", h_btd, p["k"], p.get("k_bias"))
    v_bgsk = project("bsd,dgk->bgsk", h_btd, p["v"], p.get("v_bias"))
    if c.qk_norm:
        q_bhtk, k_bgsk = (
            rms_norm(q_bhtk, p["q_norm_scale"], c.norm_eps),
            rms_norm(k_bgsk, p["k_norm_scale"], c.norm_eps),
        )
    if c.positions == "rotary":
        q_bhtk, k_bgsk = rotate(q_bhtk, positions_t, c.rope_theta), rotate(k_bgsk, positions_t, c.rope_theta)
    mask_ts = positions_t[:, None] >= positions_t[None, :]
    o_bhtk, attention_bhts = attend(q_bhtk, k_bgsk, v_bgsk, mask_ts, c.dropout, keys[0])
    x_btd += dropout(project("bhtk,hkd->btd", o_bhtk, p["out"], p.get("out_bias")), c.dropout, keys[1])

    h_btd = normalise(c, x_btd, p["mlp_norm_scale"], p.get("mlp_norm_bias"))
    up_btf = project("btd,df->btf", h_btd, p["up"], p.get("up_bias"))
    if c.activation == "swiglu":
        up_btf *= ACTIVATIONS["swiglu"](project("btd,df->btf", h_btd, p["gate"], p.get("gate_bias")))
    else:
        up_btf = ACTIVATIONS[c.activation](up_btf)
    x_btd += dropout(project("btf,fd->btd", up_btf, p["down"], p.get("down_bias")), c.dropout, keys[2])
    return constrain(x_btd, BATCH), attention_bhts


def attend(
    q_bhtk: jax.Array,
    k_bgsk: jax.Array,
    v_bgsk: jax.Array,
    mask_ts: jax.Array,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Scaled dot-product attention where `mask_ts` is true; the softmax is float32.

    Query head h reads key/value head h // (H / G). Returns the mixed values [B, H, T, K] and the weights,
    float32 [B, H, T, S]. Heads come before time: on CPU that is faster.
    """
    b, h, t, k = q_bhtk.shape
    g, s = k_bgsk.shape[1:3]
    # The query heads of one key/value head are so many more rows of one matrix product.
    q_bgtk = (q_bhtk * k**-0.5).reshape(b, g, h // g * t, k)
    scores_bgts = jnp.einsum("bgtk,bgsk->bgts", q_bgtk, k_bgsk, preferred_element_type=jnp.float32)
    mask_ts = jnp.tile(mask_ts, (h // g, 1))
    scores_bgts = jnp.where(mask_ts[None, None], scores_bgts, jnp.finfo(jnp.float32).min)
    highest = jax.lax.stop_gradient(jnp.max(scores_bgts, axis=-1, keepdims=True))
    e_bgts = jnp.exp(scores_bgts - highest)
    total = jnp.sum(e_bgts, axis=-1, keepdims=True)
    dropped_bgts = dropout(e_bgts.astype(v_bgsk.dtype), dropout_rate, key)
    # Dividing here and not before is one pass less over the scores.
    o_bgtk = jnp.einsum("bgts,bgsk->bgtk", dropped_bgts, v_bgsk, preferred_element_type=jnp.float32) / total
    return o_bgtk.reshape(b, h, t, k).astype(v_bgsk.dtype), (e_bgts / total).reshape(b, h, t, s)


def project(equation: str, x: jax.Array, weight: jax.Array, bias: jax.Array | None) -> jax.Array:
    """einsum of x and a weight in x's dtype, plus a bias laid along the dimensions that the weight gave."""
    y = jnp.einsum(equation, x, weight.astype(x.dtype))
    if bias is None:
        return y
    target = equation.split("->")[1]
    names = equation.split("->")[0].split(",")[1]
    shape = [size if name in names else 1 for name, size in zip(target, y.shape, strict=True)]
    return y + bias.astype(x.dtype).reshape(shape)


def unstack(tree: Any, layers: int) -> list[Any]:
    """The trees of single layers that are stacked in `tree`."""
    leaves, treedef = jax.tree.flatten(tree)
    # The gradient of one split is one concatenation; that of many slices is a sum of as many padded arrays.
    parts = [jax.lax.split(leaf, (1,) * layers) for leaf in leaves]
    return [jax.tree.unflatten(treedef, [part[i][0] for part in parts]) for i in range(layers)]


def normalise(c: DecoderConfig, x_btd: jax.Array, scale_d: jax.Array, bias_d: jax.Array | None) -> jax.Array:
    """LayerNorm (Ba et al. 2016) or RMSNorm by the config, computed in float32."""
    if c.norm == "rms":
        return rms_norm(x_btd, scale_d, c.norm_eps)
    x = x_btd.astype(jnp.float32)
    x -= jnp.mean(x, axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + c.norm_eps) * scale_d[None, None]
    return (x if bias_d is None else x + bias_d[None, None]).astype(x_btd.dtype)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x²) + eps) · scale over the last axis, in float32 (Zhang and Sennrich 2019)."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


def sinusoids(positions_t: jax.Array, width: int) -> jax.Array:
    """Position encoding float32 [T, width]: sin(t / 10000^(2i/width)) at 2i, the cosine at 2i + 1.

    Vaswani et al. 2017, section 3.5.
    """
    frequencies = 10_000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = positions_t.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(len(positions_t), width)


def rotate(x_bhtk: jax.Array, positions_t: jax.Array, theta: float) -> jax.Array:
    """Rotary positions (Su et al. 2021): turns each pair (x[i], x[i + K/2]) by t · theta^(-2i/K), in float32."""
    k = x_bhtk.shape[-1]
    frequencies = theta ** (-jnp.arange(0, k, 2, dtype=jnp.float32) / k)
    angles = positions_t.astype(jnp.float32)[:, None] * frequencies[None]
    cos, sin = jnp.cos(angles)[None, None], jnp.sin(angles)[None, None]
    a, b = jnp.split(x_bhtk.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_bhtk.dtype)


def sizes(c: DecoderConfig) -> tuple[int, int, int]:
    """(head size, key/value heads, hidden width of the MLP), with the defaults filled in."""
    return c.head_size or c.d_model // c.heads, c.kv_heads or c.heads, c.d_ff or 4 * c.d_model


def check_config(c: DecoderConfig) -> None:
    """Raises ZooError for a config that makes no network."""
    if min(c.vocab_size, c.context, c.layers, c.d_model, c.heads) < 1 or not 0 <= c.dropout < 1:
        raise ZooError("vocab_size, context, layers, d_model and heads must be at least 1, and dropout in [0, 1)")
    k, g, _ = sizes(c)
    for kind, known in (
        ("positions", ("learned", "sinusoidal", "rotary")),
        ("norm", ("layer", "rms")),
        ("activation", tuple(ACTIVATIONS)),
        ("residual_init", ("scaled", "zero")),
        ("loop", ("scan", "unroll")),
        ("remat", tuple(REMAT)),
        ("dtype", ("auto", *DTYPES)),
    ):
        if getattr(c, kind) not in known:
            raise unknown(kind, getattr(c, kind), known)
    if c.head_size is None and c.d_model % c.heads:
        raise ZooError(f"d_model {c.d_model} does not divide by heads {c.heads}; change one, or set head_size")
    if c.heads % g:
        raise ZooError(f"heads {c.heads} does not divide by kv_heads {g}; change one")
    if c.positions == "rotary" and k % 2:
        raise ZooError(f"rotary positions turn pairs, and head size {k} is odd; make it even")
    if c.positions == "sinusoidal" and c.d_model % 2:
        raise ZooError(f"sinusoidal positions come in pairs, and d_model {c.d_model} is odd; make it even")


MODERN = DecoderConfig(
    vocab_size=256,
    context=64,
    layers=4,
    d_model=128,
    heads=4,
    positions="rotary",
    norm="rms",
    activation="relu2",
    bias=False,
    qk_norm=True,
    residual_init="zero",
    loop="unroll",
)

VARIANTS: dict[str, DecoderConfig] = {
    "gpt2": DecoderConfig(),
    "gpt2-medium": DecoderConfig(layers=24, d_model=1024, heads=16),
    "gpt2-large": DecoderConfig(layers=36, d_model=1280, heads=20),
    "gpt2-xl": DecoderConfig(layers=48, d_model=1600, heads=25),
    "gpt-nano": DecoderConfig(vocab_size=256, context=64, layers=4, d_model=128, heads=4, loop="unroll"),
    "gpt-mini": DecoderConfig(vocab_size=256, context=256, layers=6, d_model=384, heads=6, loop="unroll"),
    "gpt-modern": MODERN,
    # On a CPU, steps that are short win against layers that are wide: measured with `bench.py race`.
    "gpt-modern-s": replace(MODERN, context=128, layers=3, d_ff=384),
    "gpt-modern-xs": replace(MODERN, layers=2, d_ff=256),
}

BATCH = P(("data", "fsdp"), None, None)

SHARDING = (
    (r"(token_embed|head)$", P(("tensor", "fsdp"), None)),
    (r"position_embed$", P(None, "fsdp")),
    (r"blocks/[qkv]$", P(None, "fsdp", "tensor", None)),
    (r"blocks/out$", P(None, "tensor", None, "fsdp")),
    (r"blocks/(up|gate)$", P(None, "fsdp", "tensor")),
    (r"blocks/down$", P(None, "tensor", "fsdp")),
)

# For Muon: (path regex, (axes that a matrix reduces over, axes of its output)). Layers are a batch of matrices.
MATRICES = (
    (r"blocks/[qkv]$", ((1,), (2, 3))),
    (r"blocks/out$", ((1, 2), (3,))),
    (r"blocks/(up|gate|down)$", ((1,), (2,))),
)
