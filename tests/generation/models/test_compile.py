"""Compiled blocks give the same numbers, and are not compiled again for every shape."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from generation import draws
from generation.models import cogvideox
from tests.generation.models.test_cogvideox import awake, tiny

SHAPES = [(2, 3, 4, 6, 5), (2, 5, 8, 10, 7), (3, 2, 8, 12, 9)]  # rows, t, h, w, words


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def call(model: torch.nn.Module, b: int, t: int, h: int, w: int, words: int) -> Tensor:
    text = draws.normal((b, words, 24), "text")
    return cogvideox.predict(
        model, draws.normal((b, 4, t, h, w), "latents"), text, None, torch.linspace(900, 100, b)
    )


@torch.no_grad()
def sampling(backend: str) -> None:
    plain, compiled = awake(tiny()).eval(), awake(tiny()).eval()
    cogvideox.compile_blocks(compiled.transformer_blocks, backend)
    expected = [call(plain, *shape) for shape in SHAPES]
    found = [call(compiled, *SHAPES[0])]
    with torch.compiler.set_stance("fail_on_recompile"):
        found += [call(compiled, *shape) for shape in SHAPES[1:]]
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5 * float(other.abs().max()))


def training(backend: str) -> None:
    """Outputs and gradients are equal, also with gradient checkpointing."""
    plain, compiled = awake(tiny()).train(), awake(tiny(gradient_checkpointing=True)).train()
    cogvideox.compile_blocks(compiled.transformer_blocks, backend)
    for model in (plain, compiled):
        call(model, *SHAPES[0]).square().mean().backward()
    with torch.compiler.set_stance("fail_on_recompile"):
        for model in (plain, compiled):
            call(model, *SHAPES[1]).square().mean().backward()
    for one, other in zip(compiled.parameters(), plain.parameters(), strict=True):
        if other.grad is not None:
            assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-5 * float(other.grad.abs().max()))


def test_sampling_has_the_same_numbers_and_one_compilation_for_all_shapes() -> None:
    """The blocks are only traced, because generating machine code takes a minute."""
    sampling("eager")


def test_training_has_the_same_gradients_and_one_compilation_for_all_shapes() -> None:
    training("aot_eager")


def test_blocks_are_really_compiled() -> None:
    model = awake(tiny()).eval()
    cogvideox.compile_blocks(model.transformer_blocks, "aot_eager")
    with torch.compiler.set_stance("fail_on_recompile"), pytest.raises(RuntimeError, match="recompile"):
        call(model, *SHAPES[0])


@pytest.mark.slow
def test_machine_code_has_the_same_numbers() -> None:
    sampling("inductor")
    training("inductor")
