"""What an autoencoder is trained for: to give back the video, from codes that are nearly normal.

The discriminators learn in the same step as the autoencoder, from the same reconstruction: one loss, one
backward pass, one optimiser, and so nothing more to be kept for an exact resume.
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
    """The autoencoder and what judges it. Only `vae` is exported.

    `forward` gives everything that is minimised, for each sample alone: neither the batch nor the layout of
    processes matters.
    """

    def __init__(self, settings: SliceVae, loss: VaeLoss, extract: Extractor | None = None):
        super().__init__()
        self.vae = SliceVAE(settings)
        self.discriminator = Discriminator(loss.discriminator_width) if loss.adversarial else None
        self._loss = loss
        self._extract = [extract] if extract else []  # in a list: its weights are not this module's

    def forward(
        self, video: Tensor, noise: Tensor, judged: bool = False, decoder_only: bool = False
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The loss of each sample (B,); its parts by name, each (B,) and without a gradient; and the video
        that was made.

        video (B, 3, T, H, W) in [-1, 1]; noise: standard normal, in the shape of the codes; judged: the
        discriminators take part; decoder_only: the encoder gets no gradient.
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
        """Its gradient goes to the reconstruction, and not to the discriminators' weights."""
        assert self.discriminator is not None
        still = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        return unconvinced(cast(list[Tensor], functional_call(self.discriminator, still, (made,))))


def divergence(mean: Tensor, log_variance: Tensor, values: int) -> Tensor:
    """Kullback-Leibler from N(mean, variance) to N(0, 1), in nats per value of the video: (B,)."""
    each = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return each.flatten(1).sum(1) / values


def balance(faithful: Tensor, adversarial: Tensor, made: Tensor) -> Tensor:
    """The factor (B,) that gives both losses gradients of one length at the reconstruction (B, 3, T, H, W).

    VQGAN compares them at the last layer's weights (Esser et al. 2021), a codec of sound at its output
    (Défossez et al. 2022), as here: there each sample has its own, and weights may be sharded.
    """
    lengths = [
        torch.autograd.grad(loss.sum(), made, retain_graph=True)[0].flatten(1).norm(dim=1)
        for loss in (faithful, adversarial)
    ]
    return (lengths[0] / (lengths[1] + 1e-4)).clamp(max=1e4).detach()
