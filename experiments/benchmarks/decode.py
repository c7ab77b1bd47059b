"""Tokens a second beside the transformers library, with the same weights on the same machine, in turn."""

import functools
import json
import os
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks.common import memory_peak, table

import zoo
from zoo.data.text import Bytes
from zoo.generate.decode import Generator
from zoo.generate.sampling import Sampling
from zoo.models import decoder, functional
from zoo.objectives.losses import next_token_loss
from zoo.objectives.optim import OptimConfig, make_optimizer
from zoo.objectives.update import Aux, gradient_update
from zoo.train.launch import start_jax
from zoo.weights.registry import config_of

PROMPT, NEW, PREFILL, WIDE = 32, 64, 512, 16

PEER = """
import json, sys, time, torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
folder, device, seed, prompt, new, prefill, wide, rows, context = *sys.argv[1:3], *map(int, sys.argv[3:])
gpu = device == "cuda"
torch.manual_seed(seed)
torch.set_default_device(device)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if gpu else torch.float32).eval().to(device)
def clock():
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter()
def seconds(batch, length, tokens):
    x = torch.randint(0, model.config.vocab_size, (batch, length))
    begun = clock()
    model.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
                   pad_token_id=0)
    return clock() - begun
found = {}
with torch.no_grad():
    for batch in (1, wide):
        seconds(batch, prompt, 4)
        long, short = (min(seconds(batch, prompt, tokens) for _ in range(3)) for tokens in (new + 1, 1))
        found[f"batch {batch}, tokens/s"] = batch * new / (long - short)
    seconds(1, prefill, 1)
    found["prefill, s"] = min(seconds(1, prefill, 1) for _ in range(3))
model = GPT2LMHeadModel(GPT2Config(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))
optimizer = torch.optim.AdamW(model.parameters(), fused=gpu)
run = torch.compile(model) if gpu else model
x = torch.randint(0, 50257, (rows, context))
times = []
for _ in range(4):
    begun = clock()
    with torch.autocast(device, torch.bfloat16, enabled=gpu):
        loss = run(x, labels=x).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    times.append(clock() - begun)
found["gpt2 training step, s"] = min(times[1:])
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Decode:
    """Generation, prefill and a training step of GPT-2, with weights that both sides read from one folder.

    In float32 on a CPU, in bfloat16 on an accelerator; the other side has a CPU or a GPU, not a TPU.
    """

    weights: str
    """A Llama-family model: a GGUF file, or a folder of the transformers library."""
    python: str = ""
    """The Python that has torch and transformers; without it only our side runs."""
    rounds: int = 3
    """Times that each side runs, in turn."""

    def main(self) -> None:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # both sides need memory of one GPU
        start_jax()
        begun, peak_of = time.perf_counter(), memory_peak()
        model = zoo.load(self.weights)
        _, params, _ = functional.split(jax.block_until_ready(model))
        peak = peak_of() / 2**20
        size = sum(x.nbytes for x in jax.tree.leaves(params)) / 2**20
        largest = max(x.nbytes for x in jax.tree.leaves(params)) / 2**20
        print(
            f"import: {time.perf_counter() - begun:.1f} s, {peak:.0f} MiB at the peak"
            f" for {size:.0f} MiB of weights, of which the largest array has {largest:.0f}"
        )
        ours, theirs = [], []
        with tempfile.TemporaryDirectory() as folder:
            if self.python:
                from zoo.weights.transformers import save_hf

                save_hf(model, folder)
            for seed in range(self.rounds):
                theirs += [self.peer(folder, seed)] if self.python else []
                ours.append(self.ours(model, seed))
        medians = [
            {name: statistics.median(each[name] for each in side) for name in side[0]}
            for side in (ours, theirs)
            if side
        ]
        rows = []
        for name, value in medians[0].items():
            peer = medians[1][name] if self.python else float("nan")
            rows.append([name, f"{value:.3f}", f"{peer:.3f}", f"{value / peer if '/s' in name else peer / value:.2f}"])
        table("decode", ["medians", "zoo", "transformers", "times as fast"], rows)

    def ours(self, model: decoder.Decoder, seed: int) -> dict[str, float]:
        rng = np.random.default_rng(seed)
        generator = Generator(model, Bytes(), ends=())

        def seconds(batch: int, length: int, tokens: int) -> float:
            prompts = rng.integers(0, model.config.vocab_size, (batch, length)).tolist()
            begun = time.perf_counter()
            generator.complete(prompts, tokens, sampling=Sampling(temperature=0))
            return time.perf_counter() - begun

        found = {}
        for batch in (1, WIDE):
            for tokens in (NEW + 1, 1):  # each size of text is a program of its own: compile both first
                seconds(batch, PROMPT, tokens)
            long, short = (min(seconds(batch, PROMPT, tokens) for _ in range(3)) for tokens in (NEW + 1, 1))
            found[f"batch {batch}, tokens/s"] = batch * NEW / (long - short)
        seconds(1, PREFILL, 1)
        found["prefill, s"] = min(seconds(1, PREFILL, 1) for _ in range(3))
        return found | {"gpt2 training step, s": training_step()}

    def peer(self, folder: str, seed: int) -> dict[str, float]:
        device = "cuda" if jax.default_backend() == "gpu" else "cpu"
        sizes = (seed, PROMPT, NEW, PREFILL, WIDE, *training_size())
        command = [self.python, "-c", PEER, folder, device, *map(str, sizes)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout.splitlines()[-1])


def training_size() -> tuple[int, int]:
    """Batch and context of GPT-2's training step on this platform."""
    return (4, 256) if jax.default_backend() == "cpu" else (16, 1024)


@functools.cache
def training_program():
    """(compiled step, state, batch) of GPT-2 124M with AdamW."""
    rows, context = training_size()
    config = config_of("gpt2", loop="scan" if jax.default_backend() == "cpu" else "unroll")
    build = functools.partial(decoder.Decoder, config)
    graphdef, _, _ = functional.abstract(build)

    def loss(params, stats, batch, key):
        model = functional.merge(graphdef, params, stats)
        hidden = model.hidden(batch[:, :-1])
        losses = next_token_loss(model.logits(hidden, dtype=hidden.dtype), batch)
        return losses.sum(), Aux(jnp.asarray(losses.size, jnp.float32), stats, {})

    tx = make_optimizer(OptimConfig(), 1000)
    params, stats = jax.jit(lambda: functional.initial(build, jax.random.key(0)))()
    state = {"step": jnp.zeros((), jnp.int32), "params": params, "stats": stats, "opt": tx.init(params)}
    batch = jnp.zeros((rows, context + 1), jnp.int32)
    step = jax.jit(gradient_update(loss, tx), donate_argnums=0).lower(state, batch, jax.random.key(0)).compile()
    return step, state, batch


def training_step() -> float:
    """Seconds of one step, the least of three."""
    step, state, batch = training_program()
    times = []
    for _ in range(4):
        copy = jax.block_until_ready(jax.tree.map(jnp.copy, state))
        begun = time.perf_counter()
        jax.block_until_ready(step(copy, batch, jax.random.key(0)))
        times.append(time.perf_counter() - begun)
    return min(times[1:])
