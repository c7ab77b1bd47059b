"""What the scene model gets exactly right, and how well it mends pictures beside classical methods."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from benchmarks.common import table

from zoo.data.damage import Hole, Noise, damaged
from zoo.data.draw import Draw
from zoo.data.drawing import draw_scene
from zoo.data.oracle import read_scenes
from zoo.data.scenes import scene
from zoo.data.sentences import KINDS
from zoo.generate.scene_exam import EXAM, examine, questions_of
from zoo.generate.scenes import GUIDANCE, TEMPERATURE
from zoo.scenes import RANK, scene_model
from zoo.train.launch import start_jax

SIGMA = 25  # of 255
NOISES = (SIGMA, 50, 100)


@dataclass(frozen=True)
class Scenes:
    """Held-out scenes: `test` has new scenes, `compositional` pairs of colour and shape that no training scene has."""

    model: str = "scenes"
    """Run folder of scenes.py, or the name of one that comes with the package."""
    count: int = 400
    """Scenes of each kind."""
    guidance: float = GUIDANCE
    """Of drawing: how much more than usual the caption counts."""
    temperature: float = TEMPERATURE
    """Of drawing."""
    rank: int = RANK
    """Drawings of each that is judged: the one of which the model finds the caption likeliest."""
    readings: int = RANK
    """Descriptions that are tried of each picture: the one from which the model finds it the likeliest drawn."""
    seed: int = 0
    """Fixes the drawings, the descriptions that are tried, and the damage."""

    def main(self) -> None:
        start_jax()
        model = scene_model(self.model)
        drawing = {"guidance": self.guidance, "temperature": self.temperature, "rank": self.rank}
        rows = []
        for split in ("test", "compositional"):
            for things in (1, 2):
                asked = questions_of(split, things, self.count)
                found = examine(model, asked, self.seed, self.readings, **drawing)
                rows.append([split, str(things), *(f"{score:.1%}" for score in vars(found).values())])
        heads = ["things", "draw", "describe", "answer", "answer from words", "draw, describe, answer"]
        table(f"scenes, {self.count} of each kind, exactly right", ["", *heads], rows)
        self.kinds(model)
        self.oracle()
        self.mend(model)
        text = ["a blue circle with some spots"]
        picture = model.draw(text, **drawing)[0]
        took = seconds_of(lambda i: model.draw(text, seed=i, **drawing))
        print(f"a drawing of {model.size}×{model.size}: {took:.2f} s")
        print(f"a description: {seconds_of(lambda i: model.describe(picture, self.readings, i)):.2f} s")

    def kinds(self, model) -> None:
        """Answers about pictures of one to four things, by kind of question."""
        asked = [each for things in (1, 2, 3, 4) for each in questions_of("test", things, self.count)]
        images = np.stack([draw_scene(each.scene, model.size) for each in asked])
        found = model.answer([each.turn[0] for each in asked], images=images)
        right = {kind: [a == e.turn[1] for a, e in zip(found, asked, strict=True) if e.kind == kind] for kind in KINDS}
        rows = [[kind, str(len(each)), f"{np.mean(each):.1%}"] for kind, each in right.items() if each]
        rows.append(["all", str(len(asked)), f"{np.mean([good for each in right.values() for good in each]):.1%}"])
        table("answers about pictures of 1 to 4 things", ["kind", "asked", "right"], rows)

    def oracle(self) -> None:
        """Scenes of one to four things that the judge of drawings reads exactly, as rendered and under noise."""
        scenes = [scene("test", EXAM + i) for i in range(self.count)]
        rows = []
        for size in (32, 64):
            images = np.stack([draw_scene(each, size) for each in scenes])
            noisy = [np.stack([damaged(x, Noise(s, self.seed + i)) for i, x in enumerate(images)]) for s in NOISES]
            read = [[found for found, _ in read_scenes(each)] for each in (images, *noisy)]
            shares = [np.mean([a == b for a, b in zip(found, scenes, strict=True)]) for found in read]
            rows.append([f"{size}×{size}", *(f"{share:.1%}" for share in shares)])
        heads = ["clean", *(f"noise of {sigma}/255" for sigma in NOISES)]
        table(f"the oracle, {self.count} scenes of 1 to 4 things, exactly read", ["", *heads], rows)

    def mend(self, model) -> None:
        """Decibels of holes filled and of noise taken away, beside scikit-image."""
        from skimage.restoration import denoise_nl_means, inpaint_biharmonic

        asked = [each for things in (1, 2) for each in questions_of("test", things, self.count // 4)]
        images = np.stack([draw_scene(each.scene, model.size) for each in asked])
        lost = [hole(Draw(EXAM, self.seed, i)) for i in range(len(asked))]
        holes = np.stack([each.mask(model.size) for each in lost])
        pierced = np.stack([damaged(x, each) for x, each in zip(images, lost, strict=True)])
        smooth = np.stack(
            [inpaint_biharmonic(x / 255, mask, channel_axis=-1) for x, mask in zip(pierced, holes, strict=True)]
        )
        noisy = np.stack([damaged(x, Noise(SIGMA, self.seed + i)) for i, x in enumerate(images)])
        plain = {"h": 0.8 * SIGMA / 255, "sigma": SIGMA / 255, "fast_mode": False, "patch_size": 5, "patch_distance": 6}
        averaged = np.stack([denoise_nl_means(x / 255, channel_axis=-1, **plain) for x in noisy])
        rows = []
        for name, theirs, ours, where in (
            ("a hole of a quarter, in the hole", smooth, model.clean(pierced, holes), holes),
            (f"noise of {SIGMA}/255", averaged, model.clean(noisy), np.ones_like(holes)),
        ):
            decibels = [psnr_within(found, images / 255, where) for found in (ours / 255, np.clip(theirs, 0, 1))]
            rows.append([name, *(f"{value:.2f}" for value in decibels), f"{decibels[0] - decibels[1]:+.2f}"])
        table(f"mended, {len(images)} scenes, mean dB", ["", "zoo", "biharmonic, non-local means", "gain"], rows)


def seconds_of(call: Callable[[int], Any], times: int = 4) -> float:
    """The mean time of a call, after one that compiles."""
    call(0)
    begun = time.perf_counter()
    for i in range(times):
        call(i)
    return (time.perf_counter() - begun) / times


def hole(draw: Draw) -> Hole:
    """A square of a quarter of the picture somewhere in it."""
    return Hole(draw.below(17), draw.below(17), 16, 16, ellipse=False)


def psnr_within(found: np.ndarray, truth: np.ndarray, where: np.ndarray) -> float:
    """The mean over pictures of the decibels within a mask, of floats in [0, 1]; at most 60 a picture."""
    square = np.square(found - truth).mean(-1)
    error = (square * where).sum((1, 2)) / where.sum((1, 2))
    return float(np.mean(-10 * np.log10(np.maximum(error, 1e-6))))
