"""The flags that every recipe shares."""

from dataclasses import dataclass, field

from zoo.errors import ZooError
from zoo.train.mesh import MeshConfig

# What may differ between the runs of one folder, since it does not change what is learned.
VOLATILE = ("run", "max_minutes", "profile", "keep", "save_every", "mesh")


@dataclass(frozen=True)
class TrainConfig:
    """What every recipe can be told about training."""

    run: str = ""
    """Run folder; by default runs/<script>, or runs/<script>-<preset>. May be gs://. Rerun to continue."""
    steps: int = 1000
    """Updates in all."""
    batch: int = 64
    """Examples of an update, over all devices."""
    accumulate: int = 1
    """Micro-batches that an update is split into, to save memory."""
    steps_per_dispatch: int = 1
    """Steps that the device does at one call; with more than 1 the training data lies on it, so it must fit."""
    seed: int = 0
    """Fixes initial weights, data order and all randomness."""
    ema: float = 0.0
    """Decay of the averaged weights that are evaluated and kept; 0 is off."""
    log_every: int = 10
    """Steps between rows of metrics.jsonl."""
    eval_every: int = 200
    """Steps between evaluations and pictures."""
    save_every: int = 200
    """Steps between checkpoints; the best evaluated one is saved as well."""
    keep: int = 2
    """Newest checkpoints to keep, besides the best."""
    max_minutes: float = 0.0
    """Save and stop after so long (a Colab session's rest); 0 is no limit."""
    profile: str = ""
    """START:STOP steps to trace, into profile/ of the run folder."""
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        """Raises ZooError for numbers that make no run."""
        counts = ("steps", "batch", "accumulate", "steps_per_dispatch", "log_every", "eval_every", "save_every", "keep")
        for name in counts:
            if getattr(self, name) < 1:
                raise ZooError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1")
        for name in ("steps", "eval_every", "save_every"):
            if getattr(self, name) % self.steps_per_dispatch:
                raise ZooError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be a multiple of"
                    f" --steps-per-dispatch {self.steps_per_dispatch}"
                )
        if not 0 <= self.ema < 1 or self.max_minutes < 0 or self.seed < 0:
            raise ZooError("--ema must be in [0, 1), --max-minutes and --seed at least 0")
