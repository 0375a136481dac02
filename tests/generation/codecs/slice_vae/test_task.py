"""The losses of an autoencoder: closed forms, the gradients of each part, and independent samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from generation import draws
from generation.codecs.slice_vae.discriminator import Discriminator, hinge, unconvinced
from generation.codecs.slice_vae.perceptual import distance, open_extractor
from generation.codecs.slice_vae.task import VaeTask, balance, divergence
from generation.config import SliceVae, VaeLoss

VAE = SliceVae(channels=4, spatial=4, widths=(8, 12, 16), blocks=1)


def task(extract: Any = None, **loss: Any) -> VaeTask:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = VaeTask(VAE, VaeLoss(**{"discriminator_width": 8, **loss}), extract)
        nn.init.normal_(made.vae.decoder.out.weight, std=0.05)  # otherwise the network's output would be zero
        nn.init.normal_(made.vae.encoder.out.weight, std=0.05)
    return made


def clips(count: int = 2, frames: int = 8) -> tuple[Tensor, Tensor]:
    video = draws.normal((count, 3, frames, 16, 24), "video").clamp(-1, 1)
    return video, draws.normal((count, 4, -(-frames // 4), 4, 6), "noise")


def test_divergence_is_that_of_normal_distributions() -> None:
    mean = draws.normal((3, 4, 2, 2, 2), "mean")
    log_variance = draws.normal((3, 4, 2, 2, 2), "variance")
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (log_variance / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    assert torch.allclose(divergence(mean, log_variance, 100), kl.flatten(1).sum(1) / 100, rtol=1e-5)


def test_balanced_losses_have_gradients_of_one_length() -> None:
    made = draws.normal((3, 5), "made").requires_grad_(True)
    faithful = made.abs().mean(1)
    adversarial = 7 * made.square().sum(1)
    share = balance(faithful, adversarial, made)
    lengths = [
        torch.autograd.grad(loss.sum(), made, retain_graph=True)[0].norm(dim=1)
        for loss in (faithful, share * adversarial)
    ]
    assert not share.requires_grad
    assert torch.allclose(*lengths, rtol=1e-3)


def test_hinge_losses_against_sums_by_hand() -> None:
    real, made = [torch.tensor([[2.0, 0.0]])], [torch.tensor([[-3.0, 1.0]])]
    assert hinge(real, made).tolist() == [0.5 * ((0 + 0) + (1 + 2)) / 2]
    assert unconvinced(made).tolist() == [1.0]
    both = [*real, torch.tensor([[5.0]])], [*made, torch.tensor([[0.0]])]
    assert hinge(*both).tolist() == [(0.75 + 0.5) / 2]


def test_the_loss_is_the_sum_of_its_parts() -> None:
    video, noise = clips()
    total, parts, _ = task(kl=0.01, l2=0.5)(video, noise)
    assert torch.allclose(total, parts["l1"] + 0.5 * parts["l2"] + 0.01 * parts["kl"])
    assert all(not part.requires_grad for part in parts.values())


def test_the_codes_are_drawn_with_the_noise_that_is_given() -> None:
    video, noise = clips()
    made = task()
    with torch.no_grad():
        mean, log_variance = made.vae.encode(video)
        decoded = made.vae.decode(mean + (log_variance / 2).exp() * noise, 8)
        _, parts, _ = made(video, noise)
    assert torch.allclose(parts["l1"], (decoded - video).abs().flatten(1).mean(1), rtol=1e-6)


def test_each_sample_is_judged_alone() -> None:
    video, noise = clips(3)
    made = task(adversarial=0.5)
    together, _, _ = made(video, noise, judged=True)
    for k in range(3):
        alone, _, _ = made(video[k : k + 1], noise[k : k + 1], judged=True)
        assert torch.allclose(alone, together[k : k + 1], rtol=1e-5)


def test_the_autoencoder_and_the_discriminators_learn_each_from_its_own() -> None:
    """The discriminators learn only from the hinge loss. The autoencoder learns from all other losses."""
    video, noise = clips()
    made = task(adversarial=0.5, l1=1.0)
    assert made.discriminator is not None
    total, _, _ = made(video, noise, judged=True)
    total.sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    found = [p.grad.clone() for p in made.discriminator.parameters() if p.grad is not None]
    made.zero_grad()
    with torch.no_grad():
        mean, log_variance = made.vae.encode(video)
        decoded = made.vae.decode(mean + noise * (0.5 * log_variance).exp(), 8)
    hinge(made.discriminator(video), made.discriminator(decoded)).sum().backward()
    for a, parameter in zip(found, made.discriminator.parameters(), strict=True):
        assert parameter.grad is not None
        assert torch.allclose(a, parameter.grad, rtol=1e-4, atol=1e-7)


def test_what_judges_changes_what_the_autoencoder_learns_by_its_share() -> None:
    video, noise = clips(1)
    gradients = []
    for weight, judged in ((0.5, False), (0.5, True), (1.0, True)):
        made = task(adversarial=weight)
        made(video, noise, judged=judged)[0].sum().backward()
        gradients.append(made.vae.decoder.out.bias.grad)
    still, half, whole = gradients
    assert still is not None
    assert half is not None
    assert whole is not None
    assert (half - still).norm() > 1e-3 * still.norm()
    assert torch.allclose(whole - still, 2 * (half - still), rtol=1e-3, atol=1e-6)


def test_alone_the_decoder_leaves_the_encoder_without_gradients() -> None:
    video, noise = clips()
    made = task(adversarial=0.5)
    total, _, _ = made(video, noise, judged=True, decoder_only=True)
    total.sum().backward()
    assert all(p.grad is None for p in made.vae.encoder.parameters())
    assert all(p.grad is not None for p in made.vae.decoder.parameters())


def test_images_and_short_videos_are_judged_by_frames_alone() -> None:
    judge = Discriminator(8)
    assert [s.shape[0] for s in judge(torch.zeros(2, 3, 1, 16, 16))] == [2]
    assert [s.shape[0] for s in judge(torch.zeros(2, 3, 8, 16, 24))] == [2, 2]


class Edges(nn.Module):
    """An extractor that a user could write: differences of neighbouring pixels."""

    def __init__(self, weights: str | None):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(weights or 1)))

    def forward(self, pictures: Tensor) -> list[Tensor]:
        return [self.scale * (pictures[..., 1:] - pictures[..., :-1]), pictures]


def test_the_perceptual_distance_is_of_directions() -> None:
    extract = open_extractor("tests.generation.codecs.slice_vae.test_task:Edges", None, torch.device("cpu"))
    pictures = draws.normal((2, 3, 8, 8), "pictures")
    assert distance(extract, pictures, pictures).tolist() == [0, 0]
    assert distance(extract, pictures, 3 * pictures).abs().max() < 1e-6
    assert torch.allclose(distance(extract, pictures, -pictures), torch.tensor([8.0, 8.0]))


def test_a_perceptual_term_takes_part_and_its_weights_do_not_learn() -> None:
    extract = open_extractor("tests.generation.codecs.slice_vae.test_task:Edges", "2", torch.device("cpu"))
    assert isinstance(extract, Edges)
    assert float(extract.scale.detach()) == 2
    video, noise = clips()
    made = task(extract, perceptual=0.7)
    total, parts, _ = made(video, noise)
    assert torch.allclose(total, parts["l1"] + 0.7 * parts["perceptual"] + 1e-6 * parts["kl"])
    total.sum().backward()
    assert extract.scale.grad is None
    assert "scale" not in "".join(made.state_dict())


def test_vgg_gives_the_features_of_torchvision(tmp_path: Path) -> None:
    """The weights are random, because the published weights need a download."""
    from torchvision.models import vgg16

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = vgg16(weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "vgg16.pth")
    extract = open_extractor("vgg16", str(tmp_path / "vgg16.pth"), torch.device("cpu"))
    pictures = draws.normal((1, 3, 32, 32), "pictures").clamp(-1, 1)
    with torch.no_grad():
        found = extract(pictures)
        x = (pictures + 1) / 2
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        expected = [network.features[:k](x) for k in (4, 9, 16, 23, 30)]
    assert [f.shape[1] for f in found] == [64, 128, 256, 512, 512]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_extractors_that_cannot_be_had_name_the_key_and_the_remedy(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(ValueError, match=r"vae_loss\.extractor: no\.such:thing cannot be loaded .* vgg16"):
        open_extractor("no.such:thing", None, cpu)
    with pytest.raises(ValueError, match=r"vae_loss\.extractor: .* whose factory takes"):
        open_extractor("tests.generation.codecs.slice_vae.test_task:clips", "a", cpu)
    with pytest.raises(ValueError, match=r"vae_loss\.extractor_weights: .* write vae_loss\.perceptual=0"):
        open_extractor("vgg16", str(tmp_path / "none.pth"), cpu)
