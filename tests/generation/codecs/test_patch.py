"""The patch codec is lossless, causal and orthonormal, and its errors name right values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from generation import config
from generation.codecs.base import check_grid
from generation.codecs.dct import dct_matrix
from generation.codecs.open import open_codec
from generation.codecs.patch import PatchCodec

SHAPES = [(4, 8, 17, 32, 48), (4, 2, 9, 8, 12), (1, 4, 3, 8, 8), (2, 1, 5, 3, 4), (8, 16, 9, 32, 16)]


def _codec(temporal: int = 4, spatial: int = 4, std: float = 0.5) -> PatchCodec:
    return PatchCodec(config.Codec(temporal=temporal, spatial=spatial, std=std))


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _dense(function: Callable[[Tensor], Tensor], size: int, shape: tuple[int, ...]) -> Tensor:
    """The matrix of a linear map, column by column."""
    units = torch.eye(size, dtype=torch.float64)
    return torch.stack([function(unit.reshape(shape)).double().flatten() for unit in units], dim=1)


@pytest.mark.parametrize(("temporal", "spatial", "frames", "height", "width"), SHAPES)
def test_lossless(temporal: int, spatial: int, frames: int, height: int, width: int) -> None:
    codec = _codec(temporal, spatial)
    video = _random(2, 3, frames, height, width)
    latents = codec.encode(video)
    t, h, w = codec.grid(frames, height, width)
    assert latents.shape == (2, 3 * temporal * spatial**2, t, h, w)
    assert latents.dtype == torch.float32
    assert codec.channels == latents.shape[1]
    assert (codec.decode(latents, frames) - video).abs().max() < 2e-6


def test_eight_bits_come_back_exactly() -> None:
    pixels = torch.randint(0, 256, (1, 3, 9, 16, 16), generator=torch.Generator().manual_seed(1))
    codec = _codec(4, 8)
    decoded = codec.decode(codec.encode(pixels / 127.5 - 1), 9)
    assert torch.equal(((decoded + 1) * 127.5).round().long(), pixels)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 16])
def test_dct_is_orthonormal_and_the_textbooks(n: int) -> None:
    matrix = dct_matrix(n)
    assert (matrix @ matrix.T - torch.eye(n, dtype=torch.float64)).abs().max() < 1e-14
    # An independent computation: the real part of a Fourier transform of the mirrored row.
    x = _random(n).double()
    mirrored = torch.fft.fft(torch.cat([x, x.flip(0)]))[:n]
    turn = torch.exp(-1j * torch.pi * torch.arange(n, dtype=torch.float64) / (2 * n))
    expected = (mirrored * turn).real / 2 * (2 / n) ** 0.5
    expected[0] /= 2**0.5
    assert (matrix @ x - expected).abs().max() < 1e-12


def test_the_whole_transform_is_orthonormal() -> None:
    """After the first frame, the matrix of `encode` is orthogonal, and `decode` is its transpose."""
    codec = _codec(2, 2, std=1.0)
    size = 3 * 2 * 2 * 2
    matrix = _dense(codec._forward, size, (3, 2, 2, 2))
    assert (matrix @ matrix.T - torch.eye(size, dtype=torch.float64)).abs().max() < 1e-6
    inverse = _dense(lambda z: codec._inverse(z, first=False), size, (size, 1, 1))
    assert (inverse - matrix.T).abs().max() < 1e-6


def test_norm_is_kept() -> None:
    codec = _codec(4, 8, std=0.25)
    video = _random(1, 3, 9, 16, 24)
    latents = codec.encode(video).double() * 0.25
    first = 4 * video[:, :, :1].double().square().sum()  # four copies of the first frame
    rest = video[:, :, 1:].double().square().sum()
    assert latents.square().sum() == pytest.approx(float(first + rest), rel=1e-6)
    assert latents[:, :, 1:].square().sum() == pytest.approx(float(rest), rel=1e-6)


def test_white_noise_stays_white() -> None:
    latents = torch.randn((1, 3 * 4 * 16, 4, 6, 6), generator=torch.Generator().manual_seed(0))
    codec = _codec(4, 4, std=1.0)
    assert codec.decode(latents, 13)[:, :, 1:].std() == pytest.approx(1, abs=0.03)


def test_latents_of_other_origin_are_projected() -> None:
    """Latents that no video has. Later frames come back, and the first frame is the nearest possible."""
    codec = _codec(4, 2)
    latents = _random(1, codec.channels, 3, 2, 2)
    again = codec.encode(codec.decode(latents, 9))
    assert (again - latents)[:, :, 1:].abs().max() < 2e-6
    assert (codec.encode(codec.decode(again, 9)) - again).abs().max() < 2e-6
    # The lost part is perpendicular to the kept part.
    lost, kept = (latents - again)[:, :, 0].double(), again[:, :, 0].double()
    assert lost.abs().max() > 0.1
    assert abs(float((lost * kept).sum())) < 1e-5


def test_first_frame_is_the_mean_of_its_copies() -> None:
    codec = _codec(4, 2)
    latents = _random(1, codec.channels, 1, 2, 3)
    copies = codec._inverse(latents[0, :, 0], first=False)  # (3, 4, H, W)
    assert (codec.decode(latents, 1)[0, :, 0] - copies.mean(1)).abs().max() < 1e-6


def test_causal_and_every_frame_counts() -> None:
    codec = _codec(4, 4)
    video = _random(1, 3, 13, 8, 8)
    latents = codec.encode(video)
    for frame in range(13):
        changed = video.clone()
        changed[:, :, frame, 3, 5] += 0.5
        differs = (codec.encode(changed) != latents).flatten(3).any(3)[0].any(0)  # (t,)
        assert differs.tolist() == [k == (frame + 3) // 4 for k in range(4)]


def test_an_image_is_a_video_of_one_frame() -> None:
    codec = _codec(4, 8)
    video = _random(1, 3, 5, 16, 16)
    assert torch.equal(codec.encode(video[:, :, :1]), codec.encode(video)[:, :, :1])
    assert codec.decode(codec.encode(video[:, :, :1]), 1).shape == (1, 3, 1, 16, 16)


def test_pieces_are_the_whole() -> None:
    codec = _codec(4, 4)
    latents = _random(2, codec.channels, 4, 3, 5)
    pieces = list(codec.decode_stream(latents, 13))
    assert [p.shape[2] for p in pieces] == [1, 4, 4, 4]
    assert torch.equal(torch.cat(pieces, 2), codec.decode(latents, 13))
    # The latent frames do not depend on later frames, so a shorter stream gives the same frames.
    assert torch.equal(codec.decode(latents[:, :, :2], 5), codec.decode(latents, 13)[:, :, :5])


def test_each_sample_as_if_alone() -> None:
    codec = _codec(4, 8)
    videos = _random(3, 3, 5, 32, 24)
    together = codec.encode(videos)
    alone = torch.cat([codec.encode(v[None]) for v in videos])
    assert torch.equal(together, alone)
    assert torch.equal(codec.decode(together, 5)[1:2], codec.decode(alone[1:2], 5))


def test_precision_is_not_taken_from_outside() -> None:
    codec = _codec(4, 8)
    video = _random(1, 3, 5, 16, 16)
    expected = codec.encode(video)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(codec.encode(video), expected)
        assert (codec.decode(expected, 5) - video).abs().max() < 2e-6


def test_no_gradient() -> None:
    codec = _codec(4, 4)
    latents = codec.encode(_random(1, 3, 5, 8, 8).requires_grad_())
    assert not latents.requires_grad
    assert not codec.decode(latents.requires_grad_(), 5).requires_grad


def test_latents_are_divided_by_std() -> None:
    video = _random(1, 3, 5, 8, 8)
    plain, scaled = _codec(std=1.0), _codec(std=0.3)
    assert torch.allclose(plain.encode(video) / 0.3, scaled.encode(video), atol=1e-6)


def test_hash_stands_for_every_parameter() -> None:
    codecs = [_codec(), _codec(temporal=2), _codec(spatial=2), _codec(std=0.4)]
    assert len({c.hash for c in codecs}) == 4
    assert _codec().hash == open_codec(config.Codec(temporal=4, spatial=4), "cpu").hash


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((16, 32, 32), r"16 frames are not 4n \+ 1; take 13 or 17"),
        ((2, 32, 32), r"take 1 or 5"),
        ((0, 32, 32), r"0 frames are not 4n \+ 1; take 1"),
        ((17, 100, 32), r"height 100 is no multiple of 8; take 96 or 104"),
        ((17, 32, 7), r"width 7 is no multiple of 8; take 8"),
        ((17, 32, 0), r"width 0 .* take 8"),
    ],
)
def test_wrong_sizes(size: tuple[int, int, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _codec(4, 8).grid(*size)


def test_wrong_sizes_are_refused_everywhere() -> None:
    codec = _codec(4, 8)
    with pytest.raises(ValueError, match="take 5 or 9"):
        codec.encode(_random(1, 3, 6, 16, 16))
    with pytest.raises(ValueError, match="3 latent frames are 9 frames of video, not 13"):
        codec.decode_stream(_random(1, codec.channels, 3, 2, 2), 13)
    with pytest.raises(ValueError, match="height 24 is no multiple of 16; take 16 or 32"):
        check_grid(5, 24, 32, 4, 8, multiple=2)
    assert codec.grid(49, 256, 480) == (13, 32, 60)
    assert codec.grid(1, 8, 8) == (1, 1, 1)


def test_eight_bit_input_is_refused() -> None:
    with pytest.raises(AssertionError, match="uint8"):
        _codec().encode(torch.zeros((1, 3, 5, 8, 8), dtype=torch.uint8))
