"""Writes hf_*.safetensors: tiny random models of the transformers library as it saves them, with tokens and logits.

The text of config.json is in the file's metadata. Run with torch and transformers: python tests/golden/make_hf.py
"""

import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
SIZES = {
    "vocab_size": 45,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MODELS = {
    "gpt2": (
        transformers.GPT2Config(vocab_size=45, n_positions=32, n_embd=24, n_layer=2, n_head=4, n_inner=40),
        transformers.GPT2LMHeadModel,
    ),
    "llama": (
        transformers.LlamaConfig(
            **SIZES,
            tie_word_embeddings=True,
            rms_norm_eps=1e-5,
            rope_parameters=LLAMA3 | {"rope_theta": 500.0, "original_max_position_embeddings": 8},
        ),
        transformers.LlamaForCausalLM,
    ),
    "qwen2": (transformers.Qwen2Config(**SIZES), transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config(**SIZES, head_dim=8), transformers.Qwen3ForCausalLM),
    "mistral": (transformers.MistralConfig(**SIZES, sliding_window=5), transformers.MistralForCausalLM),
}

for name, (config, architecture) in MODELS.items():
    torch.manual_seed(0)
    config.bos_token_id = config.eos_token_id = 0
    model = architecture(config).eval()
    with torch.no_grad():  # away from the ones and zeros of a new model, which would hide a bias or a scale
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        tokens = torch.randint(config.vocab_size, (2, 24))
        logits = model(tokens).logits
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        text = (Path(folder) / "config.json").read_text()
        weights = {f"weights/{key}": x for key, x in load_file(Path(folder) / "model.safetensors").items()}
    path = HERE / f"hf_{name}.safetensors"
    save_file(weights | {"tokens": tokens.int(), "logits": logits}, path, {"config": text})
    print(path.name, path.stat().st_size)
