"""Attention over a whole sequence or a cache: one mask, three implementations, the same numbers.

Shape letters as in decoder.py: b batch, t query time, s key time, h heads, g key/value heads (h is a multiple),
k head size. Heads come before time: on CPU that is faster.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from zoo.errors import ZooError
from zoo.models.layers import ATTENDED, dividing, dropout

Implementation = Literal["auto", "xla", "splash", "cudnn"]
SPLASH_LANES = 128  # the kernel's blocks are multiples of this
SPLASH_BLOCK = 512
SPLASH_WIDE = 1024  # tokens up to which one kernel goes backward, of all keys at once: its sums over blocks are dear
CUDNN_TOKENS = 2  # a multiple of this is what cuDNN takes
BLOCK = 256  # queries that are taken at once, so that keys which none of them may see cost nothing
LONG = 256  # tokens from which on a kernel is faster than scores that are kept


class Seen(NamedTuple):
    """What decides which key a query sees: those not after it, not too long ago, of its own document."""

    query: jax.Array
    """Positions of the queries, int32 [B or 1, T]."""
    key: jax.Array
    """Positions of the keys, int32 [B or 1, S]; negative where there is none."""
    window: int = 0
    """Keys that a query sees, itself included; 0 is all."""
    query_documents: jax.Array | None = None
    """Document of each query, int32 [B, T]."""
    key_documents: jax.Array | None = None
    """Document of each key, int32 [B, S]."""
    given: jax.Array | None = None
    """Tokens, bool [B, T] with T = S, that see one another whatever their order."""

    def mask(self) -> jax.Array:
        """True where a query sees a key: bool [B or 1, T, S]."""
        query, key = self.query[:, :, None], self.key[:, None, :]
        seen = (key <= query) & (key >= 0)
        if self.given is not None:
            seen |= self.given[:, :, None] & self.given[:, None, :]
        if self.window:
            seen &= query - key < self.window
        if self.query_documents is not None and self.key_documents is not None:
            seen &= self.query_documents[:, :, None] == self.key_documents[:, None, :]
        return seen


class Cache(NamedTuple):
    """Keys and values of what has been read, for one layer after the other.

    Row b of a batch is padded on its left by `start_b[b]` tokens, so that all rows end together. Token i of a row
    lies in slot i modulo the number of slots: with a sliding window old tokens are written over.
    """

    k: tuple[jax.Array, ...]
    """[B, G, K, S] for each layer: a CPU multiplies queries with such keys in half the time."""
    v: tuple[jax.Array, ...]
    """[B, G, S, K] for each layer."""
    start_b: jax.Array
    """First token of each row that is not padding, int32 [B]."""
    length: jax.Array
    """Tokens read so far, padding included, int32 []."""
    cells_b: jax.Array
    """Codes of a picture that each row ends with, int32 [B]."""


def attend(
    q_bhtk: jax.Array,
    k_bgsk: jax.Array,
    v_bgsk: jax.Array,
    mask_bts: jax.Array,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    scale: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Scaled dot-product attention where the mask, bool [B or 1, T, S], is true; the softmax is float32.

    The scale is 1 / sqrt(K) if not given. Query head h reads key/value head h // (H / G). Returns the mixed values
    [B, H, T, K] and the weights, float32 [B, H, T, S].
    """
    b, h, t, k = q_bhtk.shape
    g, s = k_bgsk.shape[1:3]
    # The query heads of one key/value head are so many more rows of one matrix product.
    q_bgtk = (q_bhtk * (k**-0.5 if scale is None else scale)).reshape(b, g, h // g * t, k)
    scores_bgts = jnp.einsum("bgtk,bgsk->bgts", q_bgtk, k_bgsk, preferred_element_type=jnp.float32)
    mask_bts = jnp.tile(mask_bts, (1, h // g, 1))
    scores_bgts = jnp.where(mask_bts[:, None], scores_bgts, jnp.finfo(jnp.float32).min)
    highest = jax.lax.stop_gradient(jnp.max(scores_bgts, axis=-1, keepdims=True))
    e_bgts = jnp.exp(scores_bgts - highest)
    total = jnp.sum(e_bgts, axis=-1, keepdims=True)
    dropped_bgts = dropout(e_bgts.astype(v_bgsk.dtype), dropout_rate, key)
    # Dividing here and not before is one pass less over the scores.
    o_bgtk = jnp.einsum("bgts,bgsk->bgtk", dropped_bgts, v_bgsk, preferred_element_type=jnp.float32) / total
    return o_bgtk.reshape(b, h, t, k).astype(v_bgsk.dtype), (e_bgts / total).reshape(b, h, t, s)


def attend_causally(
    q_bhtk: jax.Array,
    k_bgsk: jax.Array,
    v_bgsk: jax.Array,
    seen: Seen,
    implementation: Implementation,
    scale: float | None = None,
) -> jax.Array:
    """The values of `attend` for self-attention in which no query sees a later key, by one of the implementations.

    Raises ZooError for a kernel that cannot run here.
    """
    length = q_bhtk.shape[2]
    if implementation == "auto":
        kernel: Implementation = "splash" if jax.default_backend() == "tpu" else "cudnn"
        implementation = "xla" if length < LONG or obstacle(kernel, q_bhtk) else kernel
    elif why := obstacle(implementation, q_bhtk):
        raise ZooError(f"attention {implementation} {why}; auto takes it where it can run, and xla runs anywhere")
    if implementation == "splash":
        return splash(q_bhtk, k_bgsk, v_bgsk, seen.window, seen.query_documents, scale)
    if implementation == "cudnn":
        return cudnn(q_bhtk, k_bgsk, v_bgsk, seen.window, seen.query_documents, scale)
    mask_bts, ends = seen.mask(), [*range(BLOCK, length, BLOCK), length]
    parts = [
        attend(q_bhtk[:, :, i:j], k_bgsk[:, :, :j], v_bgsk[:, :, :j], mask_bts[:, i:j, :j], scale=scale)[0]
        for i, j in zip([0, *ends], ends, strict=False)
    ]
    return jnp.concatenate(parts, axis=2)


def obstacle(implementation: Implementation, q_bhtk: jax.Array) -> str:
    """What keeps an implementation from such queries on this machine; empty if nothing does."""
    if implementation == "splash":
        return "" if jax.default_backend() == "tpu" else "needs a TPU"
    if implementation != "cudnn":
        return ""
    capability = str(getattr(jax.devices()[0], "compute_capability", "")) if jax.default_backend() == "gpu" else ""
    if not re.fullmatch(r"\d+\.\d+", capability) or float(capability) < 8:
        return "needs an NVIDIA GPU of compute capability 8.0 (Ampere) or later"
    if q_bhtk.dtype not in (jnp.bfloat16, jnp.float16):
        return f"takes bfloat16 or float16, not {q_bhtk.dtype}"
    size = q_bhtk.shape[3]
    return f"takes heads of a multiple of 8 up to 128, not {size}" if size % 8 or size > 128 else ""


def splash(
    q_bhtk: jax.Array,
    k_bgsk: jax.Array,
    v_bgsk: jax.Array,
    window: int = 0,
    documents_bt: jax.Array | None = None,
    scale: float | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Causal self-attention by the Pallas kernel that comes with jax: TPU, or any platform with `interpret`."""
    q_bhtk *= jnp.asarray(q_bhtk.shape[-1] ** -0.5 if scale is None else scale, q_bhtk.dtype)

    def local(q: jax.Array, k: jax.Array, v: jax.Array, *documents: jax.Array) -> jax.Array:
        from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

        kernel = _splash_kernel(*q.shape[1:], window, interpret)
        return jax.vmap(lambda q, k, v, *ids: kernel(q, k, v, *(SegmentIds(x, x) for x in ids)))(q, k, v, *documents)

    return _by_device(local, q_bhtk, k_bgsk, v_bgsk, documents_bt, SPLASH_LANES).astype(v_bgsk.dtype)


def cudnn(
    q_bhtk: jax.Array,
    k_bgsk: jax.Array,
    v_bgsk: jax.Array,
    window: int = 0,
    documents_bt: jax.Array | None = None,
    scale: float | None = None,
    implementation: Any = "cudnn",
) -> jax.Array:
    """Causal self-attention by `jax.nn.dot_product_attention`: NVIDIA GPUs, in bfloat16 or float16.

    `implementation` "xla" computes the same on any platform.
    """

    def local(q: jax.Array, k: jax.Array, v: jax.Array, *documents: jax.Array) -> jax.Array:
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
        o_bthk = jax.nn.dot_product_attention(
            q,
            k,
            v,
            mask=documents[0][:, None, :, None] == documents[0][:, None, None, :] if documents else None,
            is_causal=True,
            scale=scale,
            local_window_size=(window - 1, 0) if window else None,
            implementation=implementation,
        )
        return o_bthk.swapaxes(1, 2)

    return _by_device(local, q_bhtk, k_bgsk, v_bgsk, documents_bt, CUDNN_TOKENS)


def _by_device(
    kernel: Callable[..., jax.Array],
    q_bhtk: jax.Array,
    k_bgsk: jax.Array,
    v_bgsk: jax.Array,
    documents_bt: jax.Array | None,
    multiple: int,
) -> jax.Array:
    """`kernel(q, k, v, documents if there are any)` of a multiple of tokens, on a mesh of a device's rows and heads."""
    t = q_bhtk.shape[2]
    pad = -t % multiple
    # Keys of the padding come after every query, so a causal mask never shows them.
    arrays = [jnp.pad(x, ((0, 0), (0, 0), (0, pad), (0, 0))) for x in (q_bhtk, k_bgsk, v_bgsk)]
    if documents_bt is not None:
        arrays.append(jnp.pad(documents_bt, ((0, 0), (0, pad)), constant_values=-1))
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        rows = dividing(("data", "fsdp"), q_bhtk.shape[0], mesh)
        heads = dividing("tensor", k_bgsk.shape[1], mesh)
        spec = P(rows, heads, None, None)
        # A kernel does not say over which axes its result varies.
        specs = (spec, spec, spec, P(rows, None))[: len(arrays)]
        kernel = jax.shard_map(kernel, in_specs=specs, out_specs=spec, check_vma=False)
    return kernel(*arrays)[:, :, :t]


@functools.lru_cache(maxsize=32)
def _splash_kernel(heads: int, t: int, k: int, window: int, interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention as lib

    block = math.gcd(t, SPLASH_BLOCK)
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv_compute")
    blocks: dict[str, Any] = dict.fromkeys(names, block)
    if t <= SPLASH_WIDE:
        blocks |= {"block_kv_dkv": t, "use_fused_bwd_kernel": True}
    else:
        blocks |= {"block_kv_dkv": block, "block_q_dq": block, "block_kv_dq": block}
    # Heads of 64 would leave half of a register's lanes empty, in memory too; times fill them.
    layout = lib.QKVLayout.HEAD_DIM_MINOR if k % SPLASH_LANES == 0 else lib.QKVLayout.SEQ_MINOR
    sizes = lib.BlockSizes(**blocks, q_layout=layout, k_layout=layout, v_layout=layout)
    mask = lib.LocalMask((t, t), (window - 1, 0), 0) if window else lib.CausalMask((t, t))
    with jax.ensure_compile_time_eval():  # the kernel keeps its tables: they must not belong to one trace
        kernel = lib.make_splash_mha(
            lib.MultiHeadMask([mask] * heads),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name=ATTENDED,
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, kernel)
