"""Random draws that depend only on their key."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys

import pytest
import torch

from generation import draws


def _digest() -> str:
    values = draws.normal((3, 5), 7, "noise", 2).numpy().tobytes()
    return hashlib.sha256(values + repr(draws.uniform(7, "time")).encode()).hexdigest()


def test_a_key_means_the_same_in_another_process() -> None:
    code = "from tests.generation.test_draws import _digest; print(_digest())"
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        out = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        assert out.stdout.strip() == _digest()


def test_a_key_means_the_same_for_good() -> None:
    """A change would alter the results of every resumed training."""
    assert draws.uniform(0, "a") == 0.3514334289851708
    assert draws.stratified(5, 0, "a") == 0.441603372734645
    assert draws.generator(0, "a").initial_seed() == 1509395084
    assert draws.normal((3,), 0, "a").tolist() == pytest.approx([3.157953, -0.977933, 1.102942], abs=1e-5)


def test_a_key_is_not_its_text() -> None:
    keys = [
        ("a", "bc"),
        ("ab", "c"),
        ("abc",),
        (1,),
        ("1",),
        (1, 2),
        (12,),
        (2, 1),
        (-1,),
        ('1", "2',),
        ("1", "2"),
    ]
    assert len({draws.uniform(*key) for key in keys}) == len(keys)
    assert len({draws.normal((4,), *key).sum().item() for key in keys}) == len(keys)


@pytest.mark.parametrize("key", [(), (1.0,), (None,), ((1, 2),)])
def test_other_keys_are_refused(key: tuple[object, ...]) -> None:
    with pytest.raises(AssertionError):
        draws.uniform(*key)  # type: ignore[arg-type]


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    first = draws.normal((8,), "x")
    torch.rand(3)
    torch.set_rng_state(before)
    assert torch.equal(first, draws.normal((8,), "x"))
    assert torch.equal(before, torch.get_rng_state())


def test_normal_is_standard() -> None:
    noise = draws.normal((200_000,), "n")
    assert noise.dtype == torch.float32
    assert abs(noise.mean().item()) < 0.01
    assert abs(noise.std().item() - 1) < 0.01


def test_uniform_fills_the_unit_interval() -> None:
    values = sorted(draws.uniform("u", k) for k in range(5000))
    assert values[0] >= 0
    assert values[-1] < 1
    distance = max(abs(v - k / 5000) for k, v in enumerate(values))  # Kolmogorov-Smirnov; p < 1e-4 beyond
    assert distance < 2.2 / math.sqrt(5000)


def test_stratified_is_the_golden_recurrence() -> None:
    for index in (0, 1, 2, 1000, 123_456):
        expected = (draws.uniform(3, "t") + index * (math.sqrt(5) - 1) / 2) % 1
        assert draws.stratified(index, 3, "t") == pytest.approx(expected, abs=1e-9)
    assert 0 <= draws.stratified(10**15, 3, "t") < 1


@pytest.mark.parametrize("start", [0, 977, 10**12])
@pytest.mark.parametrize("count", [2, 3, 8, 64, 1000])
def test_any_run_of_positions_covers_the_interval(start: int, count: int) -> None:
    points = sorted(draws.stratified(start + k, "seed", 1) for k in range(count))
    gaps = [b - a for a, b in zip(points, [*points[1:], points[0] + 1], strict=True)]
    assert max(gaps) < 1.9 / count
    assert min(gaps) > 0.38 / count  # independent draws would be much closer to each other


def test_the_docstring_tells_the_truth_about_seeds() -> None:
    """The generator's seed has 32 bits. PyTorch would ignore further bits without a warning."""
    one, other = (torch.Generator().manual_seed(seed) for seed in (5, 5 + 2**32))
    assert torch.equal(torch.rand(3, generator=one), torch.rand(3, generator=other))
    assert all(draws.generator("s", k).initial_seed() < 2**32 for k in range(100))
