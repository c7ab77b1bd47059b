"""A plan that nothing was compiled for."""

import dataclasses

from tpu.estimate import GIB, Plan

BASE = Plan(
    recipe="experiments/vae.py digits --batch 64",
    topology="v5e:1x1",
    slices=1,
    versions={"jax": "1.2.3", "libtpu": "4.5.6"},
    mesh={"data": 1, "fsdp": 1, "tensor": 1},
    devices=1,
    batch=64,
    steps_per_dispatch=1,
    parameters=1000,
    flops=1e9,
    executed_flops=1.5e9,
    hbm=16 * GIB,
    params_bytes=4000,
    optimizer_bytes=8000,
    data_bytes=100,
    peak_bytes=8 * GIB,
    fits=True,
    compile_seconds=1.0,
    step_seconds=0.1,
    mfu=0.5,
    hfu=0.75,
    examples_per_second=640.0,
    tokens_per_second=0.0,
    collectives={},
    kernels={},
    seconds_by={"estimate": 0.1, "bytes": 0.0, "kernel": 0.0, "collective": 0.0},
    unestimated={},
    notes=[],
)


def changed(**fields):
    return dataclasses.replace(BASE, **fields)
