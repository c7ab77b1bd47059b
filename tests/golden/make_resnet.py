"""Writes resnet20_logits.safetensors: logits of the CIFAR-10 ResNet-20 weights in plain torch functions.

Run with torch: python tests/golden/make_resnet.py PATH/resnet20-12fca82f.th
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

weights = torch.load(sys.argv[1], map_location="cpu", weights_only=True)["state_dict"]
weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}


def norm(x, name):
    return F.batch_norm(x, *(weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))


def block(x, name, stride):
    y = F.relu(norm(F.conv2d(x, weights[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1"))
    y = norm(F.conv2d(y, weights[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
    if stride == 2:  # option A: every second pixel, and as many zero channels before as after
        x = x[:, :, ::2, ::2]
        zeros = torch.zeros_like(x[:, : x.shape[1] // 2])
        x = torch.cat([zeros, x, zeros], dim=1)
    return F.relu(x + y)


torch.manual_seed(0)
images = torch.randint(256, (4, 32, 32, 3), dtype=torch.uint8)
images[1] = images[1] // 4  # dark, bright and smooth ones as well as noise
images[2] = 255 - images[2] // 8
images[3] = torch.linspace(0, 255, 32)[:, None, None].expand(32, 32, 3).byte()
mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
x = ((images / 255 - mean) / std).permute(0, 3, 1, 2)
x = F.relu(norm(F.conv2d(x, weights["conv1.weight"], padding=1), "bn1"))
for stage in (1, 2, 3):
    for index in range(3):
        x = block(x, f"layer{stage}.{index}", stride=2 if stage > 1 and index == 0 else 1)
logits = F.linear(x.mean((2, 3)), weights["linear.weight"], weights["linear.bias"])
save_file({"images": images, "logits": logits}, Path(__file__).with_name("resnet20_logits.safetensors"))
