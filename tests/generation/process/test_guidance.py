"""Guidance in one batch or row by row, and the cost of both ways, counted in calls of the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from generation import draws
from generation.config import Objective, Sampling
from generation.models.cogvideox import predict
from generation.process import guidance, stage1, stage2
from tests.generation.process.test_stages import SHAPE, STAGES, latents, network, text


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """The number of rows in each call of the network."""
    rows: list[int] = []

    def note(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, Tensor]) -> None:
        rows.append(len(kwargs["hidden_states"]))

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    yield rows
    hook.remove()


def sampled(
    model: nn.Module, stage: int, sampling: Sampling, negative: Tensor | None, apart: bool = False
) -> Tensor:
    words = text(4, "prompt")
    if stage == 2:
        low = latents("low", batch=1)
        return stage2.sample(model, sampling, low, 400, words, negative, "key", apart=apart)
    objective = Objective(kind="v") if stage == 1 else Objective(kind="flow")
    return stage1.sample(model, objective, sampling, SHAPE, words, negative, "key", apart=apart)


@pytest.mark.parametrize("stage", STAGES)
def test_without_guidance_a_step_is_one_row_through_the_network(stage: int) -> None:
    """Sampling alone decides this, for any weights, including distilled weights."""
    model = network(stage == 2, awake=True)
    with counted(model) as rows:
        sampled(model, stage, Sampling(steps=5, guidance=1.0), text(4, "negative"))
    assert rows == [1] * 5


@pytest.mark.parametrize("stage", STAGES)
def test_together_is_one_call_of_two_rows_and_apart_two_of_one(stage: int) -> None:
    model = network(stage == 2, awake=True)
    way = Sampling(steps=3, guidance=4.0)
    with counted(model) as rows:
        together = sampled(model, stage, way, text(4, "negative"))
    assert rows == [2] * 3
    with counted(model) as rows:
        apart = sampled(model, stage, way, text(4, "negative"), apart=True)
    assert rows == [1] * 6
    assert torch.allclose(together, apart, atol=1e-5 * float(together.abs().max()))


@pytest.mark.parametrize("stage", STAGES)
def test_texts_of_two_lengths_go_apart_and_so_need_no_mask(stage: int) -> None:
    model = network(stage == 2, awake=True)
    with counted(model) as rows:
        sampled(model, stage, Sampling(steps=2, guidance=4.0), text(7, "negative"))
    assert rows == [1] * 4


def test_each_row_is_the_prediction_of_its_text() -> None:
    model, z = network(True, awake=True), latents("z", batch=1)
    words, other = text(4, "prompt"), text(6, "negative")
    time, strength = torch.tensor([250.0]), torch.tensor([400.0])
    with torch.no_grad():
        one, two = (predict(model, z, row[None], None, time, strength) for row in (words, other))
        found = guidance.guided_prediction(model, z, words, other, 3.0, 250.0, 400.0)
        alone = guidance.guided_prediction(model, z, words, other, 1.0, 250.0, 400.0)
    assert torch.equal(found, guidance.combine(one, two, 3.0))
    assert torch.equal(alone, one)
    assert (one - two).abs().max() > 1e-3


def test_a_ramp_pays_for_guidance_only_where_it_has_some() -> None:
    """The dynamic ramp begins at exactly 1."""
    model = network(False, awake=True)
    with counted(model) as rows:
        sampled(model, 1, Sampling(steps=4, guidance=4.0, guidance_ramp="dynamic"), None)
    assert rows == [1, 2, 2, 2]


def test_both_predictions_are_combined() -> None:
    cond, uncond = torch.randn(2, 100, generator=draws.generator("g")).unbind()
    assert torch.equal(guidance.combine(cond, uncond, 1.0), cond)
    assert torch.equal(guidance.combine(cond, uncond, 0.0), uncond)
    expected = uncond.double() + 13 * (cond.double() - uncond.double())
    torch.testing.assert_close(guidance.combine(cond, uncond, 13.0).double(), expected, rtol=0, atol=1e-5)
    half = guidance.combine(cond.bfloat16(), uncond.bfloat16(), 13.0)
    assert half.dtype == torch.float32  # the difference is not rounded before the multiplication
    expected = uncond.bfloat16().double() + 13 * (cond.bfloat16().double() - uncond.bfloat16().double())
    torch.testing.assert_close(half.double(), expected, rtol=0, atol=1e-5)
