"""The estimate of memory before sampling: the way that fits, and the advice when no way fits."""

from __future__ import annotations

import pytest
import torch

from generation.codecs.open import open_codec
from generation.config import Bucket, Sampling
from generation.sample import memory
from generation.sample.memory import Fit, Offload, SamplingNeed
from tests.generation.tiny_runs import tiny


def test_sampling_that_does_not_fit_is_refused_with_what_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """With less memory, guidance is computed apart, and parts move to the memory of the CPU."""
    config = tiny(transformer={"layers": 40, "heads": 8, "head_dim": 64})
    codec, shape = open_codec(config.codec), Bucket(frames=9, height=32, width=48)
    monkeypatch.setattr(memory, "uses_bf16", lambda *_: False)
    have = 0.0
    monkeypatch.setattr(memory, "available", lambda device: have)

    def fit(
        device: str,
        guidance: str = "auto",
        offload: Offload = "none",
        sampling: Sampling = Sampling(),  # noqa: B008
    ) -> Fit:
        where = torch.device(device)
        return memory.check_sampling(config, codec, 384, shape, sampling, where, offload, guidance)

    def need(rows: int, offload: Offload = "none") -> SamplingNeed:
        return memory.sampling_need(config, codec, 384, shape, rows, False, offload)

    pair, row, blocks = need(2), need(1), need(1, "block")
    assert blocks.total < row.total < pair.total
    have = pair.total
    assert not fit("cuda").apart
    assert fit("cuda").told.startswith("memory: about ")
    have = pair.total - 1
    assert fit("cuda").apart
    assert fit("cuda").told.endswith("guidance apart")
    assert fit("cuda", "apart").apart
    with pytest.raises(
        ValueError, match=r"9 frames of 48x32\. memory: .*--offload model; --guidance-batch apart"
    ):
        fit("cuda", "together")
    have = row.total - 1
    with pytest.raises(ValueError, match=r"--offload model; fewer frames; a smaller size; or a larger GPU$"):
        fit("cuda")
    have = need(1, "model").total - 1
    with pytest.raises(ValueError, match="--offload block"):
        fit("cuda", offload="model")
    assert fit("cuda", offload="block")
    with pytest.raises(ValueError, match="too little memory") as caught:
        fit("cpu", offload="block")  # parts of a CPU stay in its memory
    assert "--offload" not in str(caught.value)
    have = row.total
    assert not fit("cuda", sampling=Sampling(guidance=1.0)).apart  # without guidance there is one row


def test_a_phase_holds_what_is_there_in_it() -> None:
    need = SamplingNeed(100, 20, 3, 10, 40, 5, "none")
    assert (need.network_phase, need.codec_phase) == (133, 158)
    one = SamplingNeed(100, 20, 3, 10, 40, 5, "model")
    assert (one.network_phase, one.codec_phase, one.total) == (123, 58, 123)
