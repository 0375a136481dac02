"""The places of network and codec while a video is made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from generation import config
from generation.codecs.open import open_codec
from generation.models import cogvideox
from generation.sample.execution import Execution, make_ready, visiting
from tests.generation.models.test_cogvideox import awake, inputs, tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("offload", "moves"),
    [
        ("none", []),
        ("model", ["network to meta", "network to cpu", "codec to meta", "codec to cpu"]),
        ("block", ["codec to meta", "codec to cpu"]),
    ],
)
def test_one_at_a_time_is_on_the_device(
    offload: Any, moves: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds after an error, too."""
    network, codec = nn.Linear(2, 2), open_codec(config.Codec())
    seen: list[str] = []
    for name, part in (("network", network), ("codec", codec)):
        # The move is not made, as no other device here can return numbers.
        monkeypatch.setattr(part, "to", lambda device, name=name: seen.append(f"{name} to {device}"))
    how = Execution(offload=offload)
    for part in (network, codec):
        with pytest.raises(KeyError), visiting(part, torch.device("meta"), how):
            raise KeyError
    assert seen == moves


@pytest.mark.parametrize("offload", ["none", "model", "block"])
def test_a_network_gives_the_same_numbers_wherever_it_waits(offload: Any) -> None:
    latents, text, time, _ = inputs()
    with torch.no_grad():
        expected = cogvideox.predict(awake(tiny()), latents, text, None, time)
        how = Execution(offload=offload)
        model = make_ready(awake(tiny()).eval().requires_grad_(False), CPU, how)
        for _ in range(2):
            with visiting(model, CPU, how):
                assert torch.equal(cogvideox.predict(model, latents, text, None, time), expected)


@pytest.mark.parametrize("compiled", [False, True])
def test_blocks_are_compiled_where_that_is_asked_for(compiled: bool) -> None:
    model: Any = make_ready(tiny(), CPU, Execution(compile=compiled))
    # This is PyTorch's attribute. Nothing is compiled before the first call.
    found = [block._compiled_call_impl is not None for block in model.transformer_blocks]
    assert found == [compiled, compiled]


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--compile does not .* take --offload model"):
        Execution(offload="block", compile=True)
