"""The transformer: its cost, its initial weights, padding, noise strength."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from generation.config import Transformer
from generation.models import cogvideox


def shape(**changes: Any) -> Transformer:
    return Transformer(**{"layers": 2, "heads": 2, "head_dim": 16, "time_embed_dim": 32, **changes})


def tiny(seed: int = 0, **changes: Any) -> Any:
    """A model of 2 layers of width 32, with 4 latent channels and text of width 24."""
    return cogvideox.build(shape(**changes), 4, 24, 8, seed=seed)


@torch.no_grad()
def awake(model: Any, keep: str = "\0") -> Any:
    """Draw every parameter, as if the model were trained. keep: the beginning of names that do not change."""
    for k, (name, p) in enumerate(model.named_parameters()):
        if not name.startswith(keep):
            draw = torch.Generator().manual_seed(k)
            p.copy_(
                torch.randn(p.shape, generator=draw) * 0.2 + (1.0 if "norm" in name and p.ndim == 1 else 0.0)
            )
    return model


def inputs(batch: int = 2, words: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, text, network times, noise steps."""
    draw = torch.Generator().manual_seed(seed)
    latents = torch.randn(batch, 4, 3, 4, 6, generator=draw)
    text = torch.randn(batch, words, 24, generator=draw)
    return latents, text, torch.linspace(900, 100, batch), torch.linspace(650, 300, batch)


PUBLISHED = {
    "2B": Transformer(layers=30, heads=30, head_dim=64, time_embed_dim=512),
    "2B, noise strength": Transformer(
        layers=30, heads=30, head_dim=64, time_embed_dim=512, noise_strength=True
    ),
    "5B": Transformer(layers=42, heads=48, head_dim=64, time_embed_dim=512),
}


# Tokens, parameters, operations


@pytest.mark.parametrize(
    ("height", "width", "video"),
    [(256, 480, 6_240), (528, 960, 25_740), (1072, 1920, 104_520), (1440, 2560, 187_200)],
)
def test_token_counts_of_the_published_sizes(height: int, width: int, video: int) -> None:
    assert cogvideox.tokens(((49 - 1) // 4 + 1, height // 8, width // 8), 2) == video
    assert cogvideox.tokens((1, height // 8, width // 8), 2) * 13 == video  # an image is one latent frame


def test_a_side_that_the_patch_does_not_divide_is_refused() -> None:
    with pytest.raises(
        ValueError, match="height 33 is no multiple of the transformer's patch 2; take 32 or 34"
    ):
        cogvideox.tokens((13, 33, 60), 2)
    with pytest.raises(ValueError, match=r"width 1 .* take 2$"):
        cogvideox.tokens((13, 32, 1), 2)
    latents, text, time, _ = inputs()
    with pytest.raises(ValueError, match=r"width 5 .* take 4 or 6"):
        cogvideox.predict(tiny(), latents[..., :5], text, None, time)


@pytest.mark.parametrize(
    ("name", "billions"), [("2B", 1.6938), ("2B, noise strength", 1.6943), ("5B", 5.5703)]
)
def test_parameter_counts_of_the_published_sizes(name: str, billions: float) -> None:
    assert cogvideox.parameters(PUBLISHED[name], 16, 4096) / 1e9 == pytest.approx(billions, abs=5e-5)
    assert all(p.is_meta for p in cogvideox.skeleton(PUBLISHED[name], 16, 4096).parameters())


def test_parameters_are_those_of_the_model_that_is_built() -> None:
    for strength in (False, True):
        model = tiny(noise_strength=strength)
        assert cogvideox.parameters(shape(noise_strength=strength), 4, 24) == sum(
            p.numel() for p in model.parameters()
        )


@pytest.mark.parametrize(
    ("name", "grid", "tera"),
    [
        ("5B", (13, 32, 60), 83.1),
        ("2B", (13, 32, 60), 26.8),
        ("5B", (13, 60, 90), 332),
        ("2B", (13, 88, 160), 609),
        ("2B", (13, 134, 240), 2806),
        ("5B", (13, 134, 240), 6659),
    ],
)
def test_flops_of_the_published_sizes(name: str, grid: tuple[int, int, int], tera: float) -> None:
    found = cogvideox.flops(PUBLISHED[name], 16, cogvideox.tokens(grid, 2), 226, 4096)
    assert found / 1e12 == pytest.approx(tera, rel=0.01)


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("strength", [False, True])
def test_flops_are_those_that_pytorch_counts(patch: int, strength: bool) -> None:
    config = shape(layers=3, heads=3, patch=patch, noise_strength=strength)
    model = cogvideox.build(config, 4, 24, 8)
    latents, text, time, steps = inputs(batch=1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        cogvideox.predict(model, latents, text, None, time, steps if strength else None)
    video = cogvideox.tokens((3, 4, 6), patch)
    assert counter.get_total_flops() == cogvideox.flops(config, 4, video, 5, 24)


# Initial weights


def test_the_start_is_the_same_for_a_seed_and_leaves_global_draws_alone() -> None:
    before = torch.random.get_rng_state()
    one, other, third = (tiny(seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(one[name], other[name]) for name in one)
    drawn = [name for name in one if name.endswith("weight") and one[name].ndim > 1 and one[name].any()]
    assert len(drawn) == 2 * 6 + 2 + 2  # attention and feed-forward; patches, text; time
    assert not any(torch.equal(one[name], third[name]) for name in drawn)
    with_strength = tiny(noise_strength=True).state_dict()
    assert all(torch.equal(one[name], with_strength[name]) for name in one)


def test_the_start_has_the_spread_of_dit() -> None:
    model = cogvideox.build(shape(heads=8, time_embed_dim=256, noise_strength=True), 4, 24, 8)
    for layer in (model.time_embedding.linear_1, model.time_embedding.linear_2, model.ofs_embedding.linear_1):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
    width = 8 * 16
    for weight, bound in (
        (model.transformer_blocks[1].attn1.to_q.weight, (6 / (2 * width)) ** 0.5),
        (model.transformer_blocks[0].ff.net[2].weight, (6 / (5 * width)) ** 0.5),
        (model.patch_embed.proj.weight, (6 / (4 * 4 + width)) ** 0.5),  # a patch of 2 x 2 x 4 as one vector
    ):
        assert weight.abs().max().item() == pytest.approx(bound, rel=0.02)
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_the_start_predicts_zero_in_every_block_and_at_the_end() -> None:
    model = tiny(noise_strength=True)
    latents, text, time, steps = inputs()
    inside: list[tuple[Tensor, Tensor]] = []
    for block in model.transformer_blocks:
        block.register_forward_hook(
            lambda module, args, kwargs, out: inside.append((kwargs["hidden_states"], out[0])),
            with_kwargs=True,
        )
    assert not cogvideox.predict(model, latents, text, None, time, steps).any()
    assert len(inside) == 2
    assert all(torch.equal(a, b) and a.any() for a, b in inside)


def test_every_parameter_learns_within_four_steps() -> None:
    """All parameters learn, including the biases that softmax might ignore.

    Keys are normed after their bias and rotated by position after the norm's bias, so no bias adds the same
    number to all scores. Only rows that shape the text after the last block cannot learn, because nothing
    reads that text.
    """
    model = tiny(noise_strength=True)
    latents, text, time, steps = inputs()
    target = torch.randn(latents.shape, generator=torch.Generator().manual_seed(9))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    first: dict[str, int] = {}
    for step in range(1, 5):
        optimiser.zero_grad()
        (cogvideox.predict(model, latents, text, None, time, steps) - target).square().mean().backward()
        for name, p in model.named_parameters():
            if p.grad.abs().max() > 1e-12:
                first.setdefault(name, step)
        if step < 4:
            optimiser.step()
    assert set(first) == {name for name, _ in model.named_parameters()}
    assert first["proj_out.weight"] == 1
    assert (
        first["ofs_embedding.linear_1.weight"] == 4
    )  # the noise strength is behind the output layer, the gates and its own last layer
    last = model.transformer_blocks[1]
    still = {"norm1": [5], "norm2": [3, 4, 5]}  # among shift, scale, gate, and the same for text
    for name, module in (("norm1", last.norm1), ("norm2", last.norm2)):
        rows = module.linear.weight.grad.view(6, -1).abs().amax(1)
        assert [k for k in range(6) if rows[k] == 0] == still[name]


# Calls of the network


def test_predict_is_the_library_on_its_own_layout() -> None:
    model = awake(tiny())
    latents, text, time, _ = inputs()
    with torch.no_grad():
        ours = cogvideox.predict(model, latents, text, None, time)
        frames = latents.permute(0, 2, 1, 3, 4).contiguous()
        theirs = model(frames, text, time, image_rotary_emb=cogvideox.rotary(model, (3, 4, 6))).sample
    assert ours.shape == latents.shape
    assert torch.equal(ours, theirs.permute(0, 2, 1, 3, 4))


def test_a_model_in_bfloat16_answers_in_the_precision_of_its_input() -> None:
    model = awake(tiny())
    latents, text, time, _ = inputs()
    with torch.no_grad():
        exact = cogvideox.predict(model, latents, text, None, time)
        rough = cogvideox.predict(nn.Module.to(model, torch.bfloat16), latents, text, None, time)
    assert rough.dtype == torch.float32
    error = (rough - exact).abs().mean() / exact.abs().mean()
    assert 1e-4 < error < 0.05


class _Masks(TorchFunctionMode):
    """Records the masks of all calls of attention. Attention itself runs as usual."""

    def __init__(self) -> None:
        self.seen: list[Tensor | None] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.seen.append((kwargs or {}).get("attn_mask"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("heads", [1, 2])
@torch.no_grad()
def test_padding_is_invisible(heads: int) -> None:
    model = awake(tiny(heads=heads))
    latents, text, time, _ = inputs(batch=3, words=6)
    lengths = [6, 2, 1]
    mask = torch.arange(6)[None] < torch.tensor(lengths)[:, None]
    together = cogvideox.predict(model, latents, text, mask, time)
    for k, length in enumerate(lengths):
        one = slice(k, k + 1)
        alone = cogvideox.predict(model, latents[one], text[one, :length], None, time[one])
        torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=0)
    # Without the mask, padding changes the result.
    seen = cogvideox.predict(model, latents, text, None, time)
    assert (seen[1:] - together[1:]).abs().amax((1, 2, 3, 4)).min() > 1e-3
    assert torch.allclose(seen[0], together[0], atol=1e-5)


@torch.no_grad()
def test_a_mask_reaches_attention_only_where_there_is_padding() -> None:
    model = awake(tiny())
    latents, text, time, _ = inputs()
    full = torch.ones(2, 5, dtype=torch.bool)
    with _Masks() as masks:
        cogvideox.predict(model, latents, text, None, time)
        cogvideox.predict(model, latents, text, full, time)
    assert masks.seen == [None] * 4
    full[1, 3:] = False
    with _Masks() as masks:
        cogvideox.predict(model, latents, text, full, time)
    assert len(masks.seen) == 2
    for mask in masks.seen:
        assert mask is not None
        assert mask[..., 0, :].sum(-1).tolist() == [[5 + 18] * 2, [3 + 18] * 2]


def test_padding_gets_no_gradient() -> None:
    model = awake(tiny())
    latents, text, time, _ = inputs()
    text.requires_grad_(True)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    cogvideox.predict(model, latents, text, mask, time).square().sum().backward()
    size = text.grad.abs().amax(2)
    assert (size[mask] > 0).all()
    assert (size[~mask] == 0).all()


@torch.no_grad()
def test_time_and_noise_strength_are_of_each_sample() -> None:
    model = awake(tiny(noise_strength=True))
    latents, text, time, steps = inputs()
    same = latents[:1].expand(2, -1, -1, -1, -1), text[:1].expand(2, -1, -1)
    by_time = cogvideox.predict(model, *same, None, time, steps[:1].expand(2))
    by_strength = cogvideox.predict(model, *same, None, time[:1].expand(2), steps)
    for out in (by_time, by_strength):
        assert (out[0] - out[1]).abs().max() > 1e-3
    for k in range(2):
        alone = cogvideox.predict(model, latents[:1], text[:1], None, time[:1], steps[k : k + 1])
        torch.testing.assert_close(by_strength[k : k + 1], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_noise_strength_changes_nothing_at_the_start() -> None:
    latents, text, time, steps = inputs()
    plain = cogvideox.predict(awake(tiny()), latents, text, None, time)
    model = tiny(noise_strength=True)
    model.load_state_dict(awake(tiny()).state_dict(), strict=False)
    assert model.ofs_embedding.linear_1.weight.any()
    for k in (steps, steps + 100):
        assert torch.equal(cogvideox.predict(model, latents, text, None, time, k), plain)


def test_checkpointed_gradients_are_the_same() -> None:
    latents, text, time, steps = inputs()
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    gradients = []
    for checkpointed in (False, True):
        model = awake(tiny(noise_strength=True, gradient_checkpointing=checkpointed))
        assert model.is_gradient_checkpointing == checkpointed
        cogvideox.predict(model, latents, text, mask, time, steps).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
