"""Slice VAE learns in minutes of one thread, by the real trainer, and layers over time make it better."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.generation.train import vae_learning
from tests.generation.train.vae_learning import FRAMES, VARIANTS, Result, configuration, render

SECONDS = 420  # of one thread, for each of two networks; the whole test takes less than 20 minutes
PSNR = 26.0  # dB, on held-out clips
GAIN = 1.0  # dB over a network without layers over time, with equal seconds and numbers


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Result]]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield vae_learning.compare(tmp_path_factory.mktemp("learning"), SECONDS)[0]
    torch.set_num_threads(before)


def test_both_have_equally_many_numbers() -> None:
    sizes = {}
    for name, vae in VARIANTS.items():
        settings = configuration(**vae).vae
        sizes[name] = settings.channels * FRAMES // settings.temporal / settings.spatial**2
    assert len(set(sizes.values())) == 1


def test_the_ground_stands_still_and_clips_differ() -> None:
    from tests.generation import shapes

    one, other = render(shapes.ALL[0], 1, 0), render(shapes.ALL[0], 1, 1)
    assert np.median(one.std(0)) == 0
    assert 0.02 < (one.std(0) > 0).mean() < 0.9
    assert np.abs(one.astype(int) - other).mean() > 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_it_learns_to_give_back_what_it_has_not_seen(results: dict[str, Result]) -> None:
    found = results["slice"]
    assert found.psnr >= PSNR
    assert found.psnr >= found.untrained + 1.0  # as an untrained network may pass the first bar


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_layers_over_time_pay(results: dict[str, Result]) -> None:
    assert results["slice"].psnr >= results["without time"].psnr + GAIN
    assert results["slice"].seconds == pytest.approx(results["without time"].seconds, rel=0.05)
