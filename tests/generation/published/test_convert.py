"""Published checkpoints: the results of converted networks, and refused files."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from safetensors.torch import load_file
from torch import Tensor

from generation.codecs.open import open_codec
from generation.config import Codec, Config, Transformer
from generation.configuring import stage_config
from generation.models import cogvideox
from generation.models.hub import find
from generation.models.pretrained import FILE, VAE, check_fits, read
from generation.published import convert
from tests.generation.published import sat, sat_vae
from tests.generation.published.sat import DIFFUSION, FIVE_B, TWO_B, State

WORDS = 5
FREQS = {f"{DIFFUSION}mixins.pos_embed.freqs_{kind}": torch.zeros(3) for kind in ("sin", "cos")}
TABLE = f"{DIFFUSION}mixins.pos_embed.pos_embedding"
LAYER = f"{DIFFUSION}transformer.layers.1"


def five_b() -> State:
    return {**sat.transformer(), **FREQS}


def stage1() -> State:
    return sat.transformer(rank=3)


def stage2() -> State:
    return sat.transformer(stage2=True)


def two_b() -> State:
    return {**sat.transformer(), TABLE: sat.absolute_positions(WORDS, sat.TINY.width)}


KINDS = {"CogVideoX-5B": five_b, "CogVideoX-2B": two_b, "Stage I": stage1, "Stage II": stage2}


def saved(folder: Path, state: State, name: str = "published.pt") -> Path:
    """Save a checkpoint in the layout of DeepSpeed."""
    path = folder / name
    torch.save({"module": state, "iteration": 7}, path)
    return path


def inputs(kind: str) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Latents, text, network times and noise steps. Absolute positions exist only for 60 x 90 latents."""
    draw = torch.Generator().manual_seed(0)
    grid = (2, 60, 90) if kind == "CogVideoX-2B" else (3, 4, 6)
    latents = torch.randn(2, 4, *grid, generator=draw)
    text = torch.randn(2, WORDS, 20, generator=draw)
    strength = torch.tensor([675.0, 300.0]) if kind == "Stage II" else None
    return latents, text, torch.tensor([900.0, 137.5]), strength


@torch.no_grad()
def ours(model: Any, kind: str) -> Tensor:
    latents, text, time, strength = inputs(kind)
    return cogvideox.predict(model, latents, text, None, time, strength)


@torch.no_grad()
def theirs(state: State, kind: str, alpha: float = 1.0) -> Tensor:
    latents, text, time, strength = inputs(kind)
    return sat.predict(state, latents, text, time, strength, alpha=alpha)


# ---- round trips


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_converted_transformer_computes_what_the_published_one_does(tmp_path: Path, kind: str) -> None:
    state = KINDS[kind]()
    model = cogvideox.load(convert.convert(saved(tmp_path, state), tmp_path / "out"))
    expected = theirs(state, kind)
    assert expected.abs().mean() > 0.3
    torch.testing.assert_close(ours(model, kind), expected, atol=1e-4, rtol=0)
    assert not (tmp_path / "_out").exists()


@torch.no_grad()
def test_two_b_as_it_is_published_has_no_table_of_positions(tmp_path: Path) -> None:
    """SAT computes the table: github.com/zai-org/CogVideo/issues/100."""
    state = sat.transformer()
    model = cogvideox.load(convert.convert(saved(tmp_path, state), tmp_path / "out", positions="absolute"))
    latents, _, time, _ = inputs("CogVideoX-2B")
    text = torch.randn(2, 226, 20, generator=torch.Generator().manual_seed(1))
    found = cogvideox.predict(model, latents, text, None, time)
    expected = sat.predict({**state, TABLE: sat.absolute_positions(226, 32)}, latents, text, time)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_what_sat_and_deepspeed_keep_beside_the_weights_is_no_hindrance(tmp_path: Path) -> None:
    beside = {
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "rng_tracker_states": {},
        "param_shapes": [OrderedDict(weight=torch.Size([3, 4]))],
        "sparse_tensor_module_names": set(),
        "optimizer": None,
        "ds_config": {"bf16": {"enabled": True}, "steps": 1},
    }
    torch.save({"module": five_b(), **beside}, tmp_path / "more.pt")
    more = convert.convert(tmp_path / "more.pt", tmp_path / "more")
    plain = convert.convert(saved(tmp_path, five_b()), tmp_path / "plain")
    assert (more / FILE).read_bytes() == (plain / FILE).read_bytes()


@pytest.mark.parametrize("kind", ["Stage I", "Stage II"])
def test_every_published_tensor_has_a_say(kind: str) -> None:
    """Every tensor changes the reference computation, so a wrong tensor would be noticed."""
    state = KINDS[kind]()
    before = theirs(state, kind, alpha=3.0)
    for name, tensor in state.items():
        if "key_value.original.bias" in name or "key_value.bias" in name:
            continue  # the keys' bias is tested below
        changed = theirs({**state, name: tensor + 0.3 * torch.randn_like(tensor)}, kind, alpha=3.0)
        assert (changed - before).abs().max() > 1e-3, name


@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_adapters_are_merged_scaled_by_alpha_over_their_rank(tmp_path: Path, alpha: float) -> None:
    state = stage1()
    folder = convert.convert(saved(tmp_path, state), tmp_path / "out", lora_alpha=alpha)
    expected = theirs(state, "Stage I", alpha)
    torch.testing.assert_close(ours(cogvideox.load(folder), "Stage I"), expected, atol=1e-4, rtol=0)
    assert (expected - theirs(state, "Stage I", 2.0)).abs().max() > 0.01
    merged = load_file(folder / FILE)["transformer_blocks.1.attn1.to_k.weight"]  # the second of three pairs
    layer = f"{LAYER}.attention.query_key_value"
    by_hand = state[f"{layer}.original.weight"][32:64]
    by_hand = by_hand + alpha / 3 * state[f"{layer}.matrix_B.1"] @ state[f"{layer}.matrix_A.1"]
    torch.testing.assert_close(merged, by_hand)


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_a_converted_autoencoder_computes_what_the_published_one_does(tmp_path: Path, prefix: str) -> None:
    state = sat_vae.autoencoder()
    path = tmp_path / "3d-vae.pt"
    content = {**state, "loss.discriminator.weight": torch.zeros(3)}
    torch.save({"state_dict": {prefix + name: t for name, t in content.items()}}, path)
    said: list[str] = []
    folder = convert.convert(path, tmp_path / "out", say=said.append)
    vae: Any = read(find(VAE, folder))
    draw = torch.Generator().manual_seed(0)
    video, codes = torch.randn(1, 3, 9, 16, 24, generator=draw), torch.randn(1, 4, 3, 2, 3, generator=draw)
    with torch.no_grad():
        made = vae.encode(video).latent_dist.parameters
        torch.testing.assert_close(made, sat_vae.encode(state, video), atol=1e-4, rtol=0)
        torch.testing.assert_close(vae.decode(codes).sample, sat_vae.decode(state, codes), atol=1e-4, rtol=0)
        assert sat_vae.decode(state, codes).std() > 0.3
        codec = open_codec(Codec(kind="cogvideox", model=str(folder), std=1 / 0.7), torch.device("cpu"))
        torch.testing.assert_close(codec.encode(video), 0.7 * made[:, :4], atol=1e-4, rtol=0)
    assert said[1:] == ["left out: 1 of loss.*", f"use it with codec.model={folder}"]


# ---- sizes


@pytest.mark.parametrize(
    ("state", "positions", "says", "millions"),
    [
        (lambda: sat.transformer(TWO_B, device="meta"), "absolute", "CogVideoX: 30 layers of 1920", 1693.8),
        (lambda: sat.transformer(FIVE_B, device="meta"), "rotary", "CogVideoX: 42 layers of 3072", 5570.3),
        (lambda: sat.transformer(FIVE_B, rank=128, device="meta"), None, "LoRA of rank 128, like Fl", 5570.3),
        (lambda: sat.transformer(TWO_B, stage2=True, device="meta"), None, "Stage II: 30 layers", 1696.3),
        (
            lambda: sat_vae.autoencoder((128, 256, 256, 512), 16, 3, device="meta"),
            None,
            "autoencoder, 16 channels",
            215.6,
        ),
    ],
)
def test_published_sizes_are_recognised(
    tmp_path: Path, state: Callable[[], State], positions: str | None, says: str, millions: float
) -> None:
    """A checkpoint on the meta device, with keys and shapes only."""
    found = convert.recognise(saved(tmp_path, state()), positions=positions)
    assert says in found.what
    assert f"{millions:,.1f} M parameters" in found.what
    assert sum(p.numel() for p in found.model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_the_presets_have_the_sizes_of_the_published_files(tmp_path: Path, stage: str) -> None:
    size, how = (FIVE_B, {"rank": 128}) if stage == "stage1" else (TWO_B, {"stage2": True})
    found = convert.recognise(saved(tmp_path, sat.transformer(size, device="meta", **how)))  # type: ignore[arg-type]
    assert found.stage == stage
    for name in ("flashvideo", "flashvideo-released"):
        wanted = stage_config(stage, name, None, []).transformer
        check_fits(found.model, 16, 4096, stage == "stage2", wanted)


def test_published_files_have_the_published_numbers_of_parameters() -> None:
    """flashvideo.md, section 1: attention and the adaptive norm have adapters, each in one linear layer."""
    state = sat.transformer(FIVE_B, rank=128, device="meta")
    adapters = {name: t.numel() / 1e6 for name, t in state.items() if ".matrix_" in name}
    norm = sum(n for name, n in adapters.items() if "adaln" in name)
    assert sum(adapters.values()) - norm == pytest.approx(132.1, abs=0.05)
    assert norm == pytest.approx(200.9, abs=0.05)
    assert sum(t.numel() for t in state.values()) / 1e9 == pytest.approx(5.903, abs=5e-4)


# ---- use of a converted network


def settings(folder: Path, **changes: Any) -> Transformer:
    sizes = {"layers": 2, "heads": 2, "head_dim": 16, "time_embed_dim": 24}
    return Transformer.model_validate({**sizes, "pretrained": str(folder), **changes})


def test_a_converted_stage_two_is_trained_saved_and_loaded_again(tmp_path: Path) -> None:
    folder = convert.convert(saved(tmp_path, stage2()), tmp_path / "out")
    model: Any = cogvideox.build(settings(folder, noise_strength=True), 4, 20, 8)
    latents, text, time, strength = inputs("Stage II")
    cogvideox.predict(model, latents, text, None, time, strength).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    with torch.no_grad():
        model.ofs_embedding.strength.linear_1.weight.mul_(2)
    cogvideox.save(model, tmp_path / "again" / "transformer")
    again = cogvideox.load(tmp_path / "again", dtype=torch.float32)
    assert torch.equal(ours(again, "Stage II"), ours(model, "Stage II"))
    with pytest.raises(ValueError, match="noise_strength: True, not False"):
        cogvideox.build(settings(folder), 4, 20, 8)


@torch.no_grad()
def test_the_number_of_frames_and_the_noise_strength_are_told_to_stage_two(tmp_path: Path) -> None:
    state = stage2()
    model: Any = cogvideox.load(convert.convert(saved(tmp_path, state), tmp_path / "out"))
    latents, text, time, strength = inputs("Stage II")
    assert strength is not None
    for frames in (1, 2):
        expected = sat.predict(state, latents[:, :, :frames], text, time, strength)
        found = cogvideox.predict(model, latents[:, :, :frames], text, None, time, strength)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    other = cogvideox.predict(model, latents, text, None, time, strength + 50)
    assert (other - ours(model, "Stage II")).abs().max() > 1e-2


@torch.no_grad()
def test_diffusers_alone_does_not_make_up_what_its_class_lacks(tmp_path: Path) -> None:
    folder = convert.convert(saved(tmp_path, stage2()), tmp_path / "out")
    latents, text, time, strength = inputs("Stage II")
    with pytest.raises((RuntimeError, ValueError)):  # diffusers leaves weights empty, or invents weights
        CogVideoXTransformer3DModel.from_pretrained(folder)(
            latents.transpose(1, 2), text, time, ofs=strength, image_rotary_emb=None
        )


def test_damaged_folders_of_stage_two_are_refused(tmp_path: Path) -> None:
    folder = convert.convert(saved(tmp_path, stage2()), tmp_path / "out")
    whole = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"transformer\.pretrained: .* cannot be loaded"):
        cogvideox.load(folder)
    (folder / FILE).unlink()
    with pytest.raises(ValueError, match=r"transformer\.pretrained: .* cannot be loaded"):
        cogvideox.load(folder)


def test_the_precision_of_the_file_is_kept(tmp_path: Path) -> None:
    state = {name: t.bfloat16() for name, t in stage1().items()}
    folder = convert.convert(saved(tmp_path, state), tmp_path / "out")
    found = load_file(folder / FILE)
    assert {t.dtype for t in found.values()} == {torch.bfloat16}
    layer = f"{LAYER}.attention.dense"
    update = state[f"{layer}.matrix_B.0"].float() @ state[f"{layer}.matrix_A.0"].float() / 3
    merged = (state[f"{layer}.original.weight"].float() + update).bfloat16()  # rounded once
    assert torch.equal(found["transformer_blocks.1.attn1.to_out.0.weight"], merged)


MEASURE = """
import sys, threading, time
from pathlib import Path
from generation.published import convert
import diffusers.models

def used():  # bytes of this process that stand for no file
    lines = Path("/proc/self/status").read_text().split("\\n")
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

convert.recognise(Path(sys.argv[1]))  # whatever is imported on the way is
start, peak, done = used(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, used())
        time.sleep(0.0005)
thread = threading.Thread(target=watch)
thread.start()
convert.convert(Path(sys.argv[1]), Path(sys.argv[2]))
done = True
thread.join()
print(peak - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads what Linux says of memory")
def test_a_large_file_is_never_in_memory_whole(tmp_path: Path) -> None:
    """Only few tensors of the 100 MB are in memory. The largest has 6 MB in float32, with its adapters."""
    large = sat.Shape(layers=8, heads=8, head_dim=64, time=512)
    state = {name: t.bfloat16() for name, t in sat.transformer(large, rank=8).items()}
    path = saved(tmp_path, state)
    assert path.stat().st_size > 95e6
    root = Path(convert.__file__).parents[2]
    command = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 40e6
    assert (tmp_path / "out" / FILE).stat().st_size > 95e6


# ---- refused files


def refused(tmp_path: Path, state: State, **how: Any) -> str:
    path = saved(tmp_path, state)
    with pytest.raises(ValueError) as error:
        convert.convert(path, tmp_path / "out", **how)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]
    text = str(error.value)
    assert text.startswith(str(path))
    return text


def test_tensors_that_are_missing_unknown_or_of_another_shape_are_named(tmp_path: Path) -> None:
    weight = f"{LAYER}.mlp.dense_4h_to_h.weight"
    state = stage2()
    assert f"{weight} is missing" in refused(tmp_path, {k: t for k, t in state.items() if k != weight})
    text = refused(tmp_path, {**state, f"{LAYER}.stranger": torch.zeros(1), "odd": torch.zeros(1)})
    assert f"{LAYER}.stranger, odd is not known" in text
    text = refused(tmp_path, {**state, weight: torch.zeros(32, 64)})
    assert f"{weight} gives (32, 64), but (32, 128) is needed" in text
    text = refused(tmp_path, {**state, f"{LAYER}.attention.query_key_value.bias": torch.zeros(95)})
    assert "query_key_value.bias of (95,) is not 3 equal parts" in text
    text = refused(tmp_path, {**state, weight: torch.zeros(32, 128, dtype=torch.int8)})
    assert f"{weight} is torch.int8; save it as bfloat16" in text


def test_adapters_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state, layer = stage1(), f"{LAYER}.attention.query_key_value"
    text = refused(tmp_path, {k: t for k, t in state.items() if k != f"{layer}.matrix_B.2"})
    assert f"{layer}.matrix_B.2 is missing" in text
    text = refused(tmp_path, {**state, f"{layer}.matrix_B.1": torch.zeros(32, 4)})
    assert f"{layer}.matrix_B.1 of (32, 4) and" in text
    assert "do not adapt a layer of (96, 32)" in text


def test_positions_that_a_file_does_not_tell_are_asked_for(tmp_path: Path) -> None:
    plain = sat.transformer()
    text = refused(tmp_path, plain)
    assert "--positions rotary (CogVideoX-5B, FlashVideo) or --positions absolute" in text
    assert "the positions of the file are rotary; leave --positions out" in refused(
        tmp_path, five_b(), positions="absolute"
    )
    model: Any = cogvideox.load(convert.convert(saved(tmp_path, plain), tmp_path / "o", positions="rotary"))
    torch.testing.assert_close(ours(model, "CogVideoX-5B"), theirs(plain, "CogVideoX-5B"), atol=1e-4, rtol=0)


def test_learned_positions_are_refused(tmp_path: Path) -> None:
    state = two_b()
    state[TABLE] = state[TABLE] + 0.01
    assert f"{TABLE} holds other positions than CogVideoX-2B" in refused(tmp_path, state)
    state[TABLE] = state[TABLE][:, :100]
    assert f"{TABLE} of (1, 100, 32) is not for text and 13 x 30 x 45 patches" in refused(tmp_path, state)


def test_other_architectures_are_told_apart(tmp_path: Path) -> None:
    proj = f"{DIFFUSION}mixins.patch_embed.proj.weight"
    assert "(CogVideoX 1.5)" in refused(tmp_path, {**five_b(), proj: torch.zeros(32, 32)})
    text = refused(tmp_path, {**five_b(), proj: torch.zeros(32, 8, 2, 2)})
    assert "takes 8 channels and the output has 4" in text
    text = refused(tmp_path, {"transformer_blocks.0.norm1.linear.weight": torch.zeros(3)})
    assert "but transformer_blocks.0.norm1.linear.weight; a model in the layout of diffusers needs no" in text
    state = {k: t for k, t in sat_vae.autoencoder().items() if ".down.3." not in k}
    assert "encoder.down has 3 levels" in refused(tmp_path, state)


def test_other_networks_in_a_file_are_left_out_and_told(tmp_path: Path) -> None:
    beside = {"conditioner.embedders.0.weight": torch.zeros(2), "denoiser.sigmas": torch.zeros(9)}
    words = {f"{DIFFUSION}transformer.word_embeddings.weight": torch.zeros(1, 32)}
    said: list[str] = []
    path = saved(tmp_path, {**stage2(), **beside, **words})
    convert.convert(path, tmp_path / "out", say=said.append)
    assert said[1] == "left out: 1 of transformer.word_embeddings.*, 1 of conditioner.*, 1 of denoiser.*"


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def test_files_that_could_run_code_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "published.pt"
    for save in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))):
        save({"module": {}, "args": Evil()}, path)
        with pytest.raises(
            ValueError, match=r"published\.pt: it holds more than tensors .*system.*publisher"
        ):
            convert.convert(path, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["published.pt"]


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such file; name the file itself"):
        convert.convert(tmp_path / "no.pt", tmp_path / "out")
    with pytest.raises(ValueError, match="it is a folder; name the file in it"):
        convert.convert(tmp_path, tmp_path / "out")
    path = saved(tmp_path, five_b())
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"cannot be read .* download it again"):
        convert.convert(path, tmp_path / "out")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"cannot be read as tensors alone.* file from its publisher"):
        convert.convert(path, tmp_path / "out")
    for content, says in (
        ({"module": {}}, "holds no tensors by name"),
        ([1, 2], "holds no tensors by name"),
        ({"module": {"a": 3}}, "a is not a tensor but int"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=says):
            convert.convert(path, tmp_path / "out")


def test_files_of_before_pytorch_1_6_are_read_too(tmp_path: Path) -> None:
    state = five_b()
    torch.save({"module": state}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    old = convert.convert(tmp_path / "old.pt", tmp_path / "old")
    new = convert.convert(saved(tmp_path, state), tmp_path / "new")
    assert (old / FILE).read_bytes() == (new / FILE).read_bytes()


def test_a_folder_that_is_there_is_kept_and_a_failure_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = saved(tmp_path, five_b()), tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(ValueError, match="out: this folder exists already; name another"):
        convert.convert(path, out)
    assert (out / "mine").read_text() == "mine"

    def full(*_: Any) -> Tensor:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert.Published, "make", full)
    with pytest.raises(OSError, match="No space left"):
        convert.convert(path, tmp_path / "other")
    sizes = {"layers": 2, "heads": 2, "head_dim": 16, "time_embed_dim": 24}
    codec = {"kind": "cogvideox", "model": "THUDM/CogVideoX-5b"}
    config = Config.model_validate({"stage": "stage1", "transformer": sizes, "codec": codec})
    with pytest.raises(OSError, match="No space left"):
        convert.into_run(convert.recognise(path), config, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    (tmp_path / "run").rmdir()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "published.pt"]
