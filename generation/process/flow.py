"""Flow matching between any two latents, and its Euler solver.

Time runs from 0 at the source (noise, or the degraded latent) to 1 at the data. The sigma of diffusers and
the network's time run in the other direction: the network reads 1000 (1 - t), which is 1000 at the source.
A time embedding that was trained on noise steps therefore keeps its meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from generation import draws

Time = TypeVar("Time", float, Tensor)


def shifted(t: Time, shift: float) -> Time:
    """Times warped towards the source: 1 - s(1-t) / (1 + (s-1)(1-t)), which equals t / (t + s(1-t)).

    A `shift` s of 1 changes nothing. The times 0 and 1 stay exactly the same. (FlashVideo has s = 2.5.)
    """
    return t / (t + shift * (1 - t))


def flow_times(steps: int, shift: float = 1.0) -> Tensor:
    """The time grid of a solver: (steps + 1,) float64, from exactly 0 to exactly 1.

    A shift above 1 makes the grid denser near the source.

    Raises `ValueError` for fewer than one step or a shift that is not positive.
    """
    if steps < 1:
        raise ValueError(f"steps: {steps} evaluations; take 1 or more")
    if not shift > 0:
        raise ValueError(f"shift: {shift}; take a positive number, 1 for even times")
    return shifted(torch.arange(steps + 1, dtype=torch.float64) / steps, shift)


def training_time(index: int, shift: float, *key: int | str) -> float:
    """The flow time of the sample at position `index` of a plan: stratified over [0, 1), then shifted."""
    return shifted(draws.stratified(index, *key), shift)


def network_time(t: Time) -> Time:
    """The time that the network reads for flow time `t`: 1000 (1 - t)."""
    return 1000 * (1 - t)


def interpolate(z0: Tensor, z1: Tensor, t: float | Tensor) -> Tensor:
    """The straight path (1-t) z0 + t z1, whose velocity is z1 - z0.

    t: a number, or times (B,) for latents (B, ...).
    """
    if isinstance(t, Tensor) and t.ndim:
        t = t.to(z0).reshape(-1, *[1] * (z0.ndim - 1))  # (B, 1, ...)
    return (1 - t) * z0 + t * z1


def euler(
    velocity: Callable[[Tensor, float], Tensor],
    x0: Tensor,
    times: Tensor,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Integrate dx/dt = velocity(x, t) from `x0` at times[0] to times[-1], one evaluation per interval.

    A step is x' = x + (t' - t) v. The state is float32, also when the network computes in bfloat16. For
    example, the velocity t -> 3t^2 over `flow_times(n)` adds 1 - 3/(2n) + 1/(2n^2). progress: called with the
    number of finished evaluations.
    """
    x = x0.float()
    grid = [float(t) for t in times]
    for step, (now, then) in enumerate(pairwise(grid)):
        x = x + (then - now) * velocity(x, now).float()
        if progress:
            progress(step + 1)
    return x
