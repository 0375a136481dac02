"""Scores for evaluation: they compare a video with the true video, or a set of videos with another set.

Videos are (B, 3, T, H, W) in [-1, 1]. Sets are compared by features (N, D).
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from generation.media import to_uint8

_MOVING = 0.1  # this share of the pixels, with the longest flow, is what moves


def error(a: Tensor, b: Tensor) -> Tensor:
    """The mean squared difference of each sample, (B,)."""
    return (a - b).square().flatten(1).mean(1)


def psnr(made: Tensor, true: Tensor) -> Tensor:
    """PSNR (B,) in dB, from the mean squared error over all frames; at most 100."""
    return 10 * torch.log10(4 / error(made.clamp(-1, 1), true).clamp(min=4e-10))


def ssim(made: Tensor, true: Tensor) -> Tensor:
    """Structural similarity (B,), as the mean over frames (Wang et al. 2004).

    torchmetrics computes it, and mirrors frames at their borders. Frames have at least 6 pixels a side.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    found = []
    for pair in zip(made, true, strict=True):  # one by one, to save memory
        a, b = (video.clamp(-1, 1).transpose(0, 1).float() for video in pair)  # (T, 3, H, W)
        similarity = structural_similarity_index_measure(a, b, data_range=(-1.0, 1.0))
        assert isinstance(similarity, Tensor)
        found.append(similarity)
    return torch.stack(found)


def flicker(made: Tensor, true: Tensor) -> Tensor:
    """PSNR (B,) in dB of the differences between neighbouring frames, compared with the true video's.

    It is low if a video flickers. The range of differences is twice the range of frames.
    """
    change = [v.clamp(-1, 1).diff(dim=2) for v in (made, true)]
    return 10 * torch.log10(16 / error(*change).clamp(min=16e-10))


def bicubic(video: Tensor, scale: float) -> Tensor:
    """Videos scaled down by `scale` without aliasing, and up again, in the same shape."""
    height, width = video.shape[-2:]
    small = resized(video, max(1, round(height / scale)), max(1, round(width / scale)))
    return resized(small, height, width)


def resized(video: Tensor, height: int, width: int) -> Tensor:
    """Videos (B, 3, T, height, width), scaled bicubically; scaling down is antialiased."""
    b, c, t, h, w = video.shape
    if (h, w) == (height, width):
        return video
    frames = video.transpose(1, 2).reshape(b * t, c, h, w)
    made = F.interpolate(frames, (height, width), mode="bicubic", antialias=True, align_corners=False)
    return made.clamp(-1, 1).reshape(b, t, c, height, width).transpose(1, 2)


def detail(made: Tensor, true: Tensor, scale: float) -> Tensor:
    """Energy that `bicubic` loses, over that of the true video: (B,). 1 means the same amount of detail."""
    return error(made, bicubic(made, scale)) / error(true, bicubic(true, scale)).clamp(min=1e-12)


def direction(video: Tensor) -> Tensor:
    """The movement in each video (B, 2): frame widths to the right, and frame heights downwards.

    It uses DIS optical flow (Kroeger et al. 2016) from each frame to the next. The flow is averaged over the
    tenth of the pixels that move most, and summed over the video.
    """
    import cv2  # imported here, as generation also runs without OpenCV

    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    found = []
    for frames in to_uint8(video):  # (T, H, W, 3)
        height, width = frames.shape[1:3]
        side = max(1, math.ceil(128 / min(height, width)))  # small pictures are enlarged
        size = (side * width, side * height)
        grey = [
            cv2.cvtColor(cv2.resize(f, size, interpolation=cv2.INTER_CUBIC), cv2.COLOR_RGB2GRAY)
            for f in frames
        ]
        way = np.zeros(2)
        for before, after in pairwise(grey):
            vectors = flow.calc(before, after, None).reshape(-1, 2)  # type: ignore[call-overload]
            length = np.hypot(*vectors.T)
            moving = np.argsort(length)[-int(len(length) * _MOVING) :]
            way += vectors[moving].mean(0) / size
        found.append(way)
    return torch.from_numpy(np.stack(found))


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of two sets of features (N, D) and (M, D): |m-n|^2 + tr(A + B - 2 (A B)^(1/2)).

    m, n are the means and A, B the covariances of features, which are taken as normally distributed (Heusel
    et al. 2017). Small sets have larger distances: compare only sets of one size.
    """
    a, b = a.double(), b.double()
    one, two = torch.cov(a.T), torch.cov(b.T)
    # (A B) has the eigenvalues of A^(1/2) B A^(1/2), which is symmetric.
    values, vectors = torch.linalg.eigh(one)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ two @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + one.trace() + two.trace() - 2 * mixed)


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Squared maximum mean discrepancy of features (N, D) and (M, D), without bias (Binkowski et al. 2018).

    The kernel is (x.y / D + 1)^3. The value is around 0, above or below, for two sets of one distribution.
    Features are first divided by their root mean square over both sets, since the kernel has a scale.
    """
    a, b = a.double(), b.double()
    scale = torch.cat([a, b]).square().mean().sqrt().clamp(min=1e-12)
    a, b = a / scale, b / scale

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        k, n = kernel(x, x), len(x)
        return (k.sum() - k.trace()) / (n * (n - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())


def spread(videos: Tensor) -> float:
    """How much videos (N, 3, T, H, W) of one prompt differ.

    This is the mean over all pairs of the root mean square difference, in levels of 255.
    """
    flat = videos.flatten(1).double()
    n = len(flat)
    pairs = [error(flat[i : i + 1], flat[j : j + 1]).sqrt() for i in range(n) for j in range(i + 1, n)]
    return float(torch.cat(pairs).mean()) * 127.5
