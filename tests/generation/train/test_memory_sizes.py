"""Estimates at the published sizes are compared with the networks themselves.

No memory is allocated. Tensors are on `meta`, or they are PyTorch's fake tensors. Fake tensors have no
values, but follow the kernels of a CPU (attention keeps no matrix of all tokens) and autocast.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from generation.codecs import memory as codecs_memory
from generation.codecs.cogvideox import CogVideoXCodec
from generation.codecs.footprint import Footprint
from generation.codecs.open import open_codec
from generation.config import Bucket, Codec, Config
from generation.config import Transformer as Settings
from generation.models import cogvideox
from generation.presets import preset
from generation.sample import memory as sample_memory
from generation.train import memory

TEXT_DIM, CHANNELS = 4096, 16
PREVIEW, HALF, FULL = (
    Bucket(frames=49, height=h, width=w) for h, w in ((256, 480), (528, 960), (1072, 1920))
)
STAGE2 = Config.model_validate(preset("flashvideo", "stage2"))


def fake(settings: Settings, dtype: torch.dtype) -> nn.Module:
    """A network of fake tensors. It is used within a `FakeTensorMode`."""
    model = cogvideox.skeleton(settings, CHANNELS, TEXT_DIM)
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = nn.Parameter(torch.empty(p.shape, dtype=dtype))
    return model


def predict(model: Any, shape: Bucket, rows: int) -> torch.Tensor:
    grid = STAGE2.latent_grid(shape)
    text, times = torch.empty(rows, STAGE2.text.max_tokens, TEXT_DIM), torch.empty(rows)
    return cogvideox.predict(model, torch.empty(rows, CHANNELS, *grid), text, None, times, times)


# ---- the network


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize(
    ("shape", "rows", "changes"),
    [(PREVIEW, 1, {}), (FULL, 1, {}), (FULL, 2, {"heads": 15, "head_dim": 128}), (HALF, 2, {"heads": 48})],
)
def test_what_a_block_has_alive_is_what_it_says(
    shape: Bucket, rows: int, changes: dict[str, int], bf16: bool, codec: CogVideoXCodec
) -> None:
    config = STAGE2.model_copy(
        update={"transformer": STAGE2.transformer.model_copy(update={"layers": 2, **changes})}
    )
    with FakeTensorMode(), torch.no_grad():
        model = fake(config.transformer, torch.bfloat16 if bf16 else torch.float32)
        weights = sum(p.nbytes for p in model.parameters())
        with Footprint() as counted:
            predict(model, shape, rows)
    need = sample_memory.sampling_need(config, codec, TEXT_DIM, shape, rows, bf16)
    assert need.weights == weights
    assert counted.peak < need.block + need.latents < 1.15 * counted.peak


def trained(layers: int, checkpointing: bool, shape: Bucket) -> tuple[float, float]:
    """Weights, gradients and activations at the peak of a step, in bytes: (measured, estimated)."""
    settings = STAGE2.transformer.model_copy(
        update={"layers": layers, "gradient_checkpointing": checkpointing}
    )
    config = STAGE2.model_copy(update={"transformer": settings})
    with FakeTensorMode():
        model = fake(settings, torch.float32).train()
        if checkpointing:
            cogvideox.checkpointing(model)
        count = sum(p.numel() for p in model.parameters())
        with Footprint() as counted:
            with torch.autocast("cpu", torch.bfloat16):
                loss = predict(model, shape, 1).square().mean()
            loss.backward()
    need = memory.training_need(config, CHANNELS, count, count, shape, 1, bf16=True)
    return counted.peak + 4.0 * count, need.weights + need.training / 4 + need.activations


@pytest.mark.parametrize(
    ("layers", "checkpointing", "shape"), [(3, False, HALF), (3, True, FULL), (6, True, HALF)]
)
def test_what_a_training_step_takes_is_what_it_says(layers: int, checkpointing: bool, shape: Bucket) -> None:
    measured, estimated = trained(layers, checkpointing, shape)
    assert 0.95 * measured < estimated < 1.6 * measured, (measured / 1e9, estimated / 1e9)


@pytest.mark.slow
def test_a_training_step_of_the_second_stage_at_its_full_size() -> None:
    measured, estimated = trained(30, True, FULL)
    print(f"measured {measured / 1e9:.1f} GB, estimated {estimated / 1e9:.1f}")
    assert measured < estimated < 1.4 * measured


# ---- the codec


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> CogVideoXCodec:
    """CogVideoX's autoencoder at its published size on `meta`, with the settings of Stage II's preset."""
    from diffusers import AutoencoderKLCogVideoX

    kinds = {
        "down_block_types": ("CogVideoXDownBlock3D",) * 4,
        "up_block_types": ("CogVideoXUpBlock3D",) * 4,
    }
    small: Any = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=16, norm_num_groups=4, **kinds
    )
    folder = tmp_path_factory.mktemp("vae")
    small.save_pretrained(folder)
    found = open_codec(Codec(kind="cogvideox", model=str(folder), tile=STAGE2.codec.tile))
    assert isinstance(found, CogVideoXCodec)
    with torch.device("meta"):
        whole: Any = AutoencoderKLCogVideoX(
            block_out_channels=(128, 256, 256, 512), layers_per_block=3, latent_channels=16, **kinds
        )
    found._vae = nn.Module.to(whole, torch.bfloat16).eval().requires_grad_(False)
    return found


@pytest.mark.parametrize("action", ["decode", "encode"])
def test_the_codec_takes_what_was_measured_at_a_few_pixels(codec: CogVideoXCodec, action: str) -> None:
    shape = Bucket(frames=49, height=384, width=512)
    with Footprint() as counted:
        if action == "encode":
            codec.encode(torch.empty(1, 3, 49, 384, 512, device="meta"))
        else:
            for piece in codec.decode_stream(torch.empty(1, 16, 13, 48, 64, device="meta"), 49):
                del piece
    weights, alive = codecs_memory.codec_bytes(codec, shape, (action,))
    assert 0.9 * counted.peak < alive < 1.1 * counted.peak
    part = codec._vae.encoder if action == "encode" else codec._vae.decoder
    assert weights == sum(p.nbytes for p in part.parameters())


def test_without_tiles_it_could_not_decode_the_full_size_at_all(codec: CogVideoXCodec) -> None:
    """The library cuts large convolutions into parts, and a part has fewer frames than a kernel."""
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        next(codec._pieces(torch.empty(1, 16, 3, 134, 240, device="meta")))
    next(codec._pieces(torch.empty(1, 16, 3, 64, 64, device="meta")))


# ---- the goals: `pytest -s` prints the figures of docs/generation.md


def test_the_second_stage_samples_its_full_size_on_24_gb(codec: CogVideoXCodec) -> None:
    """The codec uses tiles of 64. The rest of the memory is left for CUDA and for the kernels."""
    for offload, rows, most in (("none", 1, 21), ("model", 1, 17), ("model", 2, 17), ("block", 1, 17)):
        need = sample_memory.sampling_need(STAGE2, codec, TEXT_DIM, FULL, rows, True, offload)  # type: ignore[arg-type]
        print(f"\noffload {offload}, rows at once {rows}: {need.told(24e9)}")
        assert need.total < most * 1e9
    whole = codec.settings
    _, tiled = codecs_memory.codec_bytes(codec, FULL, ("decode",))
    try:
        codec.settings = whole.model_copy(update={"tile": None})
        _, at_once = codecs_memory.codec_bytes(codec, FULL, ("decode",))
        each = at_once / (FULL.height * FULL.width)
        print(f"decoding: {at_once / 1e9:.0f} GB ({each / 1e3:.0f} KB a pixel); tiles {tiled / 1e9:.0f} GB")
        assert sample_memory.sampling_need(STAGE2, codec, TEXT_DIM, FULL, 1, True).total > 90e9
    finally:
        codec.settings = whole


def test_the_second_stage_trains_at_its_full_size_on_80_gb(codec: CogVideoXCodec) -> None:
    """With the settings of the preset: gradient checkpointing, tiles, one clip at a time."""
    count = cogvideox.parameters(STAGE2.transformer, CHANNELS, TEXT_DIM)
    need = memory.training_need(
        STAGE2, CHANNELS, count, count, FULL, 1, True, codecs_memory.codec_bytes(codec, FULL, ("encode",))
    )
    assert memory.largest_bucket(STAGE2) == FULL
    Config.model_validate(  # as latents can be cached instead
        {
            **STAGE2.model_dump(),
            "train": {**STAGE2.train.model_dump(), "cache_latents": True},
            "degradation": {**STAGE2.degradation.model_dump(), "variants": 4},
        }
    )
    kept = f"{need.weights / 1e9:.1f} GB, kept for training {need.training / 1e9:.1f}"
    print(f"\nweights {kept}, activations {need.activations / 1e9:.1f}, in all {need.total / 1e9:.1f}")
    assert 45e9 < need.total < 75e9
    whole = STAGE2.model_copy(
        update={"transformer": STAGE2.transformer.model_copy(update={"gradient_checkpointing": False})}
    )
    assert memory.training_need(whole, CHANNELS, count, count, FULL, 1, True).total > 300e9
