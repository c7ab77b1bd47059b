"""The held-out loss of Shakespeare's characters against time, beside nanoGPT."""

import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import lines_of

NANOGPT = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=100 --block_size=64 "
    "--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)  # the CPU setting of its README


@dataclass(frozen=True)
class Race:
    """Loss over the whole held-out tenth of Shakespeare's characters against seconds since the process started."""

    data: Path
    """tinyshakespeare.txt."""
    nanogpt: Path | None = None
    """A checkout of karpathy/nanoGPT to run in the same session, in its README's CPU setting."""
    python: str = sys.executable
    """The Python that has its torch."""
    rounds: int = 1
    """Times that each side runs, in turn."""

    def main(self) -> None:
        for _ in range(self.rounds):
            if self.nanogpt:
                peer, loss = self.peer()
                print(f"nanoGPT: {loss:.4f} nats in {peer:.1f} s")
            for preset in ("shakespeare", "shakespeare-long"):
                for done, seconds, loss in self.ours(preset):
                    share = f", {seconds / peer:.3f} of nanoGPT's time" if self.nanogpt else ""
                    print(f"{preset}: step {done}, {loss:.4f} nats in {seconds:.1f} s{share}", flush=True)

    def ours(self, preset: str) -> list[tuple[int, float, float]]:
        """(step, seconds since the start of the process, held-out nats) of each evaluation, compiling included."""
        with tempfile.TemporaryDirectory() as folder:
            arguments = [preset, "--data", f"text:{self.data.resolve()}", "--run", f"{folder}/run"]
            found, begun = [], time.perf_counter()
            for line in lines_of("gpt.py", arguments, Path(folder) / "cache"):
                evaluated = re.match(r"step (\d+): .*eval_loss ([\d.]+)", line)
                if evaluated:
                    found.append((int(evaluated[1]), time.perf_counter() - begun, float(evaluated[2])))
            return found

    def peer(self) -> tuple[float, float]:
        """(seconds of the process, its own estimate of the held-out nats at the end)."""
        folder = self.nanogpt / "data" / "shakespeare_char"
        (folder / "input.txt").write_bytes(self.data.read_bytes())
        subprocess.run([self.python, "prepare.py"], cwd=folder, check=True, capture_output=True)
        begun = time.perf_counter()
        done = subprocess.run(
            [self.python, "train.py", *NANOGPT.split()], cwd=self.nanogpt, check=True, capture_output=True, text=True
        )
        losses = re.findall(r"val loss ([\d.]+)", done.stdout)
        return time.perf_counter() - begun, float(losses[-1])
