"""The training loss of an autoencoder: it must reconstruct the video from codes that are nearly normal.

The discriminators learn in the same step as the autoencoder, from the same reconstruction. There is one loss,
one backward pass and one optimiser, so an exact resume needs no further state.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from generation.codecs.slice_vae.discriminator import Discriminator, hinge, unconvinced
from generation.codecs.slice_vae.network import SliceVAE
from generation.codecs.slice_vae.perceptual import Extractor, distance
from generation.config import SliceVae, VaeLoss


class VaeTask(nn.Module):
    """The autoencoder, and the networks that judge its reconstructions. Only `vae` is exported.

    `forward` returns the losses of each sample separately, so the batch and the layout of processes have no
    effect on them.
    """

    def __init__(self, settings: SliceVae, loss: VaeLoss, extract: Extractor | None = None):
        super().__init__()
        self.vae = SliceVAE(settings)
        self.discriminator = Discriminator(loss.discriminator_width) if loss.adversarial else None
        self._loss = loss
        self._extract = [extract] if extract else []  # in a list, so that its weights stay out of this module

    def forward(
        self, video: Tensor, noise: Tensor, judged: bool = False, decoder_only: bool = False
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The loss (B,), its parts by name, each (B,) without a gradient, and the reconstruction.

        video: (B, 3, T, H, W) in [-1, 1], as is the reconstruction; noise: standard normal, in the shape of
        the codes (B, C, t, h, w); judged: whether the discriminators are used; decoder_only: the encoder gets
        no gradient.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not decoder_only):
            mean, log_variance = self.vae.encode(video)
        codes = mean + noise * (0.5 * log_variance).exp()
        made = self.vae.decode(codes, video.shape[2]).float()
        weights = self._loss
        parts = {
            "l1": (made - video).abs().flatten(1).mean(1),
            "l2": (made - video).square().flatten(1).mean(1),
        }
        total = weights.l1 * parts["l1"] + weights.l2 * parts["l2"]
        if self._extract:
            parts["perceptual"] = self._perceptual(made, video)
            total = total + weights.perceptual * parts["perceptual"]
        parts["kl"] = divergence(mean, log_variance, video[0].numel())
        faithful, total = total, total + weights.kl * parts["kl"]
        if judged and self.discriminator is not None and torch.is_grad_enabled():
            parts["adversarial"] = self._unconvinced(made)
            share = balance(faithful, parts["adversarial"], made)
            parts["discriminator"] = hinge(self.discriminator(video), self.discriminator(made.detach()))
            total = total + weights.adversarial * share * parts["adversarial"] + parts["discriminator"]
        return total, {name: part.detach() for name, part in parts.items()}, made.detach()

    def _perceptual(self, made: Tensor, video: Tensor) -> Tensor:
        frames = [x.transpose(1, 2).flatten(0, 1) for x in (made, video)]
        return distance(self._extract[0], *frames).reshape(len(made), -1).mean(1)

    def _unconvinced(self, made: Tensor) -> Tensor:
        """The adversarial loss (B,). Its gradient reaches the reconstruction, not the discriminators."""
        assert self.discriminator is not None
        still = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        return unconvinced(cast(list[Tensor], functional_call(self.discriminator, still, (made,))))


def divergence(mean: Tensor, log_variance: Tensor, values: int) -> Tensor:
    """The Kullback-Leibler divergence of N(mean, variance) from N(0, 1), in nats per value: (B,).

    values: the number of values of one video.
    """
    each = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return each.flatten(1).sum(1) / values


def balance(faithful: Tensor, adversarial: Tensor, made: Tensor) -> Tensor:
    """The factor (B,) for `adversarial` that gives the gradients of both losses equal length.

    The gradients are taken at the reconstruction `made` (B, 3, T, H, W), as in an audio codec (Défossez et
    al. 2022). There each sample has a separate gradient, and weights may be sharded. VQGAN takes the
    gradients at the weights of the last layer (Esser et al. 2021).
    """
    lengths = [
        torch.autograd.grad(loss.sum(), made, retain_graph=True)[0].flatten(1).norm(dim=1)
        for loss in (faithful, adversarial)
    ]
    return (lengths[0] / (lengths[1] + 1e-4)).clamp(max=1e4).detach()
