"""FlashVideo as published: its two presets, and every setting in which its paper and its code disagree.

Each option has only its documented effect. The tests follow a sampler call by call, around a network that
records its inputs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from generation import draws
from generation.config import Config, Degradation, Objective, Sampling, Transformer
from generation.config import Lora as LoraConfig
from generation.configuring import stage_config
from generation.models import cogvideox, lora
from generation.presets import preset
from generation.process import diffusion, guidance, stage1, stage2
from generation.sample import enhance
from generation.sample.memory import Fit
from generation.sample.options import Options
from generation.text.tokens import null_like
from tests.generation.models.test_cogvideox import PUBLISHED, awake
from tests.generation.tiny_runs import merged

SHAPE = (4, 3, 4, 6)  # (C, t, h, w)


def differences(one: dict[str, Any], other: dict[str, Any], path: str = "") -> dict[str, tuple[Any, Any]]:
    """The differences of two configurations, as `key: (here, there)`."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*one, *other}):
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= differences(a, b, f"{path}{key}.")
        elif a != b:
            found[path + key] = (a, b)
    return found


def settings(stage: str, name: str) -> dict[str, Any]:
    return stage_config(stage, name, None, []).model_dump(mode="json")


# ---- the presets


@pytest.mark.parametrize("name", ["flashvideo", "flashvideo-released"])
def test_both_presets_have_what_paper_and_code_agree_on(name: str) -> None:
    one, two = (stage_config(stage, name, None, []) for stage in ("stage1", "stage2"))
    for config, size, std, scale in (
        (one, (256, 480), 1 / 0.7, 8),
        (two, (1072, 1920), 1 / 1.15258426, 13),
    ):
        (bucket,) = config.data.buckets
        assert (bucket.frames, bucket.height, bucket.width) == (49, *size)
        assert config.codec.std == std
        assert config.transformer.positions == "integer"
        assert (config.text.padded, config.text.max_tokens, config.text.dropout) == (True, 226, 0.1)
        assert config.sampling.negative_prompt == ""  # the null tokens are zeros
        assert config.sampling.guidance == scale
        assert config.objective.shift == 1.0  # training times are uniform
    assert (one.objective.kind, one.objective.snr_shift) == ("v", 1.0)
    assert one.lora is not None
    assert one.lora.rank == 128
    assert (two.sampling.shift, two.sampling.noise_step) == (2.5, 675)


def test_the_released_preset_differs_where_the_code_does() -> None:
    assert differences(settings("stage1", "flashvideo"), settings("stage1", "flashvideo-released")) == {
        "preset": ("flashvideo", "flashvideo-released"),
        "lora.alpha": (128.0, 1.0),
        "lora.targets": (
            ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "norm1.linear", "norm2.linear"],
            ["to_q", "to_k", "to_v", "to_out.0", "norm1.linear", "norm2.linear"],
        ),
        "sampling.steps": (50, 51),
        "sampling.guidance_ramp": ("dynamic", "published"),
        "sampling.timesteps": ("trailing", "floored"),
    }
    assert differences(settings("stage2", "flashvideo"), settings("stage2", "flashvideo-released")) == {
        "preset": ("flashvideo", "flashvideo-released"),
        "sampling.steps": (4, 5),
        "sampling.prompt_prefix": ("", "medium motion,"),
    }
    assert differences(settings("vae", "flashvideo"), settings("vae", "flashvideo-released")) == {
        "preset": ("flashvideo", "flashvideo-released")
    }


def test_presets_share_nothing_that_can_be_changed() -> None:
    released = preset("flashvideo-released", "stage2")
    released["data"]["buckets"].clear()
    released["phases"][0]["steps"] = -1
    assert preset("flashvideo", "stage2")["data"]["buckets"]
    assert preset("flashvideo-released", "stage2")["phases"][0]["steps"] == 25_000


def test_the_adapters_of_the_code_have_no_feed_forward() -> None:
    """The numbers of flashvideo.md, section 8. The model is on the meta device."""
    model = cogvideox.skeleton(PUBLISHED["5B"], 16, 4096)
    millions = {}
    for name in ("flashvideo", "flashvideo-released"):
        config = stage_config("stage1", name, None, []).lora
        assert config is not None
        millions[name] = lora.parameters(model, config) / 1e6
    assert millions["flashvideo"] == pytest.approx(132.1 + 165.2 + 203.7, abs=0.1)
    assert millions["flashvideo-released"] == pytest.approx(132.1 + 203.7, abs=0.1)


# ---- the work of a sampler


class Remembers(nn.Module):
    """A tiny network that records its inputs at each evaluation."""

    def __init__(self, noise_strength: bool) -> None:
        super().__init__()
        size = Transformer(layers=2, heads=2, head_dim=16, time_embed_dim=32, noise_strength=noise_strength)
        inner = awake(cogvideox.build(size, SHAPE[0], 24, 8, sample=(3, 8, 8)))
        self.calls: list[dict[str, Tensor]] = []
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)

    def forward(self, **given: Any) -> Any:
        self.calls.append(given)
        return self.inner(**given)


def trace(stage: str, monkeypatch: pytest.MonkeyPatch, overrides: dict[str, Any]) -> dict[str, Any]:
    """Records of sampling at tiny size: first latents, times, guidance, noise strength, text, positions."""
    model = Remembers(stage == "stage2")
    scales: list[float] = []
    guided = guidance.combine

    def noted(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
        scales.append(round(scale, 6))
        return guided(cond, uncond, scale)

    monkeypatch.setattr(guidance, "combine", noted)
    base: dict[str, Any] = {
        "sampling": {"steps": 3, "guidance": 4.0, "noise_step": 400 if stage == "stage2" else None},
        "objective": {"kind": "v" if stage == "stage1" else "flow"},
        "positions": "integer",
    }
    config = merged(base, overrides)
    sampling = Sampling.model_validate(config["sampling"])
    text, where = draws.normal((5, 24), "text"), {"positions": config["positions"]}
    if stage == "stage1":
        objective = Objective.model_validate(config["objective"])
        result = stage1.sample(model, objective, sampling, SHAPE, text, None, "key", 0, **where)
    else:
        low = draws.normal((1, *SHAPE), "low")
        step = stage2.noise_step(Degradation(), sampling, 18)
        result = stage2.sample(model, sampling, low, step, text, None, "key", 0, **where)
    first, pair = model.calls[0], next(c for c in model.calls if len(c["timestep"]) == 2)
    monkeypatch.undo()
    return {
        "evaluations": len(model.calls),
        "start": first["hidden_states"][:1],
        "times": [float(call["timestep"][0]) for call in model.calls],
        "scales": scales,
        "strength": None if first["ofs"] is None else first["ofs"][:1],
        "text": pair["encoder_hidden_states"],  # of the caption and of the contrast
        "positions": first["image_rotary_emb"][0],
        "result": result,
    }


def changed(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    def same(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a.shape == b.shape and torch.equal(a, b)
        return bool(a == b)

    return {name for name in one if not same(one[name], other[name])}


@pytest.mark.parametrize(
    ("stage", "overrides", "expected"),
    [
        ("stage1", {"sampling": {"timesteps": "floored"}}, {"times"}),
        ("stage1", {"sampling": {"steps": 4}}, {"evaluations", "times", "scales"}),
        ("stage1", {"sampling": {"guidance": 8.0}}, {"scales"}),
        ("stage1", {"sampling": {"guidance_ramp": "published"}}, {"scales"}),
        ("stage1", {"sampling": {"guidance_ramp": "dynamic"}}, {"scales"}),
        ("stage1", {"objective": {"snr_shift": 3.0}}, set()),
        ("stage1", {"positions": "resized"}, {"positions"}),
        ("stage2", {"sampling": {"steps": 4}}, {"evaluations", "times", "scales"}),
        ("stage2", {"sampling": {"shift": 2.5}}, {"times"}),
        ("stage2", {"sampling": {"guidance": 13.0}}, {"scales"}),
        ("stage2", {"sampling": {"noise_step": 675}}, {"start", "strength"}),
        ("stage2", {"positions": "resized"}, {"positions"}),
    ],
)
def test_an_option_of_sampling_changes_what_it_should_and_nothing_else(
    stage: str, overrides: dict[str, Any], expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = trace(stage, monkeypatch, {})
    assert changed(before, trace(stage, monkeypatch, {})) == set()
    assert changed(before, trace(stage, monkeypatch, overrides)) == expected | {"result"}


def test_as_released_stage_one_visits_its_times_with_its_guidance(monkeypatch: pytest.MonkeyPatch) -> None:
    """flashvideo.md, section 1: the first and the last of 51 steps."""
    found = trace("stage1", monkeypatch, {"sampling": settings("stage1", "flashvideo-released")["sampling"]})
    assert found["evaluations"] == 51
    assert found["times"][:3] == [999, 979, 959]
    assert found["times"][-1] == 19
    assert found["scales"][:3] == pytest.approx([8.29, 4.00, 2.40], abs=0.0051)
    # At scale 1 there is no contrast: the network evaluates only the caption.
    assert len(found["scales"]) == sum(
        diffusion.guidance_scale("published", 8, i, 51, k) != 1
        for i, k in enumerate(map(int, found["times"]))
    )


def test_as_released_stage_two_visits_its_times_with_its_guidance(monkeypatch: pytest.MonkeyPatch) -> None:
    """flashvideo.md, section 2.5, with the paper's four evaluations and the code's five."""
    for name, times in (
        ("flashvideo", [1000, 882.4, 714.3, 454.5]),
        ("flashvideo-released", [1000, 909.1, 789.5, 625, 384.6]),
    ):
        found = trace("stage2", monkeypatch, {"sampling": settings("stage2", name)["sampling"]})
        assert found["times"] == pytest.approx(times, abs=0.06)
        assert set(found["scales"]) == {13}
        assert found["strength"].tolist() == [675]
        assert torch.equal(found["text"][1], null_like(found["text"][0]))
        a = 0.263959  # the factor of step 675
        start = found["start"][0].transpose(0, 1)
        low = draws.normal((1, *SHAPE), "low")[0]
        noise = draws.normal((1, *SHAPE), "enhance", "key", 0)[0]
        torch.testing.assert_close(start, a * low + (1 - a * a) ** 0.5 * noise, atol=1e-5, rtol=0)


def test_a_prefix_is_told_to_the_text_encoder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files keep the prompts without a prefix, because another stage may need another prefix."""
    told: list[list[str]] = []

    class Text:
        def get(self, captions: list[str]) -> list[Tensor]:
            told.append(list(captions))
            return [draws.normal((2, 24), "text", c) for c in captions]

        def release(self) -> None:
            pass

    class Stop(Exception):
        pass

    class Codec:
        def encode(self, video: Tensor) -> Tensor:
            raise Stop

    class Trained:
        text, codec, device = Text(), Codec(), torch.device("cpu")
        config = Config.model_validate({**settings("stage2", "flashvideo-released"), "preset": ""})

    source = enhance.Source((1, 16, 16), lambda: torch.zeros(1, 3, 1, 16, 16), 8, "a red car", "", 0)
    options = Options()
    trained: Any = Trained()
    enhance._embed(trained, [source.prompt], ["blurry"], options)
    plan = enhance.Plan(
        options.shape(trained.config),
        options.sampling(trained.config),
        675,
        "blurry",
        seed=0,
        fit=Fit(apart=False, told=""),
    )
    with pytest.raises(Stop):
        enhance.enhance(trained, nn.Identity(), source, plan)
    assert told == [["medium motion,a red car", "blurry", ""], ["medium motion,a red car", "blurry"]]
    assert source.prompt == "a red car"


# ---- training


def test_shifted_training_times_change_nothing_but_times() -> None:
    plain, shifted = Objective(kind="flow"), Objective(kind="flow", shift=2.5)
    for k in range(8):
        t = stage1.training_time(plain, k, "seed")
        assert stage1.training_time(shifted, k, "seed") == pytest.approx(t / (t + 2.5 * (1 - t)))
    model = awake(cogvideox.build(Transformer(layers=1, heads=2, head_dim=16, time_embed_dim=32), 4, 24, 8))
    clean, text = draws.normal((1, *SHAPE), "clean"), [draws.normal((5, 24), "text")]
    losses = [stage1.loss(model, o, clean, text, [0.3], [("key",)]) for o in (plain, shifted)]
    assert torch.equal(*losses)  # at a given time


def test_the_noise_range_of_training_is_the_configured_one() -> None:
    for span in ((650, 750), (600, 750)):
        degradation = Degradation(noise_steps=span)
        assert stage2.noise_steps(degradation, 104_520) == span
        drawn = [stage2.draw_noise_step(span, k, "seed") for k in range(2000)]
        assert (min(drawn), max(drawn)) == span
    # Sampling uses separate settings.
    assert stage2.noise_step(Degradation(noise_steps=(600, 750)), Sampling(noise_step=675), 104_520) == 675


def test_alpha_scales_the_update_and_targets_choose_the_layers() -> None:
    size = Transformer(layers=2, heads=2, head_dim=16, time_embed_dim=32)

    def adapted(**how: Any) -> Any:
        model = awake(cogvideox.build(size, 4, 24, 8))
        lora.add(model, LoraConfig(rank=4, **how))
        with torch.no_grad():
            for name, p in lora.trainable(model).items():
                p.copy_(draws.normal(p.shape, name))
        return model

    base = dict(awake(cogvideox.build(size, 4, 24, 8)).named_parameters())
    whole, scaled, released = (
        dict(lora.fuse(m) or m.named_parameters())
        for m in (
            adapted(alpha=4.0),
            adapted(alpha=1.0),
            adapted(alpha=4.0, targets=settings("stage1", "flashvideo-released")["lora"]["targets"]),
        )
    )
    for name, p in base.items():
        torch.testing.assert_close(scaled[name] - p, (whole[name] - p) / 4, atol=1e-5, rtol=1e-4)
        if ".ff." in name:
            assert torch.equal(released[name], p)
        else:
            assert torch.equal(released[name], whole[name])
    moved = {name.split(".", 2)[2] for name, p in base.items() if not torch.equal(whole[name], p)}
    assert moved == {
        *(f"attn1.{k}.weight" for k in ("to_q", "to_k", "to_v", "to_out.0")),
        *("ff.net.0.proj.weight", "ff.net.2.weight", "norm1.linear.weight", "norm2.linear.weight"),
    }
