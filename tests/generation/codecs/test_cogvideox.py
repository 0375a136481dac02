"""The class of the published autoencoder as a codec, with tiny random weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from generation import config, draws
from generation.codecs.cogvideox import CogVideoXCodec
from generation.codecs.open import open_codec
from generation.models.pretrained import FILE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a pipeline of `diffusers`: the autoencoder is in `vae`."""
    from diffusers import AutoencoderKLCogVideoX

    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    path = tmp_path_factory.mktemp("pipeline")
    vae.save_pretrained(path / "vae")
    return path


@pytest.fixture(scope="module")
def codec(folder: Path) -> CogVideoXCodec:
    found = open_codec(config.Codec(kind="cogvideox", model=str(folder), std=1 / 0.7))
    assert isinstance(found, CogVideoXCodec)
    return found


def video(frames: int, batch: int = 1) -> torch.Tensor:
    return draws.normal((batch, 3, frames, 16, 24), "video", frames).clamp(-1, 1)


@pytest.mark.parametrize("frames", [1, 9, 17, 49])
def test_it_gives_the_numbers_of_the_library(folder: Path, codec: CogVideoXCodec, frames: int) -> None:
    from diffusers import AutoencoderKLCogVideoX

    library: Any = AutoencoderKLCogVideoX.from_pretrained(folder, subfolder="vae")
    with torch.no_grad():
        codes = library.encode(video(frames)).latent_dist.mode()
        decoded = library.decode(codes).sample
    latents = codec.encode(video(frames))
    assert latents.shape == (1, 4, *codec.grid(frames, 16, 24)) == (1, 4, (frames - 1) // 4 + 1, 2, 3)
    assert torch.allclose(latents, codes * 0.7, atol=1e-6)
    again = codec.decode(latents, frames)
    assert again.shape == video(frames).shape
    assert torch.allclose(again, decoded, atol=1e-5)


def test_pieces_are_short_and_make_up_the_whole(codec: CogVideoXCodec) -> None:
    latents = codec.encode(video(33))
    pieces = list(codec.decode_stream(latents, 33))
    assert [p.shape[2] for p in pieces] == [9, 8, 8, 8]
    assert torch.equal(torch.cat(pieces, 2), codec.decode(latents, 33))


def test_a_clip_is_encoded_as_if_it_were_alone(codec: CogVideoXCodec) -> None:
    clips = torch.cat([video(9), -video(9)])
    both = codec.encode(clips)
    assert torch.equal(both[1:], codec.encode(clips[1:]))


def test_tiles_are_blended_and_where_one_is_enough_nothing_changes(codec: CogVideoXCodec) -> None:
    """Norms see only a tile, so a difference remains. Random weights are the worst case."""
    tiled = open_codec(codec.settings.model_copy(update={"tile": 8, "tile_overlap": 6}))
    assert tiled.hash != codec.hash  # tiles change latents
    small = video(17)
    assert torch.equal(tiled.encode(small), codec.encode(small))
    large = draws.normal((1, 3, 17, 64, 80), "large").clamp(-1, 1)  # 8 x 10 latent pixels: two tiles
    whole, latents = codec.encode(large), tiled.encode(large)
    assert not torch.equal(latents, whole)
    error = (latents - whole).square().mean().sqrt() / whole.std()
    assert error < 0.3  # 1.4 for tiles in wrong places
    pieces = list(tiled.decode_stream(whole, 17))
    assert [p.shape for p in pieces] == [(1, 3, n, 64, 80) for n in (9, 8)]
    expected = codec.decode(whole, 17)
    error = (torch.cat(pieces, 2) - expected).square().mean().sqrt() / expected.std()
    assert 0 < error < 0.3
    assert torch.equal(torch.cat(pieces, 2), tiled.decode(whole, 17))


@pytest.mark.parametrize("frames", [5, 8, 13])
def test_lengths_that_do_not_come_back_are_refused(codec: CogVideoXCodec, frames: int) -> None:
    below = (frames - 1) // 8 * 8 + 1
    with pytest.raises(ValueError, match=f"{frames} frames are not 8n .* take {below} or {below + 8}"):
        codec.encode(video(frames))
    with pytest.raises(ValueError, match="latent frames"):
        codec.decode(codec.encode(video(9)), 17)


def test_the_hash_stands_for_weights_and_scale(folder: Path, codec: CogVideoXCodec, tmp_path: Path) -> None:
    same = CogVideoXCodec(config.Codec(kind="cogvideox", model=str(folder / "vae"), std=1 / 0.7))
    assert same.hash == codec.hash == open_codec(codec.settings).hash
    scaled = CogVideoXCodec(config.Codec(kind="cogvideox", model=str(folder)))
    assert scaled.hash != codec.hash
    # Weights of another training with equal sizes: one changed bias among many thousand numbers is enough.
    shutil.copytree(folder / "vae", tmp_path / "vae")
    path = tmp_path / "vae" / FILE
    weights = load_file(path)
    weights["decoder.conv_out.conv.bias"] += 1e-3
    save_file(weights, path, metadata={"format": "pt"})
    assert path.stat().st_size == (folder / "vae" / FILE).stat().st_size
    other = CogVideoXCodec(config.Codec(kind="cogvideox", model=str(tmp_path), std=1 / 0.7))
    assert other.hash != codec.hash


def test_wrong_settings_say_what_would_be_right(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"codec\.model: name a folder"):
        config.Codec(kind="cogvideox")
    with pytest.raises(ValueError, match=r"codec\.spatial: 4, but codec\.kind=cogvideox has 8"):
        open_codec(config.Codec(kind="cogvideox", model=str(folder), spatial=4))
    with pytest.raises(ValueError, match=r"codec\.model: there is no folder"):
        open_codec(config.Codec(kind="cogvideox", model=str(tmp_path / "none")))
    with pytest.raises(ValueError, match=r"codec\.model: .* holds no AutoencoderKLCogVideoX"):
        open_codec(config.Codec(kind="cogvideox", model=str(tmp_path)))
