"""Writes torchvision_logits.safetensors: logits of small torchvision ResNets of both kinds of block.

Run with torch and torchvision: python tests/golden/make_torchvision.py
"""

from pathlib import Path

import torch
from formula import weight
from safetensors.torch import save_file
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

torch.manual_seed(0)
x = torch.randn(2, 3, 61, 64)  # odd and even, so that padding on the wrong side shows
tensors = {"x": x.permute(0, 2, 3, 1).contiguous()}
for name, block in (("basic", BasicBlock), ("bottleneck", Bottleneck)):
    model = ResNet(block, [2, 1, 1, 1], num_classes=10).eval()
    state = model.state_dict()
    filled = {key: torch.from_numpy(weight(key, tuple(t.shape))) for key, t in state.items() if t.is_floating_point()}
    model.load_state_dict(state | filled)
    with torch.no_grad():
        tensors[f"{name}_logits"] = model(x)
save_file(tensors, Path(__file__).with_name("torchvision_logits.safetensors"))
