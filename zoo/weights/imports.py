"""Maps of networks that other libraries wrote, and what reads them into models of the zoo."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np

from zoo.errors import ZooError
from zoo.models import functional
from zoo.models.decoder import DecoderConfig
from zoo.models.functional import Tree
from zoo.weights.registry import abstract
from zoo.weights.rules import CONV, DENSE, Place, Rule, Rules, Source, assign, export, heads, place, plan

__all__ = ["CIFAR_RESNET", "GPT2", "LLAMA", "TORCHVISION_RESNET", "Rule", "assign", "export", "heads"]

FLOATS = tuple(np.dtype(dtype) for dtype in (np.float32, np.float16, ml_dtypes.bfloat16))
PARAM_DTYPES = {dtype.name: dtype for dtype in FLOATS}


def import_resnet(params: Tree, stats: Tree, tensors: Mapping[str, np.ndarray]) -> tuple[Tree, Tree]:
    """(params, stats) of a `ResNet` with the weights of torchvision, or of akamaster's CIFAR-10 networks."""
    tensors = {name.removeprefix("module."): x for name, x in tensors.items()}  # left by nn.DataParallel
    rules = TORCHVISION_RESNET if "fc.weight" in tensors else CIFAR_RESNET
    tree = assign({"params": params, "stats": stats}, tensors, rules, ignore=r"num_batches_tracked$")
    return tree["params"], tree["stats"]


def import_decoder(
    config: DecoderConfig,
    sources: Mapping[str, Source],
    rules: Rules,
    *,
    ignore: str = r"(?!)",
    param_dtype: str = "float32",
    where: Place | None = None,
    tied_head: str | None = None,
) -> Any:
    """A `Decoder` of a config whose weights stream from files to where they lie, a piece at a time.

    `where(path, shape)` gives the sharding of a parameter. Rows of a padded vocabulary are zero. `tied_head` names
    a copy of the embedding that a file may hold for a tied head. Raises ZooError that lists all that does not fit.
    """
    if param_dtype not in PARAM_DTYPES:
        raise ZooError(f"param_dtype {param_dtype!r} is not one of {', '.join(PARAM_DTYPES)}")
    dtype = PARAM_DTYPES[param_dtype]
    sources = dict(sources)
    copy = sources.pop(tied_head, None) if config.tied and tied_head else None
    _, tables, _ = abstract(dataclasses.replace(config, pad_vocab=1))
    parts = plan(functional.flatten({"params": tables}), sources, rules, ignore, FLOATS)
    if copy is not None and not _equal(copy, sources[parts["params/token_embed"][None].source]):
        raise ZooError(f"{tied_head} is not the embedding, and the config says that it is; load it with tied=False")
    graphdef, params, stats = abstract(config)
    shapes = {
        path: jax.ShapeDtypeStruct(leaf.shape, dtype) for path, leaf in functional.flatten({"params": params}).items()
    }
    tree = functional.unflatten(place(parts, sources, shapes, where))
    return functional.merge(graphdef, tree["params"], stats)


def _equal(a: Source, b: Source, rows: int = 1024) -> bool:
    return a.shape == b.shape and all(
        np.array_equal(a.read()[i : i + rows], b.read()[i : i + rows]) for i in range(0, a.shape[0], rows)
    )


def _norm(source: str, target: str) -> Rules:
    return (
        Rule(f"{source}.weight", f"params/{target}/scale"),
        Rule(f"{source}.bias", f"params/{target}/bias"),
        Rule(f"{source}.running_mean", f"stats/{target}/mean"),
        Rule(f"{source}.running_var", f"stats/{target}/var"),
    )


_RESNET = (
    Rule("conv1.weight", "params/conv1/kernel", CONV),
    *_norm("bn1", "bn1"),
    Rule("layer{stage}.{block}.conv{i}.weight", "params/stage{stage}/{block}/conv{i}/kernel", CONV),
    *_norm("layer{stage}.{block}.bn{i}", "stage{stage}/{block}/bn{i}"),
)

CIFAR_RESNET = (  # github.com/akamaster/pytorch_resnet_cifar10
    *_RESNET,
    Rule("linear.weight", "params/classifier/kernel", DENSE),
    Rule("linear.bias", "params/classifier/bias"),
)

TORCHVISION_RESNET = (
    *_RESNET,
    Rule("layer{stage}.{block}.downsample.0.weight", "params/stage{stage}/{block}/shortcut_conv/kernel", CONV),
    *_norm("layer{stage}.{block}.downsample.1", "stage{stage}/{block}/shortcut_bn"),
    Rule("fc.weight", "params/classifier/kernel", DENSE),
    Rule("fc.bias", "params/classifier/bias"),
)

# GPT2LMHeadModel of the transformers library; its projections are [in, out].
_QKV = ("params/blocks/q", "params/blocks/k", "params/blocks/v")
GPT2 = (
    Rule("transformer.wte.weight", "params/token_embed"),
    Rule("transformer.wpe.weight", "params/position_embed"),
    Rule("transformer.h.{layer}.ln_1.weight", "params/blocks/attn_norm_scale"),
    Rule("transformer.h.{layer}.ln_1.bias", "params/blocks/attn_norm_bias"),
    Rule("transformer.h.{layer}.attn.c_attn.weight", _QKV, heads(1, parts=3)),
    Rule("transformer.h.{layer}.attn.c_attn.bias", tuple(f"{path}_bias" for path in _QKV), heads(0, parts=3)),
    Rule("transformer.h.{layer}.attn.c_proj.weight", "params/blocks/out", heads(0)),
    Rule("transformer.h.{layer}.attn.c_proj.bias", "params/blocks/out_bias"),
    Rule("transformer.h.{layer}.ln_2.weight", "params/blocks/mlp_norm_scale"),
    Rule("transformer.h.{layer}.ln_2.bias", "params/blocks/mlp_norm_bias"),
    Rule("transformer.h.{layer}.mlp.c_fc.weight", "params/blocks/up"),
    Rule("transformer.h.{layer}.mlp.c_fc.bias", "params/blocks/up_bias"),
    Rule("transformer.h.{layer}.mlp.c_proj.weight", "params/blocks/down"),
    Rule("transformer.h.{layer}.mlp.c_proj.bias", "params/blocks/down_bias"),
    Rule("transformer.ln_f.weight", "params/final_norm_scale"),
    Rule("transformer.ln_f.bias", "params/final_norm_bias"),
    Rule("lm_head.weight", "params/head"),
)

# LlamaForCausalLM, and those of Mistral, Qwen2 (biases of queries, keys and values) and Qwen3 (their norms).
_LAYER = "model.layers.{layer}"
LLAMA = (
    Rule("model.embed_tokens.weight", "params/token_embed"),
    Rule(f"{_LAYER}.input_layernorm.weight", "params/blocks/attn_norm_scale"),
    *(
        rule
        for name in "qkv"
        for rule in (
            Rule(
                f"model.layers.{{layer}}.self_attn.{name}_proj.weight",
                f"params/blocks/{name}",
                heads(1, transposed=True),
            ),
            Rule(f"model.layers.{{layer}}.self_attn.{name}_proj.bias", f"params/blocks/{name}_bias", heads(0)),
        )
    ),
    Rule(f"{_LAYER}.self_attn.q_norm.weight", "params/blocks/q_norm_scale"),
    Rule(f"{_LAYER}.self_attn.k_norm.weight", "params/blocks/k_norm_scale"),
    Rule(f"{_LAYER}.self_attn.o_proj.weight", "params/blocks/out", heads(0, transposed=True)),
    Rule(f"{_LAYER}.post_attention_layernorm.weight", "params/blocks/mlp_norm_scale"),
    Rule(f"{_LAYER}.mlp.gate_proj.weight", "params/blocks/gate", DENSE),
    Rule(f"{_LAYER}.mlp.up_proj.weight", "params/blocks/up", DENSE),
    Rule(f"{_LAYER}.mlp.down_proj.weight", "params/blocks/down", DENSE),
    Rule("model.norm.weight", "params/final_norm_scale"),
    Rule("lm_head.weight", "params/head"),
)
