"""Writes qwen3_tiny.safetensors: a random Qwen3 of the transformers library and its logits.

It has what GPT-2 has not: rotary positions, RMSNorm, QK-norm, SwiGLU, shared key/value heads, a head size of its
own, no biases, and a separate head. Run with torch and transformers: python tests/golden/make_qwen3.py
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

torch.manual_seed(0)
config = Qwen3Config(
    vocab_size=64,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=16,
    rms_norm_eps=1e-6,
    rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
    tie_word_embeddings=False,
)
model = Qwen3ForCausalLM(config).eval()
with torch.no_grad():  # away from the ones of a new model's norms
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
tokens = torch.randint(config.vocab_size, (2, 16))
with torch.no_grad():
    logits = model(tokens).logits

tensors = {f"weights/{name}": parameter.detach() for name, parameter in model.named_parameters()}
save_file(tensors | {"tokens": tokens.int(), "logits": logits}, Path(__file__).with_name("qwen3_tiny.safetensors"))
