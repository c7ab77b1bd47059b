"""Writes torch_zip.pt and torch_legacy.pt: the same checkpoint in both containers of torch.save.

Run with torch: python tests/golden/make_torch_file.py
"""

from collections import OrderedDict
from pathlib import Path

import torch

base = torch.arange(24.0).reshape(4, 6)
state = OrderedDict(
    transposed=base.t(),
    window=base[1:3, ::2],
    half=torch.tensor([1.5, -2.0], dtype=torch.float16),
    bfloat=torch.tensor([1.0, -2.5], dtype=torch.bfloat16),
    double=torch.tensor([0.1], dtype=torch.float64),
    scalar=torch.tensor(-7),
    byte=torch.tensor([[1], [255]], dtype=torch.uint8),
    flags=torch.tensor([True, False]),
    empty=torch.zeros(0, 3),
    parameter=torch.nn.Parameter(torch.tensor([3.0])),
)
content = {"net": state, "moments": [{0: torch.ones(1)}], "epoch": 3, "lr": 0.1, "names": ("x", None, True)}
folder = Path(__file__).parent
torch.save(content, folder / "torch_zip.pt")
torch.save(content, folder / "torch_legacy.pt", _use_new_zipfile_serialization=False)
