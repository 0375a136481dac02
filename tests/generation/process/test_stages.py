"""Losses and samplers of the two stages, around a real transformer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from generation import draws
from generation.config import Degradation, Objective, Sampling, Transformer
from generation.models.cogvideox import build
from generation.process import diffusion, guidance, stage1, stage2
from generation.text.tokens import null_like

CHANNELS, TEXT_DIM = 6, 10
SHAPE = (CHANNELS, 2, 4, 4)


def network(noise_strength: bool, awake: bool) -> nn.Module:
    """A tiny transformer. Its output is zero after initialisation. With `awake`, the output is not zero."""
    settings = Transformer(layers=2, heads=2, head_dim=16, time_embed_dim=32, noise_strength=noise_strength)
    model = build(settings, CHANNELS, TEXT_DIM, max_tokens=8)
    if awake:
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.add_(0.1 * draws.normal(p.shape, "awake", name))
    return model.eval()


def latents(*key: int | str, batch: int = 2) -> Tensor:
    return draws.normal((batch, *SHAPE), "latents", *key)


def text(length: int, *key: int | str) -> Tensor:
    return draws.normal((length, TEXT_DIM), "text", *key)


KEYS: list[stage1.Key] = [(0, 0), (0, 1)]


@pytest.mark.parametrize("kind", ["v", "flow"])
def test_the_loss_of_a_network_that_says_nothing_is_the_target_squared(kind: str) -> None:
    model, z = network(False, awake=False), latents()
    at = [0.2, 0.9]
    objective = Objective.model_validate({"kind": kind})
    loss = stage1.loss(model, objective, z, [text(3, 0), text(5, 1)], at, KEYS)
    for i, t in enumerate(at):
        noise = draws.normal(SHAPE, "noise", *KEYS[i]).double()
        if kind == "v":
            k = int(1000 * (1 - t))
            a = float(diffusion.schedule(1.0)[k])
            target = a * noise - math.sqrt(1 - a * a) * z[i].double()
        else:
            target = z[i].double() - noise
        assert float(loss[i].detach()) == pytest.approx(float(target.square().mean()), rel=1e-5)


def test_stage_two_learns_the_way_from_the_degraded_latent() -> None:
    model, clean, low = network(True, awake=False), latents("clean"), latents("low")
    steps = [675, 100]
    loss = stage2.loss(model, clean, low, [text(3, 0), text(3, 1)], [0.1, 0.7], steps, KEYS)
    for i, k in enumerate(steps):
        a = float(diffusion.schedule(1.0)[k])
        noise = draws.normal(SHAPE, "noise", *KEYS[i]).double()
        start = a * low[i].double() + math.sqrt(1 - a * a) * noise
        expected = float((clean[i].double() - start).square().mean())  # at any time: the path is straight
        assert float(loss[i].detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["v", "flow"])
def test_each_sample_of_a_batch_has_the_loss_that_it_has_alone(kind: str) -> None:
    model, z = network(False, awake=True), latents()
    words = [text(2, 0), text(6, 1)]
    objective = Objective.model_validate({"kind": kind})
    together = stage1.loss(model, objective, z, words, [0.3, 0.8], KEYS)
    alone = [
        stage1.loss(model, objective, z[i : i + 1], words[i : i + 1], [[0.3, 0.8][i]], KEYS[i : i + 1])
        for i in range(2)
    ]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-5)
    assert not torch.allclose(together[0], together[1])


def sampled(
    model: nn.Module, stage: int, sampling: Sampling, negative: Tensor | None, seed: int = 0
) -> Tensor:
    words = text(4, "prompt")
    if stage == 2:
        low = latents("low", batch=1)
        return stage2.sample(model, sampling, low, 400, words, negative, "key", seed)
    objective = Objective(kind="v") if stage == 1 else Objective(kind="flow")
    return stage1.sample(model, objective, sampling, SHAPE, words, negative, "key", seed)


STAGES = [pytest.param(0, id="stage1-flow"), pytest.param(1, id="stage1-v"), pytest.param(2, id="stage2")]


@pytest.mark.parametrize("stage", STAGES)
def test_guidance_one_is_the_conditional_prediction_alone(stage: int) -> None:
    """The negative prompt has no effect either."""
    model = network(stage == 2, awake=True)
    plain = Sampling(steps=3, guidance=1.0)
    result = sampled(model, stage, plain, None)
    assert torch.equal(result, sampled(model, stage, plain, text(4, "negative")))
    # The same result from both predictions: uncond + s (cond - uncond), with s almost 1.
    near = sampled(model, stage, Sampling(steps=3, guidance=1.0 + 1e-7), None)
    assert torch.allclose(result, near, atol=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_the_negative_prompt_matters(stage: int) -> None:
    model = network(stage == 2, awake=True)
    guided = Sampling(steps=3, guidance=4.0)
    default = sampled(model, stage, guided, None)
    assert torch.equal(default, sampled(model, stage, guided, null_like(text(4, "prompt"))))
    changed = sampled(model, stage, guided, text(4, "negative"))
    assert (default - changed).abs().mean() > 1e-3
    longer = sampled(model, stage, guided, text(7, "negative"))  # another length than the prompt
    assert torch.isfinite(longer).all()
    assert (longer - changed).abs().mean() > 1e-4


@pytest.mark.parametrize("stage", STAGES)
def test_a_seed_gives_the_same_bits_and_another_one_others(stage: int) -> None:
    model = network(stage == 2, awake=True)
    way = Sampling(steps=2, guidance=2.0)
    state = torch.get_rng_state()
    assert torch.equal(sampled(model, stage, way, None, 3), sampled(model, stage, way, None, 3))
    assert not torch.equal(sampled(model, stage, way, None, 3), sampled(model, stage, way, None, 4))
    assert torch.equal(state, torch.get_rng_state())  # the global random state did not change


def test_a_velocity_of_zero_leaves_the_start_as_it_is() -> None:
    model = network(True, awake=False)
    low = latents("low", batch=1)
    made = stage2.sample(model, Sampling(steps=4, guidance=1.0), low, 675, text(3), None, "key")
    noise = draws.normal((1, *SHAPE), "enhance", "key")
    a = float(diffusion.schedule(1.0)[675])
    assert torch.allclose(made, a * low + math.sqrt(1 - a * a) * noise, atol=1e-6)
    first = stage1.sample(
        network(False, awake=False), Objective(kind="flow"), Sampling(steps=5), SHAPE, text(3), None, "key"
    )
    assert torch.equal(first, draws.normal((1, *SHAPE), "sample", "key"))


def test_evaluations_are_counted_for_whoever_shows_progress() -> None:
    seen: list[tuple[int, int]] = []
    stage1.sample(
        network(False, awake=False),
        Objective(kind="v"),
        Sampling(steps=3),
        SHAPE,
        text(3),
        None,
        "key",
        on_step=lambda done, steps: seen.append((done, steps)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_the_dynamic_ramp_follows_the_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    real = guidance.combine
    monkeypatch.setattr(guidance, "combine", lambda c, u, s: seen.append(s) or real(c, u, s))
    way = Sampling(steps=6, guidance=8.0, guidance_ramp="dynamic")
    sampled(network(False, awake=True), 1, way, None)
    ramp = [1 + 8 * (1 - math.cos(math.pi * (i / 6) ** 5)) / 2 for i in range(6)]
    # Where the ramp is exactly 1, the second prediction is skipped.
    assert seen == pytest.approx([s for s in ramp if s != 1.0], abs=1e-6)


def test_training_times_cover_the_unit_interval_evenly() -> None:
    at = [stage1.training_time(Objective(kind="flow"), i, 0, 0, 0) for i in range(100, 164)]
    assert len({int(t * 32) for t in at}) == 32
    warped = [stage1.training_time(Objective(kind="flow", shift=2.5), i, 0, 0, 0) for i in range(64)]
    assert sum(warped) / 64 < 0.45 < sum(at) / 64


def test_noise_steps_of_training_and_sampling() -> None:
    published = 104_520
    assert stage2.noise_steps(Degradation(), published) == (600, 900)
    assert stage2.noise_steps(Degradation(noise_range="narrow"), published) == (650, 750)
    assert stage2.noise_steps(Degradation(noise_steps=(10, 20)), published) == (10, 20)
    assert stage2.noise_step(Degradation(), Sampling(), published) == 675
    assert stage2.noise_step(Degradation(noise_steps=(10, 20)), Sampling(), published) == 15
    assert stage2.noise_step(Degradation(noise_steps=(10, 20)), Sampling(noise_step=7), published) == 7
    drawn = [stage2.draw_noise_step((5, 8), i, 0) for i in range(200)]
    assert set(drawn) == {5, 6, 7, 8}


def test_scaling_a_video_keeps_flat_colours_and_its_own_size() -> None:
    video = torch.full((1, 3, 2, 16, 24), 0.25)
    larger = stage2.resize(video, 48, 64)
    assert larger.shape == (1, 3, 2, 48, 64)
    assert torch.allclose(larger, torch.full_like(larger, 0.25), atol=1e-6)
    assert stage2.resize(video, 16, 24) is video


def test_noise_steps_and_times_of_a_training_are_apart() -> None:
    """Within one epoch, every quarter of the times occurs with every quarter of the noise steps."""
    met = {
        (
            int(stage1.training_time(Objective(kind="flow"), i, 0) * 4),
            (stage2.draw_noise_step((600, 899), i, 0) - 600) // 75,
        )
        for i in range(400)
    }
    assert len(met) == 16
