"""Low-rank adapters: counts, training, and the file that diffusers' pipeline loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from generation.config import ADAPTIVE_NORM, ATTENTION, FEED_FORWARD, Lora
from generation.models import cogvideox, lora
from tests.generation.models.test_cogvideox import PUBLISHED, awake, inputs, tiny

SETTINGS = Lora(rank=3, alpha=6.0)


@torch.no_grad()
def trained(model: Any) -> Any:
    """Make the adapters of a model nonzero, so that they change the output."""
    for k, p in enumerate(lora.trainable(model).values()):
        p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(k)) * 0.3)
    return model


@torch.no_grad()
def output(model: Any) -> torch.Tensor:
    latents, text, time, _ = inputs()
    return cogvideox.predict(model, latents, text, None, time)


def pipeline(model: Any) -> Any:
    """diffusers' pipeline around a transformer. A LoRA uses no other part of the pipeline."""
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDPMScheduler, CogVideoXPipeline

    with torch.random.fork_rng():
        vae = AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2, latent_channels=4
        )
    return CogVideoXPipeline(None, None, vae, model, CogVideoXDPMScheduler())


@pytest.mark.parametrize(
    ("targets", "millions"), [(ATTENTION, 132.1), (FEED_FORWARD, 165.2), (ADAPTIVE_NORM, 203.7)]
)
def test_counts_of_the_published_adapter(targets: tuple[str, ...], millions: float) -> None:
    model = cogvideox.skeleton(PUBLISHED["5B"], 16, 4096)
    settings = Lora(rank=128, targets=targets)
    assert lora.parameters(model, settings) / 1e6 == pytest.approx(millions, abs=0.05)
    with torch.device("meta"):
        lora.add(model, settings)
    adapters = lora.trainable(model)
    assert sum(p.numel() for p in adapters.values()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert all(p.is_meta for p in adapters.values())


def test_a_fresh_adapter_changes_nothing_and_is_the_same_for_a_seed() -> None:
    before, state = output(awake(tiny())), torch.random.get_rng_state()
    models = [awake(tiny()) for _ in range(3)]
    for model, seed in zip(models, (5, 5, 6), strict=True):
        lora.add(model, SETTINGS, seed)
        assert torch.equal(output(model), before)
    assert torch.equal(torch.random.get_rng_state(), state)
    one, same, other = (lora.trainable(model) for model in models)
    assert len(one) == 2 * 2 * 8
    for name, p in one.items():
        assert torch.equal(p, same[name])
        if "lora_A" in name:
            assert not torch.equal(p, other[name])
            assert p.abs().max() <= p.shape[1] ** -0.5
            assert p.std().item() == pytest.approx((3 * p.shape[1]) ** -0.5, rel=0.35)
        else:
            assert not p.any()


def test_only_adapters_learn_and_all_of_them_do() -> None:
    model = awake(tiny())
    frozen = {name: p.clone() for name, p in model.named_parameters()}
    lora.add(model, SETTINGS)
    adapters = lora.trainable(model)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(adapters)
    latents, text, time, _ = inputs()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    learnt = set()
    losses = []
    for _ in range(10):
        optimiser.zero_grad()
        loss = (cogvideox.predict(model, latents, text, None, time) - latents).square().mean()
        loss.backward()
        learnt |= {name for name, p in adapters.items() if p.grad.abs().max() > 0}
        losses.append(loss.item())
        optimiser.step()
    assert learnt == set(adapters)
    assert losses[-1] < 0.9 * losses[0]
    plain = {
        name.replace(".base_layer", ""): p for name, p in model.named_parameters() if name not in adapters
    }
    assert plain.keys() == frozen.keys()
    assert all(torch.equal(plain[name], frozen[name]) for name in frozen)


def test_adapters_of_a_model_in_bfloat16_are_float32() -> None:
    model = torch.nn.Module.to(awake(tiny()), torch.bfloat16)
    lora.add(model, SETTINGS)
    assert {p.dtype for p in lora.trainable(model).values()} == {torch.float32}
    assert output(model).isfinite().all()
    latents, text, time, _ = inputs()
    cogvideox.checkpointing(model)
    cogvideox.predict(model, latents, text, None, time).square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in lora.trainable(model).values())


def test_the_update_is_alpha_over_rank_times_b_a(tmp_path: Path) -> None:
    model = awake(tiny())
    lora.add(model, SETTINGS)
    trained(model)
    layer = model.transformer_blocks[1].attn1.to_q
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    by_hand = layer.base_layer(x) + 6 / 3 * x @ a.T @ b.T
    torch.testing.assert_close(layer(x), by_hand, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("alpha", [3.0, 6.0, 1.5])
def test_the_pipeline_of_diffusers_loads_what_we_save(tmp_path: Path, alpha: float) -> None:
    model = awake(tiny())
    before = output(model)
    lora.add(model, Lora(rank=3, alpha=alpha))
    path = lora.save(trained(model), tmp_path)
    assert path == tmp_path / "pytorch_lora_weights.safetensors"
    ours = output(model)
    assert (ours - before).abs().max() > 0.1

    pipe = pipeline(awake(tiny()))
    pipe.load_lora_weights(tmp_path)
    assert pipe.get_list_adapters() == {"transformer": ["default_0"]}
    loaded = {name: p for name, p in pipe.transformer.named_parameters() if "lora_" in name}
    assert len(loaded) == 2 * 2 * 8
    for name, p in lora.trainable(model).items():
        other = loaded[name.replace(".default.", ".default_0.")]
        assert other.any()
        assert torch.equal(p, other)
    torch.testing.assert_close(output(pipe.transformer), ours, atol=1e-5, rtol=0)
    pipe.unload_lora_weights()
    torch.testing.assert_close(output(pipe.transformer), before, atol=1e-5, rtol=0)


def test_saved_adapters_are_loaded_into_our_model(tmp_path: Path) -> None:
    model = awake(tiny())
    lora.add(model, SETTINGS)
    lora.save(trained(model), tmp_path / "one")
    again = awake(tiny())
    state = torch.random.get_rng_state()
    assert lora.load(again, tmp_path / "one") == 2 * 8
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(output(again), output(model))
    assert not any(p.requires_grad for p in again.parameters())
    files = [lora.save(again, tmp_path / str(k)).read_bytes() for k in range(8)]
    assert {(tmp_path / "one" / lora.FILE).read_bytes()} == set(files)
    learning = awake(tiny())
    lora.load(learning, tmp_path / "one", learn=True)
    assert {name for name, p in learning.named_parameters() if p.requires_grad} == set(
        lora.trainable(learning)
    )


def test_other_adapters_of_the_same_names_can_be_saved(tmp_path: Path) -> None:
    model = awake(tiny())
    lora.add(model, SETTINGS)
    averages = {name: p.detach() + 0.1 for name, p in lora.trainable(model).items()}
    lora.save_state(model, averages, tmp_path)
    again = awake(tiny())
    lora.load(again, tmp_path)
    assert all(torch.equal(p, averages[name]) for name, p in lora.trainable(again).items())


def test_adapters_of_pipelines_are_loaded_too(tmp_path: Path) -> None:
    """If the file has no alpha, the library uses the rank as alpha. This project does the same."""
    model = awake(tiny())
    lora.add(model, Lora(rank=3, alpha=3.0, targets=ATTENTION))
    path = lora.save(trained(model), tmp_path)
    save_file(load_file(path), path, metadata={"format": "pt"})
    again = awake(tiny())
    assert lora.load(again, tmp_path) == 2 * 4
    torch.testing.assert_close(output(again), output(model), atol=1e-5, rtol=0)


def test_fusing_keeps_the_output_and_leaves_a_plain_model(tmp_path: Path) -> None:
    model = awake(tiny())
    before = output(model)
    lora.add(model, SETTINGS)
    adapted = output(trained(model))
    lora.fuse(model)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in tiny().named_parameters()]
    assert all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(output(model), adapted, atol=1e-4, rtol=0)
    assert (adapted - before).abs().max() > 0.1
    cogvideox.save(model, tmp_path)  # adapters would forbid this
    lora.add(model, SETTINGS)  # new adapters can be trained


def test_the_whole_model_is_not_saved_with_adapters_in_it(tmp_path: Path) -> None:
    model = awake(tiny())
    lora.add(model, SETTINGS)
    with pytest.raises(AssertionError, match=r"generation\.models\.lora"):
        cogvideox.save(model, tmp_path)


def test_targets_that_mean_no_layer_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lora\.targets: to_x, ff\.3 names no layer .*attn1\.to_q"):
        lora.add(tiny(), Lora(rank=2, targets=("to_q", "to_x", "ff.3")))
    with pytest.raises(ValueError, match=r"lora\.targets: an empty list"):
        lora.add(tiny(), Lora(rank=2, targets=()))


def test_alpha_is_written_down(tmp_path: Path) -> None:
    model = tiny()
    lora.add(model, Lora(rank=3, alpha=1.5, targets=ATTENTION))
    with safe_open(lora.save(model, tmp_path), framework="pt") as file:
        record = json.loads(file.metadata()["lora_adapter_metadata"])
    assert record == {
        "transformer.r": 3,
        "transformer.lora_alpha": 1.5,
        "transformer.target_modules": sorted(ATTENTION),
    }


def test_adapters_of_another_transformer_are_refused(tmp_path: Path) -> None:
    model = awake(tiny())
    lora.add(model, SETTINGS)
    path = lora.save(model, tmp_path)
    with pytest.raises(ValueError, match=r"transformer_blocks\.1\.\S+ is not in this transformer"):
        lora.load(tiny(layers=1), tmp_path)
    with pytest.raises(ValueError, match="adapts 16 layers, but its targets name 24"):
        lora.load(tiny(layers=3), tmp_path)
    with pytest.raises(ValueError, match="adapts a layer of 32 to 32, but this layer is 48 to 48"):
        lora.load(tiny(heads=3), tmp_path)
    state = load_file(path)
    state.pop(next(iter(state)))
    save_file(state, path)
    with pytest.raises(ValueError, match="lacks one of its two matrices"):
        lora.load(tiny(), tmp_path)


def test_files_that_hold_no_adapters(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        lora.load(tiny(), tmp_path)
    (tmp_path / lora.FILE).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        lora.load(tiny(), tmp_path)
    save_file({"proj_out.weight": torch.zeros(2)}, tmp_path / lora.FILE)
    with pytest.raises(ValueError, match="holds no adapters"):
        lora.load(tiny(), tmp_path)
