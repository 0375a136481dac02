"""Flow times, and the Euler solver compared with closed forms."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from generation import draws
from generation.process import flow

STEPS = [1, 2, 3, 4, 5, 8, 50]
SHIFTS = [0.5, 1.0, 2.5, 3.5, 7.0]


# ---- times (flashvideo.md 2.5, and vector 2 of its section 9)


@pytest.mark.parametrize(
    ("steps", "times", "told"),
    [
        (4, [0, 0.1176, 0.2857, 0.5455, 1], [1000, 882.4, 714.3, 454.5]),
        (5, [0, 0.0909, 0.2105, 0.375, 0.6154, 1], [1000, 909.1, 789.5, 625, 384.6]),
    ],
)
def test_the_published_grid(steps: int, times: list[float], told: list[float]) -> None:
    grid = flow.flow_times(steps, 2.5)
    assert grid.tolist() == pytest.approx(times, abs=5.1e-5)
    assert flow.network_time(grid)[:-1].tolist() == pytest.approx(told, abs=0.051)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", SHIFTS)
def test_ends_are_exact_and_the_network_counts_down(steps: int, shift: float) -> None:
    grid = flow.flow_times(steps, shift)
    assert grid.dtype == torch.float64
    assert len(grid) == steps + 1
    assert (float(grid[0]), float(grid[-1])) == (0.0, 1.0)
    told = flow.network_time(grid)
    assert (float(told[0]), float(told[-1])) == (1000.0, 0.0)
    assert (told.diff() < 0).all()


def test_without_shift_the_grid_is_even() -> None:
    assert flow.flow_times(8).tolist() == [k / 8 for k in range(9)]


@pytest.mark.parametrize("shift", SHIFTS)
def test_shift_as_it_is_published(shift: float) -> None:
    for t in [0.0, 0.01, 0.3, 0.77, 1.0]:
        published = 1 - shift * (1 - t) / (1 + (shift - 1) * (1 - t))
        assert flow.shifted(t, shift) == pytest.approx(published, abs=1e-15)
    assert flow.shifted(flow.shifted(0.3, shift), 1 / shift) == pytest.approx(0.3)


def test_bad_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="take 1 or more"):
        flow.flow_times(0)
    for shift in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="take a positive number"):
            flow.flow_times(4, shift)


def test_training_times_are_stratified_then_shifted() -> None:
    key = (11, "time", 3)
    assert flow.training_time(17, 1.0, *key) == draws.stratified(17, *key)
    times = [flow.training_time(k, 2.5, *key) for k in range(100, 1100)]
    # P(t <= c) of the warped uniform is the inverse warp of c.
    for c in (0.1, 0.25, 0.5, 0.9):
        share = sum(t <= c for t in times) / len(times)
        assert share == pytest.approx(flow.shifted(c, 1 / 2.5), abs=0.004)


# ---- path and guidance


def test_path_from_source_to_data() -> None:
    z0, z1 = torch.randn(2, 3, 4, 1, 2, generator=draws.generator("z")).unbind()
    assert torch.equal(flow.interpolate(z0, z1, 0.0), z0)
    assert torch.equal(flow.interpolate(z0, z1, 1.0), z1)
    times = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    mixed = flow.interpolate(z0, z1, times)  # one time for each of three samples
    assert mixed.dtype == torch.float32
    for k, t in enumerate(times.tolist()):
        torch.testing.assert_close(mixed[k], flow.interpolate(z0[k], z1[k], t))
    # The derivative of the path is the target of training.
    slope = (
        flow.interpolate(z0.double(), z1.double(), 0.6) - flow.interpolate(z0.double(), z1.double(), 0.4)
    ) / 0.2
    torch.testing.assert_close(slope, z1.double() - z0.double())


# ---- solver


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", SHIFTS)
def test_constant_velocity_arrives_whatever_the_grid(steps: int, shift: float) -> None:
    """Vector 3 of section 9."""
    z_lr, z_hr = torch.randn(2, 1, 4, 2, 3, 3, generator=draws.generator("hr")).unbind()
    out = flow.euler(lambda x, t: z_hr - z_lr, z_lr, flow.flow_times(steps, shift))
    torch.testing.assert_close(out, z_hr, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", STEPS)
def test_velocity_that_depends_on_time(steps: int) -> None:
    x0 = torch.tensor([0.5, -2.0])
    out = flow.euler(lambda x, t: torch.full_like(x, 3 * t * t), x0, flow.flow_times(steps))
    gain = 1 - 3 / (2 * steps) + 1 / (2 * steps**2)  # sum of 3 k^2 / n^3
    torch.testing.assert_close(out, x0 + gain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("rate", [-1.5, 0.7])
def test_velocity_that_depends_on_the_state(steps: int, shift: float, rate: float) -> None:
    """dx/dt = rate x: Euler multiplies by 1 + rate h at each step."""
    out = flow.euler(lambda x, t: rate * x, torch.tensor([1.0, -3.0]), flow.flow_times(steps, shift))
    product = math.prod(1 + rate * (b - a) for a, b in pairwise(flow.flow_times(steps, shift).tolist()))
    torch.testing.assert_close(out, torch.tensor([1.0, -3.0]) * product, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 2.5])
def test_the_error_halves_with_the_step(shift: float) -> None:
    """First order, on dx/dt = x + t, x(0) = 1, whose solution is 2 e^t - t - 1."""
    errors = []
    for steps in (32, 64, 128):
        out = flow.euler(lambda x, t: x + t, torch.ones(1), flow.flow_times(steps, shift))
        errors.append(abs(out.item() - (2 * math.e - 2)))
    assert errors[0] < 0.2
    for coarse, fine in pairwise(errors):
        assert 1.85 < coarse / fine < 2.15


def test_exact_flow_between_gaussians() -> None:
    """From N(0, 1) to N(2, 0.25) with independent ends, the marginal velocity is known and linear in x."""
    mean, var = 2.0, 0.25

    def velocity(x: Tensor, t: float) -> Tensor:
        spread = (1 - t) ** 2 + t * t * var
        return mean + (t * var - (1 - t)) / spread * (x - t * mean)

    x0 = draws.normal((50_000,), "gauss")
    out = flow.euler(velocity, x0, flow.flow_times(200))
    assert out.mean().item() == pytest.approx(mean, abs=0.01)
    assert out.std().item() == pytest.approx(0.5, abs=0.01)


def test_the_state_is_float32_and_evaluations_are_counted() -> None:
    seen: list[tuple[torch.dtype, float]] = []
    done: list[int] = []

    def velocity(x: Tensor, t: float) -> Tensor:
        seen.append((x.dtype, t))
        return torch.full_like(x, 1e-3, dtype=torch.bfloat16)

    times = flow.flow_times(10, 2.5)
    out = flow.euler(velocity, torch.full((1,), 2.0, dtype=torch.bfloat16), times, done.append)
    assert out.dtype == torch.float32
    assert out.item() == pytest.approx(2.001, abs=1e-5)  # a bfloat16 state would stay 2
    assert seen == [(torch.float32, t) for t in times.tolist()[:-1]]
    assert done == list(range(1, 11))


def test_import_is_light() -> None:
    code = (
        "import sys, generation.process.flow, generation.process.diffusion\n"
        "print([m for m in ('diffusers', 'av', 'ray') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
