"""The JSON Schema of a stage's configuration, by a validator that knows nothing of reelmill."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from generation.config import Config
from generation.configuring import stage_config
from generation.json_schema import json_schema
from generation.presets import PRESETS, preset
from jobs.common import CONFIGS

STAGES = ("vae", "stage1", "stage2")
NAMES = [f"{name}{fast}" for name in PRESETS for fast in ("", "-fast")]


def validator(stage: str) -> Draft202012Validator:
    return Draft202012Validator(json_schema(stage))


def lists(value: Any) -> Any:
    """As YAML has it: without tuples."""
    return yaml.safe_load(yaml.safe_dump(value))


@pytest.mark.parametrize("stage", STAGES)
def test_presets_and_what_they_resolve_to_are_valid(stage: str) -> None:
    schema = validator(stage)
    Draft202012Validator.check_schema(schema.schema)
    assert schema.schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for name in NAMES:
        schema.validate(lists(preset(name, stage)))
        schema.validate(Config.model_validate(preset(name, stage)).model_dump(mode="json"))  # config.json


def test_the_changes_of_the_shipped_recipes_are_valid() -> None:
    changes = [
        ("stage2" if name == "lossless" else name, section["config"])
        for path in CONFIGS.glob("recipe-*.yaml")
        for name, section in yaml.safe_load(path.read_text()).items()
        if name in (*STAGES, "lossless")
    ]
    assert len(changes) >= 10
    for stage, values in changes:
        validator(stage).validate(values)


RIGHT = [
    ("stage1", "{}"),
    ("stage1", "train: {steps: 10, learning_rate: 1.0e-4, cache_text: false}"),
    ("stage1", "{transformer: {pretrained: RUN/stage1}, lora: {rank: 16}}"),
    ("stage1", "phases: [{steps: 3, data: {fps: 4}}, {steps: 4}]"),
    ("stage1", "data: {where: {aesthetics.mean: {min: 5}}, buckets: [{frames: 9, height: 32, width: 48}]}"),
    ("stage2", "{stage: stage2, degradation: {scale: [2, 3], noise_steps: [10, 20]}}"),
    ("vae", "{vae: {widths: [16, 24]}, phases: [{steps: 3}, {steps: 3, decoder_only: true}]}"),
]
WRONG = [
    ("stage1", "trian: {steps: 3}"),
    ("stage1", "train: {step: 3}"),
    ("stage1", "train: {steps: 0}"),
    ("stage1", "train: {learning_rate: -1.0}"),
    ("stage1", "train: {betas: [0.9]}"),
    ("stage1", "train: {precision: fp64}"),
    ("stage1", "stage: stage2"),
    ("stage1", "data: {buckets: []}"),
    ("stage1", "data: {buckets: [{frames: 9, height: 32}]}"),
    ("stage1", "data: {where: {aesthetics.mean: {low: 5}}}"),
    ("stage1", "transformer: {head_dim: 20}"),
    ("stage1", "phases: [{data: {fps: 4}}]"),
    ("stage1", "phases: [{steps: 3, data: {fpss: 4}}]"),
    ("stage2", "phases: [{steps: 3, degradation: {strong_probability: 2}}]"),
    ("stage2", "degradation: {noise_range: broad}"),
    ("stage2", "lora: 16"),
    ("vae", "vae: {patch: 3}"),
    ("vae", "vae_loss: {l1: -1}"),
]


@pytest.mark.parametrize(("stage", "text"), RIGHT)
def test_what_is_right_is_so_for_both(stage: str, text: str) -> None:
    values = yaml.safe_load(text)
    validator(stage).validate(values)
    stage_config(stage, "tiny", values, [])


@pytest.mark.parametrize(("stage", "text"), WRONG)
def test_what_is_wrong_is_so_for_both(stage: str, text: str) -> None:
    values = yaml.safe_load(text)
    assert not validator(stage).is_valid(values)
    with pytest.raises(ValueError):
        stage_config(stage, "tiny", values, [])
