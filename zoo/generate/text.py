"""Text from a decoder: the next token, again and again, on the device."""

import textwrap
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def sample_tokens(
    logits_of: Callable[[jax.Array], jax.Array],
    prompt_bt: jax.Array,
    length: int,
    context: int,
    key: jax.Array,
    temperature: float = 1.0,
    top_k: int = 0,
) -> jax.Array:
    """Continues prompts of one length: int32 [B, prompt] to int32 [B, prompt + length]. To be traced.

    `logits_of` maps tokens [B, T <= context] to logits [B, T, V]. At each step it sees the last `context`
    tokens. Temperature 0 takes the likeliest token; `top_k` keeps the k likeliest.
    """
    batch, start = prompt_bt.shape
    total = start + length
    window = min(total, context)
    tokens_bt = jnp.zeros((batch, total), jnp.int32).at[:, :start].set(prompt_bt)

    def step(position: jax.Array, tokens_bt: jax.Array) -> jax.Array:
        # What lies after `position` is not yet written, and a causal model does not look at it.
        first = jnp.maximum(0, position - window)
        seen = jax.lax.dynamic_slice_in_dim(tokens_bt, first, window, axis=1)
        logits_bv = jax.lax.dynamic_index_in_dim(logits_of(seen), position - 1 - first, axis=1, keepdims=False)
        if temperature == 0:
            chosen = jnp.argmax(logits_bv, axis=-1)
        else:
            if top_k:
                worst = jax.lax.top_k(logits_bv, top_k)[0][:, -1:]
                logits_bv = jnp.where(logits_bv < worst, -jnp.inf, logits_bv)
            chosen = jax.random.categorical(jax.random.fold_in(key, position), logits_bv / temperature)
        return jax.lax.dynamic_update_index_in_dim(tokens_bt, chosen.astype(jnp.int32), position, axis=1)

    return jax.lax.fori_loop(start, total, step, tokens_bt)


def text_picture(title: str, texts: list[str], columns: int = 96) -> np.ndarray:
    """Texts as a picture, one block each below a title: uint8 [H, W, 3]."""
    from matplotlib.font_manager import findfont
    from PIL import Image, ImageDraw, ImageFont

    lines: list[str] = []
    for text in texts:
        for line in text.splitlines():
            lines += textwrap.wrap(line, columns, drop_whitespace=False) or [""]
        lines.append("")
    font = ImageFont.truetype(findfont("DejaVu Sans Mono"), 13)
    bold = ImageFont.truetype(findfont("DejaVu Sans Mono:bold"), 13)
    across, down = int(font.getlength("m") * columns) + 24, 18
    image = Image.new("RGB", (across, down * (len(lines) + 1) + 16), "white")
    draw = ImageDraw.Draw(image)
    draw.text((12, 8), title, fill=(30, 80, 160), font=bold)
    for row, line in enumerate(lines, start=1):
        draw.text((12, 8 + row * down), line.replace("\t", "    "), fill=(20, 20, 20), font=font)
    return np.asarray(image)
