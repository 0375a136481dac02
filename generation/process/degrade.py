"""The start of Stage II: how a sharp clip is made to look like an enlarged preview.

First the pixels are degraded (weakly or strongly). Then noise is added to the latents. Every parameter and
the noise field are drawn once per clip and are the same for all frames of the clip. Values that change from
frame to frame would teach the model to smooth motion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import av
import av.video
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from generation import config, draws
from generation.process import diffusion

SMALLEST = 16  # pixels a side

Mode = Literal["area", "bilinear", "bicubic"]
Key = tuple[int | str, ...]


@dataclass(frozen=True)
class Pass:
    """One round of the strong chain: blur, resize, noise, codec, in this order."""

    sigma: tuple[float, float]  # of the Gaussian blur: vertical, horizontal; in pixels of the round's input
    size: tuple[int, int]  # height and width after the resize
    mode: Mode
    noise: float  # standard deviation, for pixels in [-1, 1]
    grey: bool  # True: the same noise in all three colours
    crf: int | None  # of H.264; None: no codec


def degrade_pixels(video: Tensor, degradation: config.Degradation, *key: int | str) -> Tensor:
    """Degrade clips (B, 3, T, H, W) in [-1, 1]. The result is float32 with the same shape and range.

    Each clip is scaled down by a factor drawn from `degradation.scale`, and then scaled back. Weak: a direct
    resize. Strong, with probability `degradation.strong_probability`: two rounds of blur, resize, noise and
    codec. Only `key` and the place in the batch decide the draws. H and W are at least 16; T is any length.
    """
    assert video.ndim == 5, tuple(video.shape)
    assert video.shape[1] == 3, tuple(video.shape)
    assert min(video.shape[3:]) >= SMALLEST, tuple(video.shape)
    return torch.stack([_degrade_clip(clip, degradation, (*key, k)) for k, clip in enumerate(video.float())])


def _degrade_clip(clip: Tensor, degradation: config.Degradation, key: Key) -> Tensor:
    """Degrade one clip (3, T, H, W). The shape stays."""
    frames = clip.transpose(0, 1)  # (T, 3, H, W)
    size = (frames.shape[2], frames.shape[3])
    factor = _between(*degradation.scale, *key, "scale")
    if draws.uniform(*key, "strong") < degradation.strong_probability:
        small = strong(frames, draw_passes(size, factor, *key), *key)
    else:
        small = _resize(frames, _reduced(size, factor), "bilinear")
    # Stage II enlarges a preview with the same filter.
    return _resize(small, size, "bilinear").transpose(0, 1)


def _between(low: float, high: float, *key: int | str) -> float:
    return low + (high - low) * draws.uniform(*key)


def _reduced(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return max(1, round(size[0] / factor)), max(1, round(size[1] / factor))


def _resize(frames: Tensor, size: tuple[int, int], mode: Mode) -> Tensor:
    """Resize (T, 3, H, W) to (T, 3, *size) without aliasing, in [-1, 1]."""
    if size == tuple(frames.shape[2:]):
        return frames
    if mode == "area":
        return F.interpolate(frames, size, mode="area")
    return F.interpolate(frames, size, mode=mode, align_corners=False, antialias=True).clamp(-1, 1)


# ---- the strong chain


def draw_passes(size: tuple[int, int], factor: float, *key: int | str) -> tuple[Pass, Pass]:
    """The two rounds of the strong chain, which together scale frames of `size` down by `factor`.

    FlashVideo does not describe its chain. This chain has the order of Real-ESRGAN's chain: two rounds, and
    the second round is weaker. The ranges are choices of this project. Blur is proportional to the factor of
    the round, so that the ranges suit any resolution.
    """
    share = _between(0.3, 0.7, *key, "share")  # of the factor (as exponent), in the first round
    first, second = factor**share, factor ** (1 - share)
    return (
        _draw_pass(_reduced(size, first), first, 0.5, 20 / 255, (18, 32), (*key, 1)),
        _draw_pass(_reduced(size, factor), second, 0.25, 10 / 255, (18, 26), (*key, 2)),
    )


def _draw_pass(
    size: tuple[int, int], factor: float, blur: float, noise: float, crf: tuple[int, int], key: Key
) -> Pass:
    """Draw one round. `blur` * `factor` (in pixels) and `noise` are upper bounds; `crf` is a range."""
    modes: tuple[Mode, ...] = ("area", "bilinear", "bicubic")
    sigma = _between(0.05, blur, *key, "sigma") * factor
    across = _between(0.05, blur, *key, "across") * factor
    return Pass(
        sigma=(sigma, across if draws.uniform(*key, "anisotropic") < 0.5 else sigma),
        size=size,
        mode=modes[int(len(modes) * draws.uniform(*key, "mode"))],
        noise=_between(0, noise, *key, "strength"),
        grey=draws.uniform(*key, "grey") < 0.5,
        crf=int(_between(crf[0], crf[1] + 1, *key, "crf")),
    )


def strong(frames: Tensor, passes: tuple[Pass, ...], *key: int | str) -> Tensor:
    """Apply `passes` to frames (T, 3, H, W) in [-1, 1]. The result has the size of the last pass.

    key: decides the noise.
    """
    for number, one in enumerate(passes):
        frames = _resize(_blur(frames, one.sigma), one.size, one.mode)
        field = draws.normal((1 if one.grey else 3, *one.size), *key, "noise", number).to(frames)
        field = field - field.mean((1, 2), keepdim=True)  # with few pixels the mean would be a colour cast
        frames = (frames + one.noise * field).clamp(-1, 1)
        if one.crf is not None:
            frames = _h264(frames, one.crf)
    return frames


def _blur(frames: Tensor, sigma: tuple[float, float]) -> Tensor:
    """Gaussian blur of (T, 3, H, W) along both axes. An oblique blur needs 2D kernels: ten times the work.

    The blur is a sum of shifted frames, ten times as fast as `conv2d`, which is slow for single channels.
    One frame is blurred at a time, so that the frame stays in the processor's cache.
    """
    return torch.stack([_blur_along(_blur_along(frame, 1, sigma[0]), 2, sigma[1]) for frame in frames])


def _blur_along(frame: Tensor, axis: int, sigma: float) -> Tensor:
    """Blur one frame (3, H, W) along `axis` 1 or 2. Pixels outside of the frame repeat the edge."""
    radius = math.ceil(3 * sigma)
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)]
    total = sum(weights)
    padded = F.pad(frame, (0, 0, radius, radius) if axis == 1 else (radius, radius, 0, 0), mode="replicate")
    out = torch.zeros_like(frame)
    for k, weight in enumerate(weights):
        out.add_(padded.narrow(axis, k, frame.shape[axis]), alpha=weight / total)
    return out


# BT.601 at full range, rows Y, U, V. The conversion of the codec's library is not used, because it rounds
# down: each conversion would darken frames by a level, and the model would learn to brighten previews.
_YUV = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


def _h264(frames: Tensor, crf: int) -> Tensor:
    """Encode frames (T, 3, H, W) in [-1, 1] as H.264 and decode them. Colour has half the resolution.

    Frames of any size are padded to whole macroblocks by repeating the edge, and cropped afterwards.
    """
    height, width = frames.shape[2:]
    padded = F.pad(frames.cpu(), (0, -width % 16, 0, -height % 16), mode="replicate")  # (T, 3, H', W')
    yuv = torch.einsum("dc,tchw->tdhw", _YUV, padded * 127.5) + torch.tensor([127.5, 128, 128])[:, None, None]
    planes = [yuv[:, :1], F.avg_pool2d(yuv[:, 1:2], 2), F.avg_pool2d(yuv[:, 2:], 2)]
    flat = torch.cat([p.flatten(1) for p in planes], 1).round().clamp(0, 255).byte()  # (T, H' * W' * 3/2)
    decoded = _encode_decode(flat.reshape(len(frames), -1, yuv.shape[3]).numpy(), crf)
    flat = torch.from_numpy(decoded).flatten(1).float()
    y, u, v = flat.split([p[0].numel() for p in planes], dim=1)
    colour = torch.stack([u, v], 1).reshape(len(frames), 2, *planes[1].shape[2:])
    colour = F.interpolate(colour, scale_factor=2, mode="bilinear", align_corners=False) - 128
    yuv = torch.cat([y.reshape_as(planes[0]) - 127.5, colour], 1) / 127.5
    rgb = torch.einsum("dc,tchw->tdhw", torch.linalg.inv(_YUV), yuv)
    return rgb[:, :, :height, :width].clamp(-1, 1).to(frames)


def _encode_decode(pictures: np.ndarray, crf: int) -> np.ndarray:
    """Encode planar yuv420p pictures (T, 3H/2, W) uint8 as H.264 and decode them.

    Equal pictures must give equal results. The encoder and the decoder therefore use one thread each, because
    decisions may depend on the number of threads. The macroblock tree is off: in libx264 the tree reads
    uninitialised memory (seen at widths up to 80), so its decisions sometimes change.
    """
    encoder = av.CodecContext.create("libx264", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.height, encoder.width = pictures.shape[1] * 2 // 3, pictures.shape[2]
    encoder.pix_fmt = "yuv420p"
    encoder.time_base = Fraction(1, 8)
    encoder.thread_count = 1
    encoder.options = {"crf": str(crf), "preset": "veryfast", "x264-params": "mbtree=0"}
    packets = []
    for number, picture in enumerate(pictures):
        frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
        frame.pts = number
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    decoder = av.CodecContext.create("h264", "r")
    assert isinstance(decoder, av.VideoCodecContext)
    decoder.thread_count = 1
    decoded = [frame.to_ndarray() for packet in [*packets, None] for frame in decoder.decode(packet)]
    assert len(decoded) == len(pictures), (len(decoded), len(pictures))
    return np.stack(decoded)


# ---- latents


def degrade_latents(z: Tensor, noise: Tensor, k: int | Tensor) -> Tensor:
    """Stage II's start, a_k z + b_k noise, for latents z (B, C, t, h, w).

    The schedule has no SNR shift. k: one noise step, or steps (B,).
    """
    return diffusion.add_noise(z, noise, k)


def noise_center(tokens: int) -> int:
    """The noise step that suits clips of `tokens` video tokens: 60 + 97.6 ln(tokens / 192), within 20..900.

    The formula is an interpolation of this project between two anchors. The upper anchor is FlashVideo's: 675
    at 104,520 tokens, with more noise for more pixels and more frames. The lower anchor is for toy sizes,
    which need noise of 0.1 to 0.4 (step 60: 0.25).
    """
    assert tokens >= 1, tokens
    return round(min(900.0, max(20.0, 60 + 97.6 * math.log(tokens / 192))))


def noise_range(tokens: int, kind: Literal["wide", "narrow"]) -> tuple[int, int]:
    """The first and the last noise step of training, around `noise_center`.

    At 104,520 tokens, whose centre is 675, the ranges are the published ones: 600..900 (wide: the first
    phases) and 650..750 (narrow: the last phases). For other sizes they are scaled in proportion to the
    centre, which is a choice of this project.
    """
    low, high = (600, 900) if kind == "wide" else (650, 750)
    center = noise_center(tokens)
    return round(center * low / 675), min(999, round(center * high / 675))
