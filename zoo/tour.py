"""The whole way from a sentence to a picture and back, in a terminal: drawn, described, asked about, and judged."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.text import Text

import zoo
from zoo.data.draw import Draw
from zoo.data.oracle import read_scene
from zoo.data.scenes import Scene
from zoo.data.sentences import ask, describe, holds, parse, text_of
from zoo.errors import ZooError

QUESTIONS = 4
WIDE = 32  # characters of the picture in the terminal


def tour(text: str, model: str, seed: int, file: Path, console: Console) -> bool:
    """Draws the text to a file, and says of each link of the chain whether it held: True where all did.

    What is right is known without any learned model: the oracle reads the scene off the drawing, and questions and
    answers follow from that by the grammar. Raises ZooError for a text that the grammar does not make.
    """
    told = parse(text)
    (image,) = zoo.draw(text, model=model, seed=seed)
    image.save(file)
    console.print(f'drawn: "{text}", {file.resolve()}')
    if console.is_terminal:
        console.print(blocks(image))
    seen = read_scene(np.asarray(image))
    if seen is None:
        console.print(verdict(False, "there is nothing in it"))
        return False
    links = [(holds(told, seen), f"it shows {text_of(describe(seen))}")]
    said, right = zoo.describe(image, model=model), text_of(describe(seen))
    links.append((said == right, f"described: {said}"))
    for question, answer in asked(seen, seed):
        found = zoo.answer(question, image=image, model=model)
        links.append((found == answer, f"{question} {found}" + ("" if found == answer else f" (it is {answer})")))
        again = zoo.answer(question, text=said, model=model)
        if again != found:
            links.append((False, f"from the description alone: {again}"))
    for held, line in links:
        console.print(verdict(held, line))
    broken = sum(not held for held, _ in links)
    console.print("the chain held" if not broken else f"the chain broke at {broken} of {len(links)} links")
    return not broken


def asked(scene: Scene, seed: int) -> list[tuple[str, str]]:
    """Different questions about a scene, of different kinds where it has them."""
    found: dict[str, tuple[str, str]] = {}
    for i in range(8 * QUESTIONS):
        kind, turn = ask(scene, Draw(seed, i))
        found.setdefault(kind, turn)
    return list(found.values())[:QUESTIONS]


def verdict(held: bool, line: str) -> Text:
    return Text.assemble(("  held  ", "green") if held else ("  broke ", "red"), line)


def blocks(image: Image.Image) -> Text:
    """A picture as half blocks, two pixels a character."""
    pixels: Any = np.asarray(image.convert("RGB").resize((WIDE, WIDE), Image.Resampling.BOX)).tolist()
    text = Text()
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        for (r, g, b), (x, y, z) in zip(upper, lower, strict=True):
            text.append("▀", f"rgb({r},{g},{b}) on rgb({x},{y},{z})")
        text.append("\n")
    return text


def check_file(file: Path) -> None:
    """Raises ZooError for a file that no picture can be written to."""
    if file.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ZooError(f"{file}: give a name that ends in .png, .jpg or .webp")
    if not file.parent.is_dir():
        raise ZooError(f"{file}: there is no folder {file.parent}")
