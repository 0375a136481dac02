"""A stage's configuration: errors are reported before any work, and a resume may change some keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from generation.codecs.open import open_codec
from generation.config import (
    HARMLESS,
    Bucket,
    Config,
    Degradation,
    Sampling,
    Train,
    content_hash,
    differences,
)
from generation.configuring import stage_config
from generation.presets import PRESETS, preset
from tests.generation.tiny_runs import tiny

STAGES = ("stage1", "stage2")


def refused(*overrides: str, stage: str = "stage1", name: str = "tiny", file: Path | None = None) -> str:
    with pytest.raises(ValueError) as error:
        stage_config(stage, name, str(file) if file else None, overrides)
    assert "Traceback" not in str(error.value)
    return str(error.value)


# ---- presets


@pytest.mark.parametrize("name", [n + fast for n in PRESETS for fast in ("", "-fast")])
@pytest.mark.parametrize("stage", STAGES)
def test_the_presets_are_configurations(name: str, stage: str) -> None:
    config = stage_config(stage, name, None, [])
    assert (config.stage, config.preset) == (stage, name)
    assert Config.model_validate_json(config.model_dump_json()) == config
    for k in range(len(config.phases)):
        config.phase(k)


def test_fast_variants_have_wider_heads_unless_weights_decide() -> None:
    for name, stage in (("small", "stage1"), ("small", "stage2"), ("flashvideo", "stage2")):
        plain, fast = (stage_config(stage, n, None, []).transformer for n in (name, f"{name}-fast"))
        assert fast.head_dim == 128
        assert fast.heads * fast.head_dim == plain.heads * plain.head_dim
    published = stage_config("stage1", "flashvideo-fast", None, [])
    assert published.transformer == stage_config("stage1", "flashvideo", None, []).transformer


def test_the_published_sizes() -> None:
    first, second = (stage_config(stage, "flashvideo", None, []) for stage in STAGES)
    assert first.lora
    assert (first.lora.rank, first.lora.alpha) == (128, 128)
    assert set(first.lora.targets) == {
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("ff.net.0.proj", "ff.net.2"),
        *("norm1.linear", "norm2.linear"),
    }
    assert (first.transformer.layers, first.transformer.heads, first.transformer.head_dim) == (42, 48, 64)
    assert (first.sampling.steps, first.sampling.guidance, first.sampling.guidance_ramp) == (50, 8, "dynamic")
    assert first.text.padded
    assert first.text.max_tokens == 226
    assert second.lora is None
    assert [phase.steps for phase in second.phases] == [25_000, 30_000, 1_000, 4_000, 700]
    assert second.steps == 60_700
    ranges = [second.phase(k)[2].noise_steps for k in range(5)]
    assert ranges == [(600, 900)] * 3 + [(650, 750)] * 2
    assert (second.sampling.steps, second.sampling.shift, second.sampling.noise_step) == (4, 2.5, 675)


def test_a_preset_is_a_copy() -> None:
    one = preset("tiny", "stage1")
    one["train"]["steps"] = -1
    one["data"]["buckets"].clear()
    assert preset("tiny", "stage1")["train"]["steps"] > 0
    assert preset("tiny", "stage1")["data"]["buckets"]


def test_an_unknown_preset_is_answered_with_those_there_are() -> None:
    text = refused(name="huge")
    assert "--preset: preset huge" in text
    for name in PRESETS:
        assert f"{name}, {name}-fast" in text


# ---- file and overrides


def test_a_file_is_laid_over_the_preset_and_overrides_over_both(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 7\ntrain: {steps: 5, batch_size: 3}\nlora: null\n")
    config = stage_config("stage1", "tiny", str(path), ["train.steps=9", "text.dropout=0"])
    assert (config.seed, config.train.steps, config.train.batch_size, config.text.dropout) == (7, 9, 3, 0)
    assert config.train.learning_rate == preset("tiny", "stage1")["train"]["learning_rate"]


def test_a_stored_configuration_can_be_used_again(tmp_path: Path) -> None:
    config = stage_config("stage2", "tiny", None, ["train.steps=9"])
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json(indent=1))
    assert stage_config("stage2", "small", str(path), []) == config
    assert "stage: the configuration is for stage2, but the command is for stage1" in refused(file=path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"train: [", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"- 1\n", "mapping of sections"),
        (b"train: {step: 3}\n", "unknown key train.step: there are"),
    ],
)
def test_a_wrong_file_is_named(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_bytes(content)
    assert says in refused(file=path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "No such file" in refused(file=tmp_path / "nowhere.yaml")


# ---- errors


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.learnig_rate=3", ["unknown key train.learnig_rate: there are accumulate", "learning_rate"]),
        ("train.steps=0", ["train.steps", "greater than or equal to 1", "(got 0)"]),
        ("train.learning_rate=nan", ["train.learning_rate", "finite"]),
        ("train.precision=fp16", ["train.precision", "'bf16'"]),
        ("transformer.head_dim=24", ["transformer.head_dim", "multiple of 16", "(got 24)"]),
        (
            "transformer.noise_strength=true",
            ["transformer.noise_strength: only stage2 has a degraded start; write false"],
        ),
        ("codec.kind=cogvideox", ["codec.model: name a folder or a hub model"]),
        ("text.kind=t5", ["text.model: name a folder or a hub model", "t5"]),
        ("lora={rank: 4}", ["lora: it adapts a trained model; name one in transformer.pretrained"]),
        (
            "degradation.noise_steps=[900, 600]",
            ["degradation.noise_steps: two steps between 0 and 999, the smaller first", "(900, 600)"],
        ),
        ("degradation.scale=[0.5, 2]", ["degradation.scale: two factors of at least 1", "(0.5, 2.0)"]),
        ("data.workers=-1", ["data.workers", "(got -1)"]),
        ("phases=[{data: {}}]", ["phases.0.steps"]),
        ("phases=[{steps: 2}, {steps: 3, data: {fps: 0}}]", ["phases.1.data.fps: ", "greater than 0"]),
        (
            "phases=[{steps: 3, degradation: {scale: [3, 2]}}]",
            ["phases.0.degradation.scale: two factors", "the smaller first"],
        ),
        (
            "phases=[{steps: 3, data: {fpz: 3}}]",
            ["unknown key phases.0.data.fpz: there are buckets, crop, fps"],
        ),
        ("phases=[{steps: 3, data: 7}]", ["phases.0.data: ", "dictionary (got 7)"]),
        ("phases=3", ["phases: ", "(got 3)"]),
        (
            "phases=[{steps: 3, data: {buckets: [{frames: 8, height: 32, width: 48}]}}]",
            ["phases.0.data.buckets: 8 frames"],
        ),
        ("data.buckets=[{framez: 9}]", ["unknown key data.buckets.0.framez: there are crop, frames"]),
    ],
)
def test_what_is_wrong_is_named_with_what_would_be_right(override: str, says: list[str]) -> None:
    text = refused(override)
    for part in says:
        assert part in text
    assert "validation error" not in text
    # No key is named twice, as in "codec: codec.model: …".
    assert not re.search(r"\b(\w+): (\w+\.)*\1\.", text)


def test_what_is_wrong_below_phases_is_told_of_where_it_stands() -> None:
    text = refused("data.fps=0", "phases=[{steps: 3, data: {crop: random}}]")
    assert text.startswith("data.fps: ")
    assert "phases" not in text


def test_stage_two_is_a_flow_and_has_a_noise_strength() -> None:
    assert "objective.kind: stage2 is a flow; write flow" in refused("objective.kind=v", stage="stage2")
    text = refused("transformer.noise_strength=false", stage="stage2")
    assert "transformer.noise_strength: stage2 needs it; write true" in text


@pytest.mark.parametrize(
    ("bucket", "says"),
    [
        ((8, 32, 48), "8 frames are not 4n + 1; take 5 or 9"),
        ((3, 32, 48), "3 frames are not 4n + 1; take 1 or 5"),
        (
            (9, 36, 48),
            "height 36 is no multiple of 16 (the codec's 8 pixels times the transformer's patch 2)",
        ),
        ((9, 32, 8), "width 8 is no multiple of 16"),
    ],
)
@pytest.mark.parametrize("phased", [False, True])
def test_shapes_that_do_not_divide_are_refused_with_neighbours_that_do(
    bucket: tuple[int, int, int], says: str, phased: bool
) -> None:
    data = {"buckets": [dict(zip(("frames", "height", "width"), bucket, strict=True))]}
    sections: dict[str, Any] = (
        {"phases": [{"steps": 3}, {"steps": 1, "data": data}]} if phased else {"data": data}
    )
    with pytest.raises(ValueError, match=r"data\.buckets: ") as caught:
        Config.model_validate({"stage": "stage1", **sections})
    assert says in str(caught.value)
    assert "take " in str(caught.value)


def test_what_is_suggested_fits() -> None:
    config = tiny()
    for frames in range(1, 14):
        for side in range(1, 40):
            try:
                config.check_shape(Bucket(frames=frames, height=side, width=16))
            except ValueError as error:
                a, _, b = str(error).rpartition("take ")[2].partition(" or ")
                for good in (int(a), int(b)):
                    right = (good, 16) if "frames are" in str(error) else (1, good)
                    config.check_shape(Bucket(frames=right[0], height=right[1], width=16))
            else:
                assert frames % 4 == 1
                assert side % 8 == 0


def test_the_latent_grid_is_that_of_the_codec() -> None:
    config = tiny()
    codec = open_codec(config.codec)
    for frames in (1, 5, 9, 13):
        bucket = Bucket(frames=frames, height=16, width=24)
        assert config.latent_grid(bucket) == codec.grid(frames, 16, 24)


# ---- phases


def test_phases_are_laid_over_the_configuration() -> None:
    config = tiny(
        "stage2",
        data={"fps": 6, "where": {"aesthetics.mean": {"min": 4}}},
        degradation={"noise_steps": [100, 300]},
        phases=[{"steps": 3}, {"steps": 4, "data": {"crop": "random"}, "degradation": {"scale": [1, 2]}}],
    )
    assert config.steps == 7
    assert config.phase(0) == (3, config.data, config.degradation)
    steps, data, degradation = config.phase(1)
    assert (steps, data.crop, data.fps, data.where) == (4, "random", 6, config.data.where)
    assert degradation == Degradation(scale=(1, 2), noise_steps=(100, 300))
    assert (tiny().steps, tiny().phase(0)[0]) == (20, 20)


# ---- keys that a resume may change


def test_every_harmless_key_is_one() -> None:
    data = tiny().model_dump()
    for key in HARMLESS:
        section, _, name = key.rpartition(".")
        assert name in (data[section] if section else data), key


def test_differences_name_what_decides_what_is_learnt() -> None:
    config = tiny()
    assert differences(config, config) == []
    harmless = {"steps": 7, "checkpoint_every": 3, "sample_every": 9, "cache_latents": True}
    assert differences(config, tiny(train=harmless, data={"workers": 3}, sampling={"guidance": 2})) == []
    other = tiny(
        seed=3,
        train={"clip_norm": 0.5},
        transformer={"pretrained": "x"},
        lora={"rank": 4},
        phases=[{"steps": 1}],
    )
    lines = differences(config, other)
    for text in (
        "seed: 0 -> 3",
        "train.clip_norm: 1.0 -> 0.5",
        'transformer.pretrained: null -> "x"',
        "lora.rank: null -> 4",
    ):
        assert text in lines
    assert {line.partition(":")[0] for line in lines} >= {"lora.alpha", "lora.targets", "phases"}
    assert {line.partition(":")[0] for line in differences(other, config)} == {
        line.partition(":")[0] for line in lines
    }


@pytest.mark.parametrize("name", sorted(set(Train.model_fields) - {"betas", "precision"}))
def test_a_number_of_training_is_harmless_or_noticed(name: str) -> None:
    config = tiny()
    value = getattr(config.train, name)
    other = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value / 2
    changed = tiny(train={name: other})
    assert changed != config
    assert bool(differences(config, changed)) == (f"train.{name}" not in HARMLESS)


def test_all_of_sampling_is_harmless() -> None:
    assert {f"sampling.{name}" for name in Sampling.model_fields} <= HARMLESS


def test_a_hash_stands_for_content() -> None:
    assert content_hash({"a": 1, "b": [2]}) == content_hash({"b": [2], "a": 1})
    assert len({content_hash(v) for v in ({"a": 1}, {"a": "1"}, {"a": [1]}, [["a", 1]], "a", None)}) == 6
