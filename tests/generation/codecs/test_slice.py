"""A Slice VAE as a codec: statistics, slices, tiles, independent samples, and clear errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from generation import draws
from generation.codecs.base import Codec
from generation.codecs.open import open_codec
from generation.codecs.slice import SliceCodec, save_network
from generation.config import Codec as Settings
from generation.media import read_video
from tests.generation.codecs.slice_vae.test_network import apart, network, video


def write(folder: Path, **sizes: Any) -> Path:
    """RUN/vae as after a finished training, with arbitrary statistics."""
    vae = network(**sizes)
    vae.latent_mean += torch.linspace(-0.5, 0.5, 4)
    vae.latent_std *= torch.linspace(0.2, 0.8, 4)
    (folder / "weights").mkdir(parents=True)
    save_network(vae.settings, vae.state_dict(), folder / "weights")
    (folder / "weights" / "weights.json").write_text(json.dumps({"hash": "0123", "step": 1}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("run") / "vae")


def codec(folder: Path, **changes: Any) -> Codec:
    return open_codec(Settings(kind="slice", model=str(folder), spatial=4, **changes))


def test_latents_are_the_mean_normalised_by_the_statistics(folder: Path) -> None:
    made, vae = codec(folder), network()
    clip = video(13)
    with torch.no_grad():
        mean = vae.encode(clip)[0]
    shape = (1, 4, 1, 1, 1)
    expected = (mean - torch.linspace(-0.5, 0.5, 4).view(shape)) / torch.linspace(0.2, 0.8, 4).view(shape)
    latents = made.encode(clip)
    assert apart(latents, expected) < 1e-5
    assert torch.equal(made.statistics.mean, torch.linspace(-0.5, 0.5, 4))
    with torch.no_grad():
        assert apart(made.decode(latents, 13), vae.decode(mean, 13)) < 1e-5


def test_slices_change_nothing_and_streams_are_the_whole(folder: Path) -> None:
    clip = video(49)
    whole = codec(folder, slice_latents=100)
    latents = whole.encode(clip)
    for size in (1, 2, 5):
        sliced = codec(folder, slice_latents=size)
        assert apart(sliced.encode(clip), latents) < 1e-5
        pieces = list(sliced.decode_stream(latents, 49))
        assert [p.shape[2] for p in pieces][:2] == [4 * size - 3, 4 * size]
        assert torch.equal(torch.cat(pieces, dim=2), sliced.decode(latents, 49))
        assert apart(torch.cat(pieces, dim=2), whole.decode(latents, 49)) < 1e-5


def test_each_sample_is_as_if_it_were_alone(folder: Path) -> None:
    made = codec(folder)
    clips = torch.cat([video(9, seed=k) for k in range(3)])
    latents = made.encode(clips)
    for k in range(3):
        assert torch.equal(made.encode(clips[k : k + 1]), latents[k : k + 1])


def test_every_length_comes_back(folder: Path) -> None:
    made = codec(folder)
    for frames in (1, 2, 4, 5, 8, 9):
        clip = video(frames)
        latents = made.encode(clip)
        assert latents.shape[2:] == made.grid(frames, 16, 24)
        assert made.decode(latents, frames).shape == clip.shape


@pytest.mark.parametrize(("overlap", "bound"), [(12, 0.1), (18, 0.01), (24, 1e-3), (30, 1e-4)])
def test_tiled_is_whole_within_a_bound_that_falls_with_the_overlap(
    folder: Path, overlap: int, bound: float
) -> None:
    """Random weights and noise are the worst case: the missing neighbours of a tile matter most."""
    clip = video(2, 176, 40)
    whole, tiled = codec(folder), codec(folder, tile=34, tile_overlap=overlap)
    latents = whole.encode(clip)
    assert apart(tiled.encode(clip), latents) < bound
    made = whole.decode(latents, 2)
    assert 0 < apart(tiled.decode(latents, 2), made) < bound


def test_codecs_are_told_apart_by_weights_and_tiles(folder: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "vae")
    (other / "weights" / "weights.json").write_text(json.dumps({"hash": "4567", "step": 1}))
    hashes = {codec(folder).hash, codec(other).hash, codec(folder, tile=24).hash}
    assert len(hashes) == 3
    assert codec(folder, slice_latents=4).hash == codec(folder).hash


def test_wrong_uses_name_the_key_and_the_remedy(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"codec\.spatial: 8, but .* has 4; write codec\.spatial=4"):
        open_codec(Settings(kind="slice", model=str(folder)))
    with pytest.raises(ValueError, match=r"codec\.model: .* is a run; name its autoencoder, .*vae"):
        codec(folder.parent)
    with pytest.raises(ValueError, match=r"codec\.model: .* holds no Slice VAE; .*`reelmill train vae"):
        codec(tmp_path)
    with pytest.raises(ValueError, match=r"codec\.model: name the autoencoder"):
        Settings(kind="slice")
    with pytest.raises(ValueError, match=r"codec\.tile_overlap: 16 is no less than codec\.tile, 16"):
        Settings(kind="slice", model="x", tile=16, tile_overlap=16)
    with pytest.raises(ValueError, match="height 18 is no multiple of 4; take 16 or 20"):
        codec(folder).grid(9, 18, 16)
    broken = write(tmp_path / "broken")
    (broken / "weights" / "vae.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="the weights of a Slice VAE cannot be read"):
        codec(broken)


def test_latents_are_float32_whatever_the_video_is(folder: Path) -> None:
    made = codec(folder)
    assert isinstance(made, SliceCodec)
    latents = made.encode(draws.normal((1, 3, 5, 8, 8), "x").double())
    assert latents.dtype == torch.float32


_DECODE = """
import sys
from pathlib import Path
import torch
from generation.codecs.open import open_codec
from generation.config import Codec
from generation.media import to_uint8, write_mp4

def peak_mib():
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x]
    return int(line.split()[1]) / 1024

torch.set_num_threads(1)
codec = open_codec(Codec(kind="slice", model=sys.argv[1], slice_latents=1))
folder, height, width = Path(sys.argv[2]), *map(int, sys.argv[3:])
for frames in (49, 49, 193):
    latents = torch.randn((1, 4, *codec.grid(frames, height, width)))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at the memory in use
    pieces = (to_uint8(piece[0]) for piece in codec.decode_stream(latents, frames))
    write_mp4(folder / f"{frames}.mp4", pieces, 8)
    print(frames, peak_mib())
"""


@pytest.mark.parametrize(("height", "width"), [(240, 416), pytest.param(480, 832, marks=pytest.mark.slow)])
def test_peak_memory_of_decoding_does_not_grow_with_the_length(
    height: int, width: int, tmp_path: Path
) -> None:
    """Decode latents to an mp4 in a new process: once to warm up, then 49 and 193 frames.

    193 frames at 480x832 are 0.9 GB of float32. glibc keeps a random amount of freed memory, so this test
    makes glibc return large tensors at once.
    """
    vae = write(tmp_path / "vae", spatial=8, patch=2, widths=(8, 8, 8))
    command = [sys.executable, "-c", _DECODE, vae, tmp_path, str(height), str(width)]
    plain = os.environ | {f"MALLOC_{kind}_THRESHOLD_": "262144" for kind in ("MMAP", "TRIM")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900, env=plain)
    peaks = {int(frames): float(mib) for frames, mib in map(str.split, done.stdout.splitlines())}
    print(f"{width}x{height}, frames and peak memory in MiB: {peaks}")
    assert read_video(tmp_path / "193.mp4").frames.shape == (193, height, width, 3)
    # The memory of the latents: 4 channels of float32.
    more = (193 - 49) / 4 * height / 8 * width / 8 * 16 / 2**20
    assert peaks[193] < 1.01 * peaks[49] + more  # 144 frames as bytes would add at least 5 %
