"""Runs an example of pytorch/examples from a checkout, on given images, for a given time.

`python torch_peer.py vae|dcgan CHECKOUT IMAGES.npz SECONDS OUT.npz`, by a Python that has torch. Networks, losses and
training loop are the example's; stood in for are torchvision's data and pictures, which it needs a download for.
"""

import contextlib
import sys
import time
import types
from pathlib import Path

import numpy as np
import torch

LOOKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # parts of the time after which the VAE's weights are kept


class TimeUp(Exception):
    """The time is over; raised where the example asks for data."""


class Pictures(torch.utils.data.Dataset):
    """Images float32 [N, 1, H, W]; with `binarise` pixels are drawn at every sight, by their values in [0, 1]."""

    def __init__(self, images: np.ndarray, binarise: bool):
        self.images, self.binarise, self.end = torch.from_numpy(images), binarise, float("inf")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        if time.perf_counter() > self.end:
            raise TimeUp
        return torch.bernoulli(self.images[i]) if self.binarise else self.images[i], 0


def stand_in(data: Pictures) -> None:
    """A torchvision that knows one data set, and writes no pictures."""
    nothing = lambda *args, **options: None
    parts = {
        "datasets": {"MNIST": lambda *args, **options: data},
        "transforms": dict.fromkeys(("Compose", "Resize", "ToTensor", "Normalize"), nothing),
        "utils": {"save_image": nothing},
    }
    sys.modules["torchvision"] = root = types.ModuleType("torchvision")
    for name, content in parts.items():
        sys.modules[f"torchvision.{name}"] = part = types.ModuleType(f"torchvision.{name}")
        vars(part).update(content)
        setattr(root, name, part)


def run(source: str, arguments: list[str]) -> dict:
    """The names that the example's script has defined when its time was up, or at its end."""
    sys.argv, space = ["main.py", *arguments], {"__name__": "example"}
    with contextlib.suppress(TimeUp):
        exec(compile(source, "main.py", "exec"), space)
    return space


def vae(folder: Path, images: np.ndarray, seconds: float) -> dict[str, np.ndarray]:
    """Its weights after each of LOOKS of the time, and what the last ones give for four images, as a check."""
    pixels = images[0].size
    data = Pictures(images, binarise=True)
    stand_in(data)
    space = run((folder / "vae" / "main.py").read_text().replace("784", str(pixels)), [])
    found, begun, epoch = {}, time.perf_counter(), 0
    for i, look in enumerate(LOOKS):
        data.end = begun + look * seconds
        try:
            while True:
                epoch += 1
                space["train"](epoch)
        except TimeUp:
            found |= {f"{i}/{name}": x.numpy().copy() for name, x in space["model"].state_dict().items()}
    found["looks"] = np.array(LOOKS) * seconds
    with torch.no_grad():
        mean, log_var = space["model"].encode(torch.from_numpy(images[:4].reshape(4, -1)))
        found |= {"mean": mean.numpy(), "log_var": log_var.numpy()}
        found["decoded"] = space["model"].decode(torch.ones(4, 20)).numpy()
    return found


def dcgan(folder: Path, images: np.ndarray, seconds: float) -> dict[str, np.ndarray]:
    """2,000 of its samples, uint8 [N, H, W, C], made as it makes its own pictures: in batches, in training mode."""
    data = Pictures(2 * images - 1, binarise=False)
    stand_in(data)
    torch.save = lambda *args, **options: None  # it keeps both networks after each epoch
    data.end = time.perf_counter() + seconds
    space = run(
        (folder / "dcgan" / "main.py").read_text(),
        ["--dataset=mnist", "--dataroot=.", "--workers=0", "--manualSeed=1", "--niter=1000000", "--outf=."],
    )
    with torch.no_grad():
        samples = [space["netG"](torch.randn(100, 100, 1, 1)).numpy() for _ in range(20)]
    pixels = np.clip(np.concatenate(samples).transpose(0, 2, 3, 1) * 127.5 + 127.5, 0, 255)
    return {"samples": pixels.round().astype(np.uint8)}


if __name__ == "__main__":
    kind, checkout, given, limit, out = sys.argv[1:]
    np.savez(out, **{"vae": vae, "dcgan": dcgan}[kind](Path(checkout), np.load(given)["images"], float(limit)))
