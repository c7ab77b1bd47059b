"""The run folder: the unit that a person shares.

config.json, metrics.jsonl, loss.png, samples/step_*.png, strip.png, checkpoints/, result.json, model/ and
README.md. Rows of metrics.jsonl hold nothing that depends on the clock, so that a run that was killed and
continued leaves the same file as one that was not.
"""

import dataclasses
import io
import json
import math
import platform
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np
from etils import epath

from zoo.errors import ZooError
from zoo.train.config import VOLATILE, TrainConfig

REMOTE_SECONDS = 30.0  # between writes of metrics.jsonl to a bucket


class Run:
    """A run folder, on a disk or in a bucket (gs://). Only the first process writes to it."""

    def __init__(self, config: TrainConfig, command: str):
        self.config, self.command = config, command
        self.folder = epath.Path(config.run)
        self.lead = jax.process_index() == 0
        self.remote = "://" in config.run
        self.rows: list[dict[str, Any]] = []
        self._written, self._write_next = 0, 0.0
        self._events: Any = None

    def say(self, text: str) -> None:
        """Prints a line, once however many processes there are."""
        if self.lead:
            print(text)

    def check(self) -> None:
        """Raises ZooError when the folder holds a run of another config, with the differences. Writes nothing."""
        path = self.folder / "config.json"
        if self.folder.exists() and not self.folder.is_dir():
            raise ZooError(f"--run {self.folder} is a file; choose a folder")
        if not path.exists():
            saved = self.folder / "checkpoints"
            if saved.exists() and any(part.name.isdigit() for part in saved.iterdir()):
                raise ZooError(f"{self.folder} has checkpoints but no config.json; choose another --run folder")
            return
        try:
            old = flatten(json.loads(path.read_text()))
        except ValueError as error:
            raise ZooError(f"{path} is not JSON ({error}); restore it, or choose another --run folder") from error
        new = flatten(json.loads(json.dumps(dataclasses.asdict(self.config))))
        keys = sorted(key for key in old.keys() | new.keys() if key.split(".")[0] not in VOLATILE)
        pairs = {key: (old.get(key, "absent"), new.get(key, "absent")) for key in keys}
        changed = [f"  {key}: {was} there, {now} here\n" for key, (was, now) in pairs.items() if was != now]
        if changed:
            raise ZooError(
                f"{self.folder} holds a run of another config:\n{''.join(changed)}"
                "use the same flags to continue it, or another --run folder to start anew"
            )

    def create(self, step: int) -> None:
        """Makes the folder, and drops rows of metrics after `step`: they will be made again."""
        self.rows = [row for row in self._read_rows() if row["step"] <= step]
        if self.lead:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.write("config.json", json.dumps(dataclasses.asdict(self.config), indent=2) + "\n")
            self.write("metrics.jsonl", _lines(self.rows))
        self._written = len(self.rows)
        self._events = _event_writer(self.folder, step) if self.lead and not self.remote else None

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Adds a row to metrics.jsonl; `flush` writes it."""
        self.rows.append({"step": step} | {key: _number(value) for key, value in metrics.items()})

    def flush(self, at_once: bool = False) -> None:
        """Writes the rows that are not yet in the file; to a bucket, where a file is only written whole, not at every
        call unless `at_once`."""
        new, now = self.rows[self._written :], time.monotonic()
        if not self.lead or not new or (self.remote and not at_once and now < self._write_next):
            return
        if self.remote:
            self.write("metrics.jsonl", _lines(self.rows))
            self._write_next = now + REMOTE_SECONDS
        else:
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(_lines(new))
        for row in new if self._events else []:
            for name, value in row.items():
                if name != "step" and value is not None:
                    self._events.add_scalar(name, value, row["step"])
        self._written = len(self.rows)

    def close(self) -> None:
        """Writes what is left of the rows, and what TensorBoard's writer still holds."""
        self.flush(at_once=True)
        if self._events:
            self._events.close()

    def best(self, key: str) -> float:
        """The lowest value of a metric so far; infinity without one."""
        return min((row[key] for row in self.rows if row.get(key) is not None), default=math.inf)

    def write(self, name: str, content: str | bytes) -> None:
        """Writes a file of the folder whole: a reader never sees half of it."""
        if not self.lead:
            return
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path if self.remote else path.parent / (path.name + ".part")  # a bucket's file appears when it is whole
        try:
            part.write_bytes(content.encode() if isinstance(content, str) else content)
            if part != path:
                part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise

    def write_image(self, name: str, image: Any) -> None:
        """Writes a picture as PNG: a matplotlib figure, or uint8 pixels [H, W] or [H, W, 3]."""
        buffer = io.BytesIO()
        if hasattr(image, "savefig"):
            image.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
        else:
            from PIL import Image

            Image.fromarray(np.asarray(image)).save(buffer, format="PNG")
        self.write(name, buffer.getvalue())

    def plot(self) -> None:
        """loss.png: every loss, in training and held out, over steps."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        for key in dict.fromkeys(key for row in self.rows for key in row if is_loss(key)):
            points = [(row["step"], row[key]) for row in self.rows if row.get(key) is not None]
            if points:
                marker = "o" if key.startswith("eval_") else ""
                axes.plot(*zip(*points, strict=True), label=key, marker=marker, markersize=3, linewidth=1.2)
        axes.set(xlabel="step", ylabel="loss (nats)", title=self.folder.name)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
        self.write_image("loss.png", figure)

    def strip(self, most: int = 8) -> None:
        """strip.png: up to `most` of the sample pictures, evenly spaced over training, one below the other."""
        from PIL import Image

        paths = sorted((self.folder / "samples").glob("step_*.png")) if self.lead else []
        if not paths:
            return
        chosen = [paths[i] for i in sorted({round(i) for i in np.linspace(0, len(paths) - 1, most)})]
        images = [np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB")) for path in chosen]
        width = max(image.shape[1] for image in images)
        padded = [np.pad(x, ((0, 0), (0, width - x.shape[1]), (0, 0)), constant_values=255) for x in images]
        self.write_image("strip.png", np.concatenate(padded))

    def finish(self, result: dict[str, Any], next_commands: Sequence[str] = ()) -> None:
        """Writes result.json and the README.md card, and says what lies where and what to try next.

        A run that had finished before keeps its result, which tells of the training itself.
        """
        if result["continued_from"] < result["step"] or not (self.folder / "result.json").exists():
            self.plot()
            self.strip()
            self.write("result.json", json.dumps(result, indent=2) + "\n")
            self.write("README.md", self._card(result))
        self.say(f"\n{self.folder}/")
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name):
            self.say(f"  {path.name}{'/' if path.is_dir() else ''}")
        for command in next_commands:
            self.say(f"next: {command}")

    def _read_rows(self) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        rows = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                rows.append(json.loads(line))
            except ValueError:  # a kill may cut the last line; what follows a cut cannot be trusted
                break
        return rows

    def _card(self, result: dict[str, Any]) -> str:
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "flax", "optax", "numpy"))
        metrics = "\n".join(f"| {key} | {value:.6g} |" for key, value in result["metrics"].items())
        pictures = "\n".join(f"![{x}]({x})" for x in ("loss.png", "strip.png") if (self.folder / x).exists())
        return (
            f"# {self.folder.name}\n\n```\n{self.command}\n```\n\n"
            f"| metric | value |\n|---|---|\n{metrics}\n\n"
            f"Step {result['step']}, seed {self.config.seed}, mesh {result['mesh']}, on {result['device']}; "
            f"Python {platform.python_version()}, {versions}.\n\n{pictures}\n\n"
            "The weights are in `model/`; the flags in `config.json`; every logged step in `metrics.jsonl`.\n"
        )


def _event_writer(folder: epath.Path, step: int) -> Any:
    """TensorBoard's events beside the rows, where the extra `tensorboard` is installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "events"), purge_step=step + 1, flush_secs=10)


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A nested dict with dotted keys."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    dot = f"{prefix}." if prefix else ""
    return {k: v for key, value in tree.items() for k, v in flatten(value, dot + key).items()}


def is_loss(name: str) -> bool:
    """Whether a metric is a loss, to be shown while it trains: "loss", or any that ends in "_loss"."""
    return name == "loss" or name.endswith("_loss")


def _number(value: Any) -> float | int | None:
    value = value if isinstance(value, int) else float(value)
    return value if math.isfinite(value) else None  # JSON has no NaN
