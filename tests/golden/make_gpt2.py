"""Writes gpt2_tiny.safetensors: a random GPT-2 of the transformers library, its logits, loss and gradient norms.

Run with torch and transformers installed: python tests/golden/make_gpt2.py
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
config = GPT2Config(vocab_size=64, n_positions=16, n_embd=24, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
model = GPT2LMHeadModel(config).eval()
with torch.no_grad():  # away from the ones and zeros of a new model, which would hide a bias or a scale
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))

tokens = torch.randint(config.vocab_size, (2, config.n_positions + 1))
logits = model(tokens[:, :-1]).logits
loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
loss.backward()

tensors = {f"weights/{name}": parameter.detach() for name, parameter in model.named_parameters()}
tensors |= {f"grad_norms/{name}": parameter.grad.norm() for name, parameter in model.named_parameters()}
tensors |= {"tokens": tokens.int(), "logits": logits.detach(), "loss": loss.detach()}
save_file(tensors, Path(__file__).with_name("gpt2_tiny.safetensors"))
