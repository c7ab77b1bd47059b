"""How good the image generators are after minutes on a CPU, beside PyTorch's own examples given the same time."""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks.common import lines_of, table
from PIL import Image

import zoo
from zoo.data import ImageConfig, load_images
from zoo.errors import ZooError
from zoo.generate.latents import sample_pictures
from zoo.metrics.judge import Judge
from zoo.objectives import variational as vi
from zoo.train.launch import start_jax
from zoo.weights.classifier import Classifier

DEBIAN = "/usr/share/datasets/fashion-mnist"
Part = Literal["vae-digits", "vae-fashion", "gan", "tokenizer"]


@dataclass(frozen=True)
class Quality:
    """Trains a recipe, then the example for as many seconds, and judges both by the same functions."""

    parts: tuple[Part, ...] = ("vae-digits", "vae-fashion", "gan", "tokenizer")
    """What to train."""
    fashion: Path = Path(DEBIAN)
    """Folder of Fashion-MNIST's IDX files (Debian: dataset-fashion-mnist)."""
    examples: Path | None = None
    """A checkout of pytorch/examples to run in the same session."""
    python: str = sys.executable
    """The Python that has its torch."""
    runs: Path | None = None
    """Folder to keep our runs in; a run that is there already is continued, or taken as it is when it is finished."""
    steps: int | None = None
    """Steps of each recipe, in place of its own."""
    images: int = 2000
    """Held-out images that likelihoods are estimated on."""

    def main(self) -> None:
        start_jax()
        with tempfile.TemporaryDirectory() as temporary:
            folder = self.runs or Path(temporary)
            for part in self.parts:
                if part == "gan":
                    self.gan(folder / part)
                elif part == "tokenizer":
                    self.tokenizer(folder / part)
                else:
                    self.vae(part.removeprefix("vae-"), folder / part)

    def vae(self, preset: str, folder: Path) -> None:
        """Held-out nats of binarised images by 500 importance samples."""
        source = {"digits": "digits", "fashion": f"idx:{self.fashion}"}[preset]
        seconds = self.trained("vae.py", folder, preset, "--data", source, "--iwae", "1")["seconds"]["total"]
        train, test = load_images(ImageConfig(source))
        images = test[np.arange(min(self.images, len(test)))]["image"]
        rows = [["zoo", f"{seconds:.0f}", f"{held_out_nats(zoo.load(folder / 'model'), images):.3f}"]]
        if self.examples:
            found = self.peer("vae", train[np.arange(len(train))]["image"], seconds)
            for i, look in enumerate(found["looks"]):
                model = Example({k.removeprefix(f"{i}/"): v for k, v in found.items() if k.startswith(f"{i}/")})
                rows.append(["pytorch/examples", f"{look:.0f}", f"{held_out_nats(model, images):.3f}"])
            check(model, found, train[np.arange(4)]["image"])
        table(f"VAE, {preset}, {len(images)} held-out images", ["", "seconds", "IWAE-500, nats"], rows)

    def gan(self, folder: Path) -> None:
        """Fréchet distance of 2,000 samples on the features of digits-cnn, and how many are of each class."""
        seconds = self.trained("gan.py", folder)["seconds"]["total"]
        train, _ = load_images(ImageConfig("digits", size=16))
        real, network = train[np.arange(len(train))]["image"], Classifier("digits-cnn")
        judge = Judge(network.name, network, real)

        def judged(images: np.ndarray) -> list[str]:
            counts = np.bincount(network(images)[1].argmax(-1), minlength=10) / len(images)
            return [f"{judge(images)[f'FD {judge.name}']:.2f}", f"{counts.min():.1%} to {counts.max():.1%}"]

        samples = sample_pictures(zoo.load(folder / "model"), 2000)
        rows = [["half the digits and the rest", "", f"{judge.floor:.2f}", ""]]
        rows.append(["zoo", f"{seconds:.0f}", *judged(samples)])
        if self.examples:
            large = resized(real, 64, Image.Resampling.BILINEAR)
            rows.append(["digits made large and small", "", *judged(resized(large, 16, Image.Resampling.BOX))])
            found = self.peer("dcgan", large, seconds)["samples"]
            rows.append(["pytorch/examples", f"{seconds:.0f}", *judged(resized(found, 16, Image.Resampling.BOX))])
        table("GAN, digits", ["", "seconds", f"FD {judge.name}", "least and most of a class"], rows)

    def tokenizer(self, folder: Path) -> None:
        """Decibels between held-out images and what their tokens become, and how many codes they use."""
        result = self.trained("tokenizer.py", folder, "fashion", "--data", f"idx:{self.fashion}")
        names = {"eval_psnr": "PSNR, dB", "eval_used": "codes used", "eval_perplexity": "perplexity"}
        found = [f"{result['seconds']['total']:.0f}", *(f"{result['metrics'][name]:.3f}" for name in names)]
        table("Tokenizer, fashion", ["", "seconds", *names.values()], [["zoo", *found]])

    def trained(self, script: str, folder: Path, *arguments: str) -> dict:
        """The result.json of a recipe that was run to its end."""
        steps = ["--steps", str(self.steps)] if self.steps else []
        for line in lines_of(script, [*arguments, *steps, "--run", str(folder)], folder.parent / "compiled"):
            if re.match(r"step \d+: |error", line):
                print(f"{script}: {line}", end="", flush=True)
        if not (folder / "result.json").exists():
            raise ZooError(f"{script} did not end; what it says: python experiments/{script} --run {folder}")
        return json.loads((folder / "result.json").read_text())

    def peer(self, example: str, images: np.ndarray, seconds: float) -> dict[str, np.ndarray]:
        """What torch_peer.py keeps of an example that learns from images uint8 [N, H, W, 1]."""
        script = Path(__file__).parent / "torch_peer.py"
        with tempfile.TemporaryDirectory() as folder:
            given, out = Path(folder, "given.npz"), Path(folder, "out.npz")
            np.savez(given, images=np.moveaxis(images, -1, 1).astype(np.float32) / 255)
            command = [self.python, script, example, self.examples.resolve(), given, str(seconds), out]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            return dict(np.load(out))


class Example:
    """The VAE of pytorch/examples with given weights, as `importance_bound` calls a model."""

    config = SimpleNamespace(likelihood="bernoulli", latents=20)

    def __init__(self, weights: dict[str, np.ndarray]):
        self.weights = weights

    def linear(self, name: str, x: jax.Array) -> jax.Array:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"][None]

    def encode(self, x_bhwc: jax.Array, label_b: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        h = jax.nn.relu(self.linear("fc1", x_bhwc.reshape(len(x_bhwc), -1)))
        return self.linear("fc21", h), self.linear("fc22", h)

    def decode(self, z_bd: jax.Array, label_b: jax.Array | None = None) -> jax.Array:
        logits = self.linear("fc4", jax.nn.relu(self.linear("fc3", z_bd)))
        size = round(logits.shape[-1] ** 0.5)
        return logits.reshape(-1, size, size, 1)


def check(model: Example, found: dict[str, np.ndarray], images: np.ndarray) -> None:
    """That `Example` computes what torch's own modules do."""
    with jax.default_matmul_precision("highest"):
        mean, log_var = model.encode(images.astype(np.float32) / 255)
        decoded = jax.nn.sigmoid(model.decode(jnp.ones((4, 20)))).reshape(4, -1)
    for name, ours in {"mean": mean, "log_var": log_var, "decoded": decoded}.items():
        np.testing.assert_allclose(ours, found[name], atol=1e-4, err_msg=name)


def held_out_nats(model: Any, images: np.ndarray) -> float:
    """-log p(x) a held-out image uint8 by 500 importance samples, the mean, binarised just as vae.py does."""
    bound = jax.jit(lambda *inputs: vi.importance_bound(model, inputs[0], None, inputs[1], 500))
    total = 0.0
    for batch in np.array_split(images, max(1, len(images) // 100)):
        image = vi.binarise(jax.random.key(0), batch.astype(np.float32) / 255, batch)
        total -= float(bound(image, vi.content_keys(jax.random.key(1), batch)).sum())
    return total / len(images)


def resized(images: np.ndarray, size: int, how: Image.Resampling) -> np.ndarray:
    """Gray images uint8 [N, H, W, 1] at another size."""
    return np.stack([np.asarray(Image.fromarray(x[..., 0]).resize((size, size), how))[..., None] for x in images])
