"""Transformers on disk: the files of diffusers, and refused files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from safetensors.torch import load_file, save_file

from generation.models import cogvideox
from tests.generation.models.test_cogvideox import awake, inputs, shape, tiny

KINDS: dict[str, dict[str, Any]] = {
    "5B": {"use_rotary_positional_embeddings": True},
    "2B": {"use_rotary_positional_embeddings": False},
    "learned": {"use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True},
}


def published(kind: str, **changes: Any) -> Any:
    """A tiny model of diffusers with the positions of a published model, as if it were trained."""
    settings = {
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 32,
        "text_embed_dim": 24,
        "sample_height": 4,
        "sample_width": 6,
        "sample_frames": 9,
        "max_text_seq_length": 5,
    }
    with torch.random.fork_rng():
        return awake(CogVideoXTransformer3DModel(**{**settings, **KINDS[kind], **changes}))


@torch.no_grad()
def output(model: Any) -> torch.Tensor:
    latents, text, time, steps = inputs()
    return cogvideox.predict(
        model, latents, text, None, time, None if model.config.ofs_embed_dim is None else steps
    )


@pytest.mark.parametrize("strength", [False, True])
def test_diffusers_loads_what_we_save(tmp_path: Path, strength: bool) -> None:
    model = awake(tiny(noise_strength=strength))
    path = cogvideox.save(model, tmp_path / "transformer")
    assert path == tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    assert sorted(p.name for p in path.parent.iterdir()) == ["config.json", path.name]
    theirs, found = CogVideoXTransformer3DModel.from_pretrained(path.parent, output_loading_info=True)
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert output(model).abs().max() > 0.1
    assert torch.equal(output(theirs), output(model))
    assert torch.equal(output(cogvideox.load(tmp_path)), output(model))  # the folder around `transformer`


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_diffusers_saved_is_loaded_and_saved_again(tmp_path: Path, kind: str) -> None:
    theirs = published(kind)
    theirs.save_pretrained(tmp_path / "one" / "transformer")
    before = torch.random.get_rng_state()
    ours = cogvideox.load(tmp_path / "one")
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(output(ours), output(theirs))
    cogvideox.save(ours, tmp_path / "two")
    assert torch.equal(output(CogVideoXTransformer3DModel.from_pretrained(tmp_path / "two")), output(theirs))


def test_other_weights_of_the_same_names_can_be_saved(tmp_path: Path) -> None:
    model = tiny()
    averages = dict(awake(tiny()).named_parameters())
    cogvideox.save_state(model, averages, tmp_path)
    assert torch.equal(output(cogvideox.load(tmp_path)), output(awake(tiny())))
    assert not output(model).any()
    del averages["proj_out.weight"]
    with pytest.raises(RuntimeError, match=r"proj_out\.weight"):
        cogvideox.save_state(model, averages, tmp_path)


def test_weights_can_be_loaded_in_another_precision(tmp_path: Path) -> None:
    cogvideox.save(awake(tiny()), tmp_path)
    model = cogvideox.load(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["5B", "2B"])
def test_noise_strength_can_be_added_to_weights_that_lack_it(tmp_path: Path, kind: str) -> None:
    plain = published(kind)
    plain.save_pretrained(tmp_path / "base")
    settings = shape(noise_strength=True, pretrained=str(tmp_path / "base"))
    model = cogvideox.build(settings, 4, 24, 5)
    assert torch.equal(output(model), output(plain))
    assert model.ofs_embedding.linear_1.weight.any()
    again = cogvideox.build(settings, 4, 24, 5)
    assert torch.equal(model.ofs_embedding.linear_1.weight, again.ofs_embedding.linear_1.weight)
    awake(model)
    cogvideox.save(model, tmp_path / "trained")
    theirs = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "trained")
    assert theirs.config.ofs_embed_dim == 32
    assert torch.equal(output(theirs), output(model))
    assert not torch.equal(output(model), output(plain))


def test_absolute_positions_take_text_of_one_length_only(tmp_path: Path) -> None:
    published("2B").save_pretrained(tmp_path)
    settings = shape(pretrained=str(tmp_path))
    with pytest.raises(ValueError, match=r"text\.max_tokens: 8, but .* exactly 5 .* text\.padded=true"):
        cogvideox.build(settings, 4, 24, 8)
    model = cogvideox.build(settings, 4, 24, 5)
    latents, text, time, _ = inputs(words=4)
    with pytest.raises(ValueError, match=r"4 text tokens, .* exactly 5; write text\.padded=true"):
        cogvideox.predict(model, latents, text, None, time)
    assert cogvideox.rotary(model, (3, 4, 6)) is None


def test_a_checkpoint_of_other_sizes_is_refused_with_every_number(tmp_path: Path) -> None:
    cogvideox.save(tiny(), tmp_path)
    model = cogvideox.load(tmp_path)
    cogvideox.check_fits(model, 4, 24, False)
    cogvideox.check_fits(model, 4, 24, False, shape())
    with pytest.raises(ValueError) as caught:
        cogvideox.check_fits(model, 16, 4096, True)
    for part in (
        "channels (the codec's): 4, not 16",
        "text encoder's): 24, not 4096",
        "strength: False, not True",
    ):
        assert part in str(caught.value)
    with pytest.raises(ValueError) as caught:
        cogvideox.build(shape(layers=30, heads=4, patch=1, pretrained=str(tmp_path)), 4, 24, 8)
    for part in ("layers: 2, not 30", "heads: 2, not 4", "patch: 2, not 1"):
        assert part in str(caught.value)
    assert "head_dim" not in str(caught.value)


def test_weights_with_noise_strength_are_not_taken_for_a_stage_without(tmp_path: Path) -> None:
    cogvideox.save(tiny(noise_strength=True), tmp_path)
    with pytest.raises(ValueError, match="noise_strength: True, not False"):
        cogvideox.build(shape(pretrained=str(tmp_path)), 4, 24, 8)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for source in (tmp_path / "nothing", "runs/mine/stage1", "./model", "../up/model"):
        with pytest.raises(
            ValueError, match=r"transformer\.pretrained: there is no folder .*diffusers folder"
        ):
            cogvideox.load(source)


def test_a_folder_with_no_transformer_in_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no CogVideoXTransformer3DModel"):
        cogvideox.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match="holds no CogVideoXTransformer3DModel"):
        cogvideox.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        cogvideox.load(tmp_path)
    # A stage of a run has another config.json beside the transformer.
    (tmp_path / "config.json").write_text(json.dumps({"stage": "stage1"}))
    cogvideox.save(awake(tiny()), tmp_path / "transformer")
    assert torch.equal(output(cogvideox.load(tmp_path)), output(awake(tiny())))


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    path = cogvideox.save(awake(tiny()), tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be loaded"):
        cogvideox.load(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="cannot be loaded"):
        cogvideox.load(tmp_path)


def test_weights_that_are_not_of_their_configuration_are_refused(tmp_path: Path) -> None:
    path = cogvideox.save(awake(tiny()), tmp_path / "good")
    tensors = load_file(path)
    odd = {
        "1 missing, such as proj_out.bias": {k: v for k, v in tensors.items() if k != "proj_out.bias"},
        "1 unexpected, such as stranger": {**tensors, "stranger": torch.zeros(1)},
        "proj_out.bias": {**tensors, "proj_out.bias": torch.zeros(7)},
    }
    for k, (message, state) in enumerate(odd.items()):
        folder = shutil.copytree(tmp_path / "good", tmp_path / str(k))
        save_file(state, folder / path.name, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"transformer\.pretrained: ") as caught:
            cogvideox.load(folder)
        assert message in str(caught.value)


def test_a_model_that_patches_time_is_refused(tmp_path: Path) -> None:
    published("5B", patch_size_t=2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"CogVideoX 1\.5.*CogVideoX 1\.0"):
        cogvideox.load(tmp_path)
