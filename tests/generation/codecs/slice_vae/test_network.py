"""Slice VAE: slices equal the whole, nothing depends on later frames, and shapes are as documented."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from generation import draws
from generation.codecs.slice_vae.causal import CausalConv, Norm
from generation.codecs.slice_vae.network import (
    FIRST_LOG_VARIANCE,
    SliceVAE,
    folded,
    latent_frames,
    lowest_frequencies,
    padded,
    surplus,
    unfolded,
)
from generation.config import SliceVae

TOLERANCE = 1e-5  # relative to the largest value


def network(seed: int = 0, **changes: object) -> SliceVAE:
    """A network of random weights. Layers that start at zero are random, too."""
    settings = SliceVae.model_validate(
        {"channels": 4, "spatial": 4, "widths": (8, 12, 16), "blocks": 1, **changes}
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = SliceVAE(settings).eval()
        for part in (vae.encoder, vae.decoder):
            part.out.reset_parameters()
        return vae


def video(frames: int, height: int = 16, width: int = 24, seed: int = 0) -> Tensor:
    return draws.normal((1, 3, frames, height, width), "video", frames, seed).clamp(-1, 1)


def apart(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


VARIANTS = [
    {},
    {"temporal": 2},
    {"temporal": 1},
    {"temporal": 8, "spatial": 8, "widths": (8, 8, 12, 12)},
    {"temporal": 4, "spatial": 8, "widths": (8, 8, 12, 12)},
    {"temporal": 4, "spatial": 2, "widths": (8, 12, 12)},
    {"patch": 2, "spatial": 8, "widths": (8, 12, 12)},
    {"patch": 2, "spatial": 4, "widths": (8, 12, 12)},
    {"patch": 2, "patch_frames": 2, "widths": (8, 12)},
    {"patch": 2, "patch_frames": 4, "widths": (8, 12)},
]


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_sliced_is_whole(variant: dict[str, object]) -> None:
    draw = random.Random(str(variant))
    for case in range(8):
        vae = network(case, **variant)
        temporal, side = vae.settings.temporal, vae.settings.spatial
        frames = draw.randint(1, 49)
        clip = video(frames, side * draw.randint(1, 3), side * draw.randint(1, 4), case)
        mean, spread = vae.encode(clip)
        count = latent_frames(frames, temporal)
        assert mean.shape == (1, 4, count, clip.shape[3] // side, clip.shape[4] // side)
        size = draw.randint(1, count + 1)
        for sliced, whole in zip(vae.encode(clip, temporal * size), (mean, spread), strict=True):
            assert apart(sliced, whole) < TOLERANCE
        made = vae.decode(mean, frames)
        assert made.shape == clip.shape
        assert apart(vae.decode(mean, frames, size), made) < TOLERANCE
        pieces = list(vae.pieces(mean, frames, 1))
        assert [p.shape[2] for p in pieces] == [frames - (count - 1) * temporal] + [temporal] * (count - 1)


@torch.no_grad()
def test_shapes_of_the_published_compression() -> None:
    vae = network(spatial=8, widths=(8, 8, 8, 8))
    assert vae.encode(torch.zeros(1, 3, 8, 512, 512))[0].shape == (1, 4, 2, 64, 64)
    assert vae.encode(torch.zeros(1, 3, 1, 512, 512))[0].shape == (1, 4, 1, 64, 64)
    assert vae.encode(torch.zeros(2, 3, 49, 16, 24))[0].shape == (2, 4, 13, 2, 3)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_no_latent_sees_a_later_frame_and_every_frame_is_seen(variant: dict[str, object]) -> None:
    vae = network(1, **variant)
    temporal = vae.settings.temporal
    frames = 2 * temporal + 1 if temporal > 1 else 5
    clip = video(frames, vae.settings.spatial, vae.settings.spatial)
    before = vae.encode(clip)[0]
    for t in range(frames):
        other = clip.clone()
        other[:, :, t] = video(1, clip.shape[3], clip.shape[4], seed=1 + t)[:, :, 0]
        moved = (vae.encode(other)[0] - before).abs().amax((0, 1, 3, 4))  # (t,)
        own = (t + surplus(frames, len(moved), temporal)) // temporal
        assert torch.all(moved[:own] == 0)
        assert moved[own] > 1e-4


@torch.no_grad()
def test_no_frame_sees_a_later_latent_and_every_latent_is_seen() -> None:
    vae = network(2)
    codes = draws.normal((1, 4, 4, 3, 3), "codes")
    before = vae.decode(codes, 16)
    for k in range(4):
        other = codes.clone()
        other[:, :, k] += 1
        moved = (vae.decode(other, 16) - before).abs().amax((0, 1, 3, 4))
        assert torch.all(moved[: 4 * k] == 0)
        assert torch.all(moved[4 * k : 4 * k + 4] > 1e-4)


@torch.no_grad()
def test_a_still_video_is_its_image() -> None:
    vae = network(3)
    image = video(1)
    latents = vae.encode(image)[0]
    still = vae.encode(image.expand(-1, -1, 12, -1, -1))[0]
    assert apart(still, latents.expand_as(still)) < TOLERANCE


@torch.no_grad()
def test_frames_of_the_first_latent_differ() -> None:
    """If frames were repeated and then convolved, they would be equal."""
    made = network(4).decode(draws.normal((1, 4, 1, 3, 3), "codes"), 4)
    for t in range(3):
        assert (made[:, :, t] - made[:, :, t + 1]).abs().max() > 1e-3


def test_each_pixel_depends_on_a_bounded_neighbourhood() -> None:
    vae = network(5)
    clip = video(4, 96, 96).requires_grad_(True)
    vae.encode(clip)[0][0, :, 0, 12, 12].sum().backward()
    assert clip.grad is not None
    rows = clip.grad.abs().amax((0, 1, 2, 4)).nonzero().flatten()
    assert rows.min() > 0
    assert rows.max() < 95


def test_gradients_are_the_same_when_activations_are_recomputed() -> None:
    plain, sparing = network(6), network(6, gradient_checkpointing=True)
    clip = video(9)
    for vae in (plain, sparing):
        made = torch.cat(list(vae.pieces(vae.encode(clip, 4)[0], 9, 1)), dim=2)
        (made - clip).square().mean().backward()
    for (name, a), b in zip(plain.named_parameters(), sparing.parameters(), strict=True):
        assert a.grad is not None, name
        assert b.grad is not None, name
        assert a.grad.abs().max() > 0, name
        assert torch.equal(a.grad, b.grad), name


def test_an_encoding_that_ended_early_leaves_nothing_behind() -> None:
    vae = network(7)
    clip = video(16)
    with torch.no_grad():
        whole = vae.encode(clip, 4)[0]
        vae.encoder(padded(clip, 4)[:, :, :4])
        next(vae.pieces(whole, 16, 1))
        assert torch.equal(vae.encode(clip, 4)[0], whole)


def test_the_convolution_ends_with_the_present() -> None:
    """A comparison with explicit sums."""
    conv = CausalConv(1, 1, time=3, side=1, stride=(2, 1))
    with torch.no_grad():
        conv.conv.weight[:] = torch.tensor([1.0, 10.0, 100.0]).view(1, 1, 3, 1, 1)
        conv.conv.bias.zero_()  # type: ignore[union-attr]
        x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 4, 1, 1)
        made, tail = conv(x, None)
    assert made.flatten().tolist() == [1 + 10 + 200, 2 + 30 + 400]
    assert tail.flatten().tolist() == [4]


def test_the_norm_has_unit_mean_square() -> None:
    x = draws.normal((2, 5, 3, 4, 4), "x") * 7
    made = Norm(5)(x)
    assert torch.allclose(made.square().mean(1), torch.ones(2, 3, 4, 4), atol=1e-4)


def test_tails_hold_no_slice_in_memory() -> None:
    _, tail = CausalConv(2, 3)(torch.zeros(1, 2, 100, 4, 4), None)
    assert tail is not None
    assert tail.untyped_storage().nbytes() == 2 * 2 * 4 * 4 * 4


def test_patches_are_folded_and_unfolded() -> None:
    clip = video(6, 8, 8)
    small = folded(clip, 3, 2)
    assert small.shape == (1, 36, 2, 4, 4)
    # The order is colour, frame, row.
    assert torch.equal(small[0, 12 + 4 + 1, 1], clip[0, 1, 4, ::2, 1::2])
    assert torch.equal(unfolded(small, 3, 2), clip)


@torch.no_grad()
def test_untrained_it_is_a_truncated_dct() -> None:
    """The basis is orthonormal: video in the span of the lowest frequencies comes back unchanged."""
    vae = SliceVAE(SliceVae(channels=12, spatial=4, widths=(8, 12, 16), blocks=1)).eval()
    basis = lowest_frequencies(12, 4, 4).flatten(1)
    assert torch.allclose(basis @ basis.T, torch.eye(12), atol=1e-6)
    assert torch.allclose(basis[0], torch.full((192,), 192**-0.5), atol=1e-6)  # the mean comes first
    patch = (draws.normal((12,), "patch") @ basis).reshape(1, 3, 4, 4, 4)
    mean, spread = vae.encode(patch)
    assert torch.allclose(mean.flatten(), draws.normal((12,), "patch"), atol=1e-5)
    assert torch.all(spread == FIRST_LOG_VARIANCE)
    assert torch.allclose(vae.decode(mean, 4), patch, atol=1e-5)


def test_wrong_lengths_name_the_right_ones() -> None:
    vae = network()
    with pytest.raises(ValueError, match="3 latent frames are 9 to 12 frames of video, not 13"):
        next(vae.pieces(torch.zeros(1, 4, 3, 2, 2), 13))
    with pytest.raises(ValueError, match=r"vae\.widths: 2 of them, but .* takes 3"):
        SliceVae(widths=(8, 8), temporal=4, spatial=4)
    with pytest.raises(ValueError, match=r"vae\.patch: 4 is more than vae\.spatial, 2"):
        SliceVae(widths=(8,), patch=4, spatial=2, temporal=1)
    with pytest.raises(ValueError, match=r"vae\.patch_frames: 4 is more than vae\.temporal, 2"):
        SliceVae(widths=(8,), patch_frames=4, temporal=2)


def test_the_default_is_of_the_published_size() -> None:
    """EasyAnimate's autoencoder has about 100 M and 145 M parameters."""
    with torch.device("meta"):
        vae = SliceVAE(SliceVae())
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (vae.encoder, vae.decoder)]
    assert sizes == pytest.approx([97.387, 135.545], abs=0.01)
