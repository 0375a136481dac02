"""Presets: complete configurations by name, from which a user starts.

`tiny` is for two CPU cores. `small` trains from scratch on one GPU. `flashvideo` has the sizes and settings
of the FlashVideo paper. `flashvideo-released` has those of the published code, for the published weights.
`-fast` variants have heads of 128 dimensions instead of 64, at about equal cost in FLOPs. Their speed on a
GPU was not measured. A stage that starts from published weights keeps the heads of the weights.
"""

from __future__ import annotations

import copy
from typing import Any

from generation.config import ADAPTIVE_NORM, ATTENTION

Section = dict[str, Any]


def _flow(shift: float = 1.0) -> Section:
    return {"kind": "flow", "shift": shift}


def _bucket(frames: int, height: int, width: int) -> Section:
    return {"frames": frames, "height": height, "width": width}


_TINY: Section = {
    "codec": {"kind": "patch", "temporal": 4, "spatial": 2},
    "text": {"kind": "minilm", "max_tokens": 64},
}
_TINY_TRANSFORMER: Section = {"layers": 4, "heads": 4, "head_dim": 48, "time_embed_dim": 192}
_TINY_TRAIN: Section = {
    "steps": 300,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "warmup_steps": 20,
    "clip_norm": 1.0,
    "ema_decay": 0.99,
    "checkpoint_every": 100,
    "validate_every": 100,
}
_SMALL: Section = {
    "codec": {"kind": "patch", "temporal": 4, "spatial": 4},
    "text": {"kind": "minilm", "max_tokens": 128},
}
_SMALL_TRAIN: Section = {
    "steps": 50_000,
    "batch_size": 8,
    "learning_rate": 2e-4,
    "warmup_steps": 500,
    "clip_norm": 1.0,
    "ema_decay": 0.9995,
    "checkpoint_every": 1000,
    "validate_every": 1000,
    "sample_every": 5000,
}
_PUBLISHED_TEXT: Section = {"kind": "t5", "model": "google/t5-v1_1-xxl", "max_tokens": 226, "padded": True}
_PUBLISHED_CODEC: Section = {"kind": "cogvideox", "model": "THUDM/CogVideoX-5b"}
_PUBLISHED_TRAIN: Section = {
    "learning_rate": 4e-5,
    "warmup_steps": 0,
    "betas": [0.9, 0.95],
    "weight_decay": 1e-4,
    "clip_norm": 0.1,
    "ema_decay": 0.9999,
    "checkpoint_every": 500,
    "validate_every": 500,
    "cache_latents": True,
}

PRESETS: dict[str, dict[str, Section]] = {
    "tiny": {
        "vae": {
            "vae": {
                "channels": 16,
                "spatial": 4,
                "patch": 2,
                "patch_frames": 4,
                "widths": [48, 64],
                "blocks": 1,
            },
            "data": {
                "fps": 8,
                "buckets": [_bucket(9, 32, 48), _bucket(1, 32, 48)],  # at the stages' scale
                "single_frame_fraction": 0.2,
                "workers": 0,
            },
            "phases": [{"steps": 1200}, {"steps": 300, "decoder_only": True}],
            "train": {
                **_TINY_TRAIN,
                "batch_size": 8,
                "learning_rate": 1e-3,
                "ema_decay": 0.995,
                "checkpoint_every": 300,
            },
        },
        "stage1": {
            **_TINY,
            "transformer": _TINY_TRANSFORMER,
            "data": {"fps": 8, "buckets": [_bucket(9, 32, 48), _bucket(1, 32, 48)], "workers": 0},
            "objective": {"kind": "v"},
            "train": _TINY_TRAIN,
            "sampling": {"steps": 50, "guidance": 3.0},
        },
        "stage2": {
            **_TINY,
            "transformer": {**_TINY_TRANSFORMER, "noise_strength": True},
            "data": {"fps": 8, "buckets": [_bucket(9, 64, 96), _bucket(1, 64, 96)], "workers": 0},
            "objective": _flow(),
            "degradation": {"scale": [2, 3]},
            "train": _TINY_TRAIN,
            "sampling": {"steps": 4, "guidance": 1.0},
        },
    },
    "small": {
        "vae": {
            "vae": {"channels": 16, "widths": [64, 128, 256, 256]},
            "vae_loss": {"perceptual": 1.0, "adversarial": 0.5, "discriminator_start": 20_000},
            "data": {
                "fps": 8,
                "buckets": [_bucket(17, 128, 224), _bucket(17, 224, 128), _bucket(1, 128, 224)],
                "single_frame_fraction": 0.2,
            },
            "phases": [{"steps": 40_000}, {"steps": 10_000, "decoder_only": True}],
            "train": {**_SMALL_TRAIN, "learning_rate": 1e-4},
        },
        "stage1": {
            **_SMALL,
            "transformer": {"layers": 16, "heads": 12, "head_dim": 64, "time_embed_dim": 512},
            "data": {
                "fps": 8,
                "buckets": [_bucket(25, 128, 224), _bucket(25, 224, 128), _bucket(1, 128, 224)],
            },
            "objective": {"kind": "flow"},
            "train": _SMALL_TRAIN,
            "sampling": {"steps": 50, "guidance": 5.0},
        },
        "stage2": {
            **_SMALL,
            "transformer": {
                "layers": 16,
                "heads": 12,
                "head_dim": 64,
                "time_embed_dim": 512,
                "noise_strength": True,
            },
            "data": {
                "fps": 8,
                "max_upscale": 1.05,
                "buckets": [_bucket(25, 256, 448), _bucket(25, 448, 256), _bucket(1, 256, 448)],
            },
            "objective": _flow(),
            "degradation": {"scale": [2, 4]},
            "train": {**_SMALL_TRAIN, "batch_size": 2},
            "sampling": {"steps": 4, "guidance": 2.0, "shift": 2.5},
        },
    },
    "flashvideo": {
        # Network, losses, rates and steps of phases are EasyAnimate's. Crops and the share of images are not
        # published: they are choices of this project.
        "vae": {
            "vae": {"channels": 16, "gradient_checkpointing": True},
            "vae_loss": {"perceptual": 1.0, "adversarial": 0.5, "discriminator_start": 25_000},
            "data": {
                "fps": 8,
                "buckets": [_bucket(25, 256, 256), _bucket(1, 256, 256)],
                "single_frame_fraction": 0.5,
            },
            "phases": [{"steps": 100_000}, {"steps": 100_000, "decoder_only": True}],
            "train": {
                "learning_rate": 1e-4,
                "warmup_steps": 0,
                "betas": [0.9, 0.999],
                "weight_decay": 5e-2,
                "clip_norm": 1.0,
                "ema_decay": 0.9999,
                "checkpoint_every": 1000,
                "validate_every": 1000,
            },
        },
        "stage1": {
            "codec": {**_PUBLISHED_CODEC, "std": 1 / 0.7},
            "text": _PUBLISHED_TEXT,
            "transformer": {
                "layers": 42,
                "heads": 48,
                "head_dim": 64,
                "time_embed_dim": 512,
                "pretrained": "THUDM/CogVideoX-5b",
                "gradient_checkpointing": True,
            },
            "lora": {"rank": 128, "alpha": 128},
            "data": {"fps": 8, "buckets": [_bucket(49, 256, 480)], "motion_tag": True},
            "objective": {"kind": "v", "snr_shift": 1.0},
            "train": {**_PUBLISHED_TRAIN, "steps": 50_000, "accumulate": 32},
            "sampling": {"steps": 50, "guidance": 8.0, "guidance_ramp": "dynamic"},
        },
        "stage2": {
            "codec": {**_PUBLISHED_CODEC, "std": 1 / 1.15258426, "tile": 64},  # 12 GB instead of 94 GB
            "text": _PUBLISHED_TEXT,
            "transformer": {
                "layers": 30,
                "heads": 30,
                "head_dim": 64,
                "time_embed_dim": 512,
                "noise_strength": True,
                "gradient_checkpointing": True,
            },
            "data": {"fps": 8, "buckets": [_bucket(49, 1072, 1920)], "motion_tag": True, "max_upscale": 1.05},
            "objective": _flow(),
            "degradation": {"scale": [4, 8]},
            # The four published phases: image crops; images and videos 1 : 2; full size (here in two parts);
            # best subset.
            "phases": [
                {
                    "steps": 25_000,
                    "data": {
                        "buckets": [_bucket(1, 528, 960)],
                        "crop": "random",
                        "single_frame_fraction": 1.0,
                    },
                    "degradation": {"noise_steps": [600, 900]},
                },
                {
                    "steps": 30_000,
                    "data": {
                        "buckets": [_bucket(49, 528, 960), {**_bucket(1, 528, 960), "crop": "random"}],
                        "single_frame_fraction": 0.333,
                    },
                    "degradation": {"noise_steps": [600, 900]},
                },
                {"steps": 1_000, "degradation": {"noise_steps": [600, 900]}},
                {"steps": 4_000, "degradation": {"noise_steps": [650, 750]}},
                {
                    "steps": 700,
                    "data": {"where": {"aesthetics.mean": {"min": 5.5}, "motion.speed": {"min": 0.05}}},
                    "degradation": {"noise_steps": [650, 750]},
                },
            ],
            "train": {**_PUBLISHED_TRAIN, "accumulate": 64, "ema_decay": 0.999, "cache_latents": False},
            "sampling": {"steps": 4, "guidance": 13.0, "shift": 2.5, "noise_step": 675},
        },
    },
}


# The settings in which FlashVideo's code and weights differ from the paper (docs/generation.md has a table).
_RELEASED: dict[str, Section] = {
    "vae": {},
    "stage1": {
        "lora": {"alpha": 1, "targets": [*ATTENTION, *ADAPTIVE_NORM]},
        "sampling": {"steps": 51, "guidance_ramp": "published", "timesteps": "floored"},
    },
    "stage2": {"sampling": {"steps": 5, "prompt_prefix": "medium motion,"}},
}
PRESETS["flashvideo-released"] = {
    stage: {**section, **{key: {**section[key], **over} for key, over in _RELEASED[stage].items()}}
    for stage, section in PRESETS["flashvideo"].items()
}


def preset(name: str, stage: str) -> dict[str, Any]:
    """A preset as plain data, for a file and overrides to change. Raises `ValueError` for an unknown name."""
    base, fast = name.removesuffix("-fast"), name.endswith("-fast")
    if base not in PRESETS:
        known = ", ".join(f"{n}, {n}-fast" for n in PRESETS)
        raise ValueError(f"preset {name} does not exist; the presets are {known}")
    data = copy.deepcopy(PRESETS[base][stage])
    if fast and "transformer" in data and not data["transformer"].get("pretrained"):
        _wide_heads(data["transformer"])
    return {"stage": stage, "preset": name, **data}


def _wide_heads(transformer: Section) -> None:
    """Change the heads to 128 dimensions, at about the same width."""
    width = transformer["heads"] * transformer["head_dim"]
    transformer["heads"], transformer["head_dim"] = max(1, round(width / 128)), 128
