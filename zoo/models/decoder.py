"""One Transformer decoder: the GPT-2 and Llama families, by config, with a cache to generate with.

Shape letters: b batch, t query time, s key time, d d_model, h heads, g key/value heads, r query heads of one
key/value head (h = g r), k head size, f hidden size of the MLP, v vocabulary, l layers.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from zoo.errors import ZooError, unknown
from zoo.models.attention import Cache, Implementation, Seen, attend, attend_causally
from zoo.models.layers import Policy, constrain, dropout, layer_norm, relu2, remat, resolve_dtype, rms_norm, unstack
from zoo.models.positions import grid_cells, place, rotary_frequencies, rotary_turns, sinusoids
from zoo.models.projections import apart, look_up, outputs_first, project, project_few, whole

Params = dict[str, jax.Array]
Weights = dict[str, Any]  # Params as a function of `projections` reads them
Features = dict[str, jax.Array]
# (q [B, H, T, K], k and v [B, G, T, K], dropout key) -> mixed values [B, H, T, K] and named by-products
Mix = Callable[[jax.Array, jax.Array, jax.Array, jax.Array | None], tuple[jax.Array, Features]]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "relu2": relu2,
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
    grid: tuple[int, int] | None = None
    """Rows and columns of a picture's codes, which are told where they lie; none if not given."""
    first_code: int = 0
    """Ids from here on are codes of pictures; of models with a grid."""
    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths."""
    rope_factor: float = 1.0
    """Llama 3's stretching of long rotary wavelengths: by so much; 1 is off."""
    rope_low: float = 1.0
    """Wavelengths above rope_original / rope_low are stretched in full."""
    rope_high: float = 4.0
    """Wavelengths below rope_original / rope_high are left alone; between the two it is gradual."""
    rope_original: int = 8192
    """Context that the wavelengths were first trained with."""
    window: int = 0
    """Tokens that attention sees, the last one included (sliding window); 0 is all."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm or RMSNorm, before attention and MLP and at the end."""
    norm_eps: float = 1e-5
    """Added to the variance (or mean square)."""
    activation: Literal["gelu", "swiglu", "relu2"] = "gelu"
    """GELU (tanh form), SwiGLU or squared ReLU."""
    bias: bool = True
    """Biases in projections and LayerNorms."""
    qkv_bias: bool | None = None
    """Biases of queries, keys and values; as `bias` if not given."""
    qk_norm: bool = False
    """RMSNorm of queries and keys over the head, before the rotation."""
    tied: bool = True
    """The head is the token embedding."""
    pad_vocab: int = 1
    """The tables have rows up to a multiple of this; what is beyond the vocabulary is never predicted."""
    softcap: float = 0.0
    """Logits become softcap · tanh(logits / softcap); 0 is off."""
    dropout: float = 0.0
    """Rate on embeddings, attention weights and what enters the residual stream."""
    residual_init: Literal["scaled", "zero"] = "scaled"
    """Start of the two projections into the residual stream: normal, 0.02 / sqrt(2 layers), or zero."""
    dtype: str = "auto"
    """Compute dtype; auto is bfloat16 on TPU and GPU, float32 on CPU."""
    attention: Implementation = "auto"
    """xla anywhere; splash, a Pallas kernel, on TPU; cudnn on NVIDIA GPUs; auto is the kernel that can run, or xla."""
    loop: Literal["scan", "unroll"] = "scan"
    """The loop over layers: scanned compiles faster, unrolled runs faster."""
    prefix: bool = False
    """What is given to a sequence is seen in both directions: a prefix language model (Raffel et al. 2020)."""
    remat: Policy = "none"
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

        rows = -(-c.vocab_size // c.pad_vocab) * c.pad_vocab
        self.token_embed = normal(0.02, rows, c.d_model)
        if c.positions == "learned":
            self.position_embed = normal(0.01, c.context, c.d_model)
        if c.grid:
            self.row_embed, self.column_embed = (normal(0.02, size, c.d_model) for size in c.grid)
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
            blocks["out_bias"] = full(0, c.layers, c.d_model)
            blocks["up_bias"] = full(0, c.layers, f)
            blocks["down_bias"] = full(0, c.layers, c.d_model)
            if c.activation == "swiglu":
                blocks["gate_bias"] = full(0, c.layers, f)
        if c.bias if c.qkv_bias is None else c.qkv_bias:
            blocks["q_bias"] = full(0, c.layers, c.heads, k)
            blocks["k_bias"] = full(0, c.layers, g, k)
            blocks["v_bias"] = full(0, c.layers, g, k)
        self.blocks = nnx.Dict(blocks)
        if not c.tied:
            self.head = normal(0.02, rows, c.d_model)

    def __call__(
        self,
        tokens_bt: jax.Array,
        train: bool = False,
        key: jax.Array | None = None,
        features: bool = False,
        positions: jax.Array | None = None,
        documents: jax.Array | None = None,
        given: jax.Array | None = None,
    ) -> Any:
        """Logits float32 [B, T, vocab] of the token after each of `tokens_bt`, int [B, T].

        Dropout acts only with `train` and a key. `positions`, int [B, T], are 0, 1, 2 ... if not given; tokens see
        only tokens of the same of their `documents`, int [B, T]; those `given`, bool [B, T], to a prefix language
        model see one another in both directions. With `features`, returns (logits, named intermediates): "embedded"
        and "final" [B, T, D], "residual" [L, B, T, D] after each block, and "attention" [L, B, H, T, T]. Raises
        ZooError when T is longer than the context.
        """
        wanted = ("residual", "attention") * features
        h_btd, out = self._trunk(tokens_bt, train, key, positions, documents, given, wanted)
        logits_btv = self.logits(h_btd)
        return (logits_btv, out) if features else logits_btv

    def hidden(
        self,
        tokens_bt: jax.Array,
        train: bool = False,
        key: jax.Array | None = None,
        positions: jax.Array | None = None,
        documents: jax.Array | None = None,
        given: jax.Array | None = None,
    ) -> jax.Array:
        """What `logits` is applied to: the final hidden states [B, T, D], normed, in the compute dtype."""
        return self._trunk(tokens_bt, train, key, positions, documents, given)[0]

    def logits(
        self, h_btd: jax.Array, few: bool = False, dtype: Any = jnp.float32, table_vd: jax.Array | None = None
    ) -> jax.Array:
        """Logits [B, T, vocab] of `dtype`, of final hidden states [B, T, D]; any part of them may be given.

        Those of a padded vocabulary's padding are the least float. `few` is faster for few rows on a CPU.
        """
        c = self.config
        table_vd = whole(SHARDING, "head", self.table() if table_vd is None else table_vd, h_btd.dtype)
        product = project_few if few else project
        logits_btv = product("btd,vd->btv", h_btd, table_vd, None, dtype)
        if c.softcap:
            logits_btv = c.softcap * jnp.tanh(logits_btv / c.softcap)
        if len(table_vd) == c.vocab_size:
            return logits_btv
        return jnp.where(jnp.arange(len(table_vd))[None, None] < c.vocab_size, logits_btv, jnp.finfo(dtype).min)

    def prefill(self, tokens_bt: jax.Array, start_b: jax.Array, slots: int) -> tuple[jax.Array, Cache]:
        """Reads prompts that are padded on the left: token i of row b counts from i = `start_b[b]` on.

        Returns the hidden states [B, T, D] and a cache that has room for `slots` tokens in all, or for the window
        if that is smaller.
        """
        length = tokens_bt.shape[1]
        at_bt = jnp.arange(length)[None] - start_b[:, None]
        documents = (at_bt >= 0).astype(jnp.int32)
        given = documents > 0 if self.config.prefix else None
        h_btd, out = self._trunk(tokens_bt, False, None, jnp.maximum(at_bt, 0), documents, given, ("k", "v"))
        slots = min(slots, self.config.window or slots)

        def into_slots(x_bgtk: jax.Array) -> jax.Array:
            if length <= slots:
                return jnp.pad(x_bgtk, ((0, 0), (0, 0), (0, slots - length), (0, 0)))
            return jnp.roll(x_bgtk[:, :, -slots:], length % slots, axis=2)

        k, v = (tuple(into_slots(layer) for layer in out[name]) for name in ("k", "v"))
        cells_b = grid_cells(tokens_bt >= self.config.first_code)[:, -1] + 1
        return h_btd, Cache(tuple(x.swapaxes(2, 3) for x in k), v, start_b, jnp.asarray(length, jnp.int32), cells_b)

    def step(
        self, tokens_b: jax.Array, cache: Cache, layers: list[Weights] | None = None, few: bool = False
    ) -> tuple[jax.Array, Cache]:
        """Reads one more token of each row, int [B]: the hidden states [B, 1, D], and the cache with them.

        `layers` is `self.layers(few)`, made once before many steps. `few` is faster for few rows on a CPU.
        """
        c, now, slots = self.config, cache.length, cache.k[0].shape[3]
        position_b1 = (now - cache.start_b)[:, None]
        token_s = now - (now - jnp.arange(slots)) % slots  # the newest token of each slot; negative where none is
        documents_bs = (token_s[None] >= cache.start_b[:, None]).astype(jnp.int32)
        mask_b1s = Seen(now[None, None], token_s[None], c.window, jnp.ones_like(position_b1), documents_bs).mask()
        keys, values = list(cache.k), list(cache.v)

        def mix(i: int, q: jax.Array, k: jax.Array, v: jax.Array, _: jax.Array | None) -> tuple[jax.Array, Features]:
            keys[i] = jax.lax.dynamic_update_slice_in_dim(keys[i], k.swapaxes(2, 3), now % slots, axis=3)
            values[i] = jax.lax.dynamic_update_slice_in_dim(values[i], v, now % slots, axis=2)
            return attend(q, keys[i].swapaxes(2, 3), values[i], mask_b1s, scale=1.0)[0], {}

        cells_b = jnp.where(tokens_b >= c.first_code, cache.cells_b, -1)
        x_b1d = self._embed(tokens_b[:, None], position_b1, cells_b[:, None])
        # Looked up in a table, which leaves the loop over tokens, cosines are not computed again by every layer.
        table = self._turns(jnp.arange(c.context if c.window else slots)[None])
        turns = table and (table[0][0][position_b1], table[1][0][position_b1])
        for i, params in enumerate(self.layers(few) if layers is None else layers):
            x_b1d, _ = block(c, params, x_b1d, turns, functools.partial(mix, i), None, project_few if few else project)
        return self._final(x_b1d), Cache(tuple(keys), tuple(values), cache.start_b, now + 1, cells_b + 1)

    def layers(self, few: bool = False) -> list[Weights]:
        """The parameters of each block in the compute dtype, laid out for few rows if asked."""
        c, dtype = self.config, resolve_dtype(self.config.dtype)
        layers = unstack({name: param[...].astype(dtype) for name, param in self.blocks.items()}, c.layers)
        alone = ("out", "down") if c.activation == "swiglu" else ("out", "up", "down")
        return [outputs_first(params, INPUTS, alone) for params in layers] if few else layers

    def table(self) -> jax.Array:
        """The head's weights [rows, D] in the compute dtype."""
        return (self.token_embed if self.config.tied else self.head)[...].astype(resolve_dtype(self.config.dtype))

    def _embed(self, tokens_bt: jax.Array, positions_bt: jax.Array | None, cells_bt: jax.Array) -> jax.Array:
        c, length, dtype = self.config, tokens_bt.shape[1], resolve_dtype(self.config.dtype)
        x_btd = look_up(whole(SHARDING, "token_embed", self.token_embed[...], dtype), tokens_bt)
        if c.grid:
            row_bt, column_bt = jnp.divmod(jnp.maximum(cells_bt, 0) % math.prod(c.grid), c.grid[1])
            place_btd = self.row_embed[...][row_bt] + self.column_embed[...][column_bt]
            x_btd += jnp.where(cells_bt[..., None] >= 0, place_btd, 0.0)
        if c.positions == "learned":
            table = self.position_embed[...]
            x_btd += table[None, :length] if positions_bt is None else table[positions_bt]
        elif c.positions == "sinusoidal":  # the embedding is scaled as in section 3.4 of the paper
            positions_bt = jnp.arange(length)[None] if positions_bt is None else positions_bt
            x_btd = x_btd * math.sqrt(c.d_model) + sinusoids(positions_bt, c.d_model)
        return constrain(x_btd.astype(dtype), BATCH)

    def _turns(self, positions_bt: jax.Array) -> tuple[jax.Array, jax.Array] | None:
        c = self.config
        if c.positions != "rotary":
            return None
        stretch = c.rope_factor, c.rope_low, c.rope_high, c.rope_original
        return rotary_turns(positions_bt, rotary_frequencies(sizes(c)[0], c.rope_theta, *stretch))

    def _final(self, x_btd: jax.Array) -> jax.Array:
        bias = self.final_norm_bias[...] if hasattr(self, "final_norm_bias") else None
        h_btd = normalise(self.config, x_btd, self.final_norm_scale[...], bias)
        # Or a TPU joins the norm's gradient to the head's product, which then takes half as long again.
        return jax.lax.optimization_barrier(h_btd)

    def _trunk(
        self,
        tokens_bt: jax.Array,
        train: bool,
        key: jax.Array | None,
        positions_bt: jax.Array | None,
        documents_bt: jax.Array | None,
        given_bt: jax.Array | None = None,
        wanted: tuple[str, ...] = (),
    ) -> tuple[jax.Array, Features]:
        """The final hidden states, and those by-products of the layers that are wanted, stacked."""
        c, length = self.config, tokens_bt.shape[1]
        if length > c.context:
            raise ZooError(f"{length} tokens do not fit a context of {c.context}; shorten them or raise config.context")
        embed_key = layer_keys = None
        if train and c.dropout and key is not None:
            embed_key, layer_key = jax.random.split(key)
            layer_keys = jax.random.split(layer_key, c.layers)
        x_btd = self._embed(tokens_bt, positions_bt, grid_cells(tokens_bt >= c.first_code))
        x_btd = embedded_btd = dropout(x_btd, c.dropout, embed_key)
        indices = jnp.arange(length)[None]
        turns = self._turns(indices if positions_bt is None else positions_bt)
        seen = Seen(indices, indices, c.window, documents_bt, documents_bt, given_bt if c.prefix else None)

        def mix(q: jax.Array, k: jax.Array, v: jax.Array, key: jax.Array | None) -> tuple[jax.Array, Features]:
            out = {"k": k, "v": v}
            if not (c.dropout or c.prefix or "attention" in wanted):
                return attend_causally(q, k, v, seen, c.attention, scale=1.0), out
            o_bhtk, weights_bhts = attend(q, k, v, seen.mask(), c.dropout, key, scale=1.0)
            return o_bhtk, out | {"attention": weights_bhts}

        def layer(x_btd: jax.Array, inputs: tuple[Params, jax.Array | None]) -> tuple[jax.Array, Features]:
            params = {name: whole(SHARDING, f"blocks/{name}", w, x_btd.dtype) for name, w in inputs[0].items()}
            x_btd, out = block(c, params, x_btd, turns, mix, inputs[1])
            return x_btd, {name: value for name, value in (out | {"residual": x_btd}).items() if name in wanted}

        layer = remat(layer, c.remat, in_scan=c.loop == "scan")
        inputs = {name: param[...] for name, param in self.blocks.items()}, layer_keys
        if c.loop == "scan":
            x_btd, out = jax.lax.scan(layer, x_btd, inputs)
        else:
            outs = []
            for layer_inputs in unstack(inputs, c.layers):
                x_btd, out = layer(x_btd, apart(layer_inputs))
                outs.append(out)
            out = jax.tree.map(lambda *parts: jnp.stack(parts), *outs)
        x_btd = self._final(x_btd)
        return x_btd, out | {"embedded": embedded_btd, "final": x_btd}


def block(
    c: DecoderConfig,
    p: Weights,
    x_btd: jax.Array,
    turns: tuple[jax.Array, jax.Array] | None,
    mix: Mix,
    key: jax.Array | None,
    project: Callable[..., jax.Array] = project,
) -> tuple[jax.Array, Features]:
    """One layer: x + attention(norm(x)), then x + mlp(norm(x)). `p`: its parameters, as `project` reads them.

    Returns the residual stream [B, T, D] and what `mix`, the attention, hands out besides its values.
    """
    keys = (None, None, None) if key is None else jax.random.split(key, 3)
    h_btd = normalise(c, x_btd, p["attn_norm_scale"], p.get("attn_norm_bias"))
    q_bhtk = project("btd,dhk->bhtk", h_btd, p["q"], p.get("q_bias"))
    k_bgsk = project("bsd,dgk->bgsk", h_btd, p["k"], p.get("k_bias"))
    v_bgsk = project("bsd,dgk->bgsk", h_btd, p["v"], p.get("v_bias"))
    q_bhtk = place(q_bhtk, turns, p.get("q_norm_scale"), c.norm_eps, q_bhtk.shape[-1] ** -0.5)
    k_bgsk = place(k_bgsk, turns, p.get("k_norm_scale"), c.norm_eps)
    o_bhtk, out = mix(q_bhtk, k_bgsk, v_bgsk, keys[0])
    x_btd += dropout(project("bhtk,hkd->btd", o_bhtk, p["out"], p.get("out_bias")), c.dropout, keys[1])

    h_btd = normalise(c, x_btd, p["mlp_norm_scale"], p.get("mlp_norm_bias"))
    up_btf = project("btd,df->btf", h_btd, p["up"], p.get("up_bias"))
    if c.activation == "swiglu":
        up_btf *= ACTIVATIONS["swiglu"](project("btd,df->btf", h_btd, p["gate"], p.get("gate_bias")))
    else:
        up_btf = ACTIVATIONS[c.activation](up_btf)
    x_btd += dropout(project("btf,fd->btd", up_btf, p["down"], p.get("down_bias")), c.dropout, keys[2])
    return constrain(x_btd, BATCH), out


def normalise(c: DecoderConfig, x_btd: jax.Array, scale_d: jax.Array, bias_d: jax.Array | None) -> jax.Array:
    """LayerNorm or RMSNorm by the config."""
    if c.norm == "rms":
        return rms_norm(x_btd, scale_d, c.norm_eps)
    return layer_norm(x_btd, scale_d, bias_d, c.norm_eps)


def sizes(c: DecoderConfig) -> tuple[int, int, int]:
    """(head size, key/value heads, hidden width of the MLP), with the defaults filled in."""
    return c.head_size or c.d_model // c.heads, c.kv_heads or c.heads, c.d_ff or 4 * c.d_model


def check_config(c: DecoderConfig) -> None:
    """Raises ZooError for a config that makes no network."""
    if min(c.vocab_size, c.context, c.layers, c.d_model, c.heads) < 1 or not 0 <= c.dropout < 1:
        raise ZooError("vocab_size, context, layers, d_model and heads must be at least 1, and dropout in [0, 1)")
    if min(c.window, c.rope_factor, c.softcap) < 0 or c.pad_vocab < 1 or c.rope_low >= c.rope_high:
        raise ZooError("window and softcap must be 0 or more, pad_vocab at least 1, rope_low below rope_high")
    k, g, _ = sizes(c)
    for kind, known in (
        ("positions", ("learned", "sinusoidal", "rotary")),
        ("norm", ("layer", "rms")),
        ("activation", tuple(ACTIVATIONS)),
        ("residual_init", ("scaled", "zero")),
        ("loop", ("scan", "unroll")),
        ("attention", get_args(Implementation)),
        ("remat", get_args(Policy)),
    ):
        if getattr(c, kind) not in known:
            raise unknown(kind, getattr(c, kind), known)
    resolve_dtype(c.dtype)
    if c.head_size is None and c.d_model % c.heads:
        raise ZooError(f"d_model {c.d_model} does not divide by heads {c.heads}; change one, or set head_size")
    if c.heads % g:
        raise ZooError(f"heads {c.heads} does not divide by kv_heads {g}; change one")
    kernel = c.attention in ("splash", "cudnn")
    if kernel and c.dropout:
        raise ZooError(f"attention {c.attention} has no dropout; set dropout to 0 or attention to xla")
    if c.prefix and (kernel or c.window):
        raise ZooError("a prefix language model has attention xla and no window; change those, or prefix to false")
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

LLAMA = DecoderConfig(positions="rotary", norm="rms", activation="swiglu", bias=False)
LLAMA3 = replace(LLAMA, vocab_size=128256, context=131072, rope_theta=5e5, rope_original=8192)
LLAMA31 = replace(LLAMA3, rope_factor=8.0, tied=False)
SMOLLM2 = replace(LLAMA, vocab_size=49152, context=8192, rope_theta=1e5)
QWEN = replace(LLAMA, vocab_size=151936, context=32768, rope_theta=1e6, norm_eps=1e-6)
QWEN3 = replace(QWEN, context=40960, head_size=128, qk_norm=True)
MISTRAL = replace(LLAMA, vocab_size=32000, context=32768, window=4096, tied=False)

# Sizes are those of the published config.json files.
VARIANTS: dict[str, DecoderConfig] = {
    "gpt2": DecoderConfig(),
    "gpt2-medium": DecoderConfig(layers=24, d_model=1024, heads=16),
    "gpt2-large": DecoderConfig(layers=36, d_model=1280, heads=20),
    "gpt2-xl": DecoderConfig(layers=48, d_model=1600, heads=25),
    "llama3.2-1b": replace(LLAMA3, layers=16, d_model=2048, heads=32, kv_heads=8, d_ff=8192, rope_factor=32.0),
    "llama3.1-8b": replace(LLAMA31, layers=32, d_model=4096, heads=32, kv_heads=8, d_ff=14336),
    "smollm2-135m": replace(SMOLLM2, layers=30, d_model=576, heads=9, kv_heads=3, d_ff=1536),
    "smollm2-360m": replace(SMOLLM2, layers=32, d_model=960, heads=15, kv_heads=5, d_ff=2560),
    "smollm2-1.7b": replace(SMOLLM2, layers=24, d_model=2048, heads=32, d_ff=8192, rope_theta=1.3e5),
    "qwen2.5-0.5b": replace(QWEN, layers=24, d_model=896, heads=14, kv_heads=2, d_ff=4864, qkv_bias=True),
    "qwen3-0.6b": replace(QWEN3, layers=28, d_model=1024, heads=16, kv_heads=8, d_ff=3072),
    "mistral-7b": replace(MISTRAL, layers=32, d_model=4096, heads=32, kv_heads=8, d_ff=14336),
    "gpt-nano": DecoderConfig(vocab_size=256, context=64, layers=4, d_model=128, heads=4, loop="unroll"),
    "gpt-mini": DecoderConfig(vocab_size=256, context=256, layers=6, d_model=384, heads=6, loop="unroll"),
    "gpt-modern": MODERN,
    "gpt-modern-l": replace(MODERN, vocab_size=50257, pad_vocab=128, context=1024, layers=12, d_model=768, heads=6),
    "scenes": replace(MODERN, context=256, layers=6, d_model=192, heads=3, grid=(8, 8)),
    # On a CPU, steps that are short win against layers that are wide: measured with `bench.py race`.
    "gpt-modern-s": replace(MODERN, context=128, layers=3, d_ff=384),
    "gpt-modern-xs": replace(MODERN, layers=2, d_ff=256),
}

INPUTS = {"q": 1, "k": 1, "v": 1, "out": 2, "up": 1, "gate": 1, "down": 1}  # first axes that a projection reduces

BATCH = P(("data", "fsdp"), None, None)

SHARDING = (
    (r"(token_embed|head)$", P(("tensor", "fsdp"), None)),
    (r"(position|row|column)_embed$", P(None, "fsdp")),
    (r"blocks/[qkv]$", P(None, "fsdp", "tensor", None)),
    (r"blocks/out$", P(None, "tensor", None, "fsdp")),
    (r"blocks/(up|gate)$", P(None, "fsdp", "tensor")),
    (r"blocks/down$", P(None, "tensor", "fsdp")),
)

# For Muon and LoRA: (path regex, (axes that a matrix reduces over, its output's axes)). Layers are a batch of matrices.
MATRICES = (
    (r"(token_embed|head)$", ((0,), (1,))),  # of LoRA only: Muon takes no tables
    (r"blocks/[qkv]$", ((1,), (2, 3))),
    (r"blocks/out$", ((1, 2), (3,))),
    (r"blocks/(up|gate|down)$", ((1,), (2,))),
)
