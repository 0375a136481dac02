"""The trainer trains the autoencoder: exact resume, the two phases, and the exported codec."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from generation.codecs.open import open_codec
from generation.codecs.slice import SliceCodec, load_network
from generation.config import Codec, Config
from generation.presets import preset
from generation.sample.trained import open_trained
from generation.train import checkpoint, memory
from generation.train.open import open_stage
from generation.train.vae_stage import VaeStage, statistics
from tests.generation import tiny_runs
from tests.generation.tiny_runs import ALONE, different, tiny, train

PHASES = [{"steps": 12}, {"steps": 8, "decoder_only": True}]
SIZES = {"kind": "slice", "spatial": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_runs.dataset(tmp_path_factory.mktemp("vae") / "data")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a training through both phases. Discriminators start at step 8."""
    run = tmp_path_factory.mktemp("run")
    train(tiny("vae", phases=PHASES), data, run)
    return run


def exported(run: Path) -> dict[str, torch.Tensor]:
    return load_network(run / "vae" / "weights").state_dict()


@pytest.mark.parametrize("stops", [(5, 10), (12, 13), (11, 17)])
def test_stopped_and_resumed_twice_it_ends_with_the_same_bits(
    stops: tuple[int, ...], trained: Path, data: Path, tmp_path: Path
) -> None:
    """Stops are before and after the start of the discriminators, and at and after that of phase 2."""
    train(tiny("vae", phases=PHASES), data, tmp_path, *stops, 20)
    assert different(trained / "vae", tmp_path / "vae") == []
    a, b = exported(trained), exported(tmp_path)
    assert all(torch.equal(a[name], b[name]) for name in a)
    tensors, _, losses = tiny_runs.kept(trained / "vae")
    assert len(losses) == 20
    assert any(n.startswith("optimizer/discriminator.videos") for n in tensors)
    assert not any(n.startswith("ema/discriminator") for n in tensors)


def test_accumulated_micro_batches_are_resumed_exactly_too(data: Path, tmp_path: Path) -> None:
    settings = tiny("vae", train={"steps": 12, "accumulate": 2, "batch_size": 1})
    train(settings, data, tmp_path / "whole")
    train(settings, data, tmp_path / "parts", 9, 12)
    assert different(tmp_path / "whole" / "vae", tmp_path / "parts" / "vae") == []


def test_the_second_phase_leaves_the_encoder_as_it_is(data: Path, tmp_path: Path) -> None:
    """The encoder keeps its exported averages, so latents keep their meaning from then on."""
    settings = tiny("vae", phases=PHASES, train={"checkpoint_every": 4})
    train(settings, data, tmp_path)
    folder = tmp_path / "vae" / "checkpoints"
    at = {step: checkpoint.load(folder, step).tensors for step in checkpoint.steps(folder)}
    assert list(at) == [12, 16, 20]
    for name, average in at[12]["ema"].items():
        if name.startswith("vae.encoder."):
            assert torch.equal(at[16]["model"][name], average), name
            assert torch.equal(at[20]["model"][name], average), name
            assert torch.equal(at[20]["ema"][name], average), name
    moved = [n for n in at[20]["model"] if not torch.equal(at[20]["model"][n], at[12]["model"][n])]
    decoder = [n for n in at[20]["model"] if n.startswith("vae.decoder.")]
    assert set(decoder) <= set(moved)
    assert any(n.startswith("discriminator.") for n in moved)


def test_the_discriminators_start_at_their_step(data: Path, tmp_path: Path) -> None:
    train(tiny("vae", train={"steps": 12, "checkpoint_every": 4}), data, tmp_path)
    folder = tmp_path / "vae" / "checkpoints"
    at = {step: checkpoint.load(folder, step).tensors["model"] for step in checkpoint.steps(folder)}
    judge = [n for n in at[4] if n.startswith("discriminator.")]
    assert all(torch.equal(at[4][n], at[8][n]) for n in judge)
    assert not any(torch.equal(at[8][n], at[12][n]) for n in judge)
    lines = [json.loads(line) for line in (tmp_path / "vae" / "log.jsonl").read_text().splitlines()]
    assert ["adversarial" in line for line in lines] == [False] * 8 + [True] * 4
    assert all({"l1", "kl", "psnr"} <= line.keys() for line in lines)


def test_what_is_exported_is_a_codec_with_measured_statistics(trained: Path, data: Path) -> None:
    """Latents of training clips have mean 0 and deviation 1, and codes may have other values."""
    codec = open_codec(Codec.model_validate({**SIZES, "model": str(trained / "vae")}))
    assert isinstance(codec, SliceCodec)
    stage = open_stage(tiny("vae", phases=PHASES), torch.device("cpu"), trained / "vae")
    assert isinstance(stage, VaeStage)
    clips = [video[None] for batch in stage._some_clips(str(data)) for video in batch]
    assert 12 < len(clips) <= 26  # this is an epoch, in batches of one shape
    assert {clip.shape[2] for clip in clips} == {1, 6, 9}
    latents = [codec.encode(clip)[0].flatten(1) for clip in clips]
    mean = torch.stack([z.mean(1) for z in latents]).mean(0)
    square = torch.stack([z.square().mean(1) for z in latents]).mean(0)
    assert mean.abs().max() < 1e-4
    assert torch.allclose(square, torch.ones(4), atol=1e-3)
    assert codec.decode(codec.encode(clips[0]), clips[0].shape[2]).shape == clips[0].shape


def test_statistics_against_numpy() -> None:
    vae = load_like()
    clips = [torch.rand(1, 3, 8, 8, 8) * 2 - 1 for _ in range(3)]
    mean, std = statistics(vae, iter(clips))
    with torch.no_grad():
        codes = np.concatenate([vae.encode(clip)[0][0].flatten(1).numpy() for clip in clips], axis=1)
    assert np.allclose(mean, codes.mean(1), atol=1e-5)
    assert np.allclose(std, codes.std(1), rtol=1e-4)


def load_like() -> torch.nn.Module:
    from generation.codecs.slice_vae.network import SliceVAE

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SliceVAE(tiny("vae").vae).eval()


def test_both_stages_train_on_its_latents(trained: Path, data: Path, tmp_path: Path) -> None:
    sizes = {"codec": {**SIZES, "model": str(trained / "vae")}, "train": {"steps": 3}}
    for stage in ("stage1", "stage2"):
        train(tiny(stage, **sizes), data, tmp_path)
        assert open_trained(tmp_path, stage, ALONE.device).codec.channels == 4


def test_a_stage_refuses_other_weights_than_it_was_trained_on(
    trained: Path, data: Path, tmp_path: Path
) -> None:
    """Latents change their meaning when the autoencoder is trained further, or trained again."""
    vae = tmp_path / "vae"
    shutil.copytree(trained / "vae", vae)
    settings = tiny("stage1", codec={**SIZES, "model": str(vae)}, train={"steps": 4})
    train(settings, data, tmp_path, 2)
    train(settings, data, tmp_path, 3)
    open_trained(tmp_path, "stage1", ALONE.device)
    train(tiny("vae", seed=1, train={"steps": 2}), data, tmp_path / "other")
    shutil.rmtree(vae / "weights")
    shutil.copytree(tmp_path / "other" / "vae" / "weights", vae / "weights")
    message = r"stage1 was trained on the latents of other weights than .*vae holds now \(codec\.model"
    with pytest.raises(ValueError, match=message):
        open_trained(tmp_path, "stage1", ALONE.device)
    with pytest.raises(ValueError, match=message):
        train(settings, data, tmp_path)


def test_validation_tells_the_ratio_of_held_out_clips(data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    trainer = tiny_runs.open_trainer(
        tiny("vae", train={"steps": 4, "validate_every": 2, "sample_every": 4}), data, tmp_path
    )
    trainer.fit(say=said.append)
    lines = [json.loads(line) for line in (tmp_path / "vae" / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert all(5 < line["psnr"] < 60 for line in lines)
    assert any(text.startswith("step 2: validation loss") and "psnr" in text for text in said)
    assert (tmp_path / "vae" / "samples" / "step-0000004.mp4").stat().st_size > 0


def test_every_parameter_learns(data: Path, tmp_path: Path) -> None:
    before = tiny_runs.open_trainer(tiny("vae"), data, tmp_path / "before").trained
    start = {name: p.detach().clone() for name, p in before.items()}
    found = train(tiny("vae"), data, tmp_path / "run").trained
    assert [n for n, p in found.items() if torch.equal(p, start[n])] == []


def test_memory_is_told_before_the_start(data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    open_stage(tiny("vae"), torch.device("cpu"), tmp_path, say=said.append)
    assert len(said) == 1
    assert said[0].startswith("memory: about")
    huge = tiny("vae", data={"buckets": [{"frames": 4001, "height": 4000, "width": 4000}]})
    with pytest.raises(ValueError, match=r"too little memory .* vae\.gradient_checkpointing=true"):
        open_stage(huge, torch.device("cpu"), tmp_path, say=said.append)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": {}}, "lora: adapters need a transformer"),
        ({"train": {"cache_latents": True}}, r"train\.cache_latents: the vae makes the latents"),
        ({"data": {"buckets": [{"frames": 8, "height": 18, "width": 16}]}}, r"height 18 is no multiple of 4"),
        ({"vae": {"widths": [8]}}, r"vae\.widths: 1 of them, but .* takes 3"),
        (
            {"phases": [{"steps": 1, "decoder_only": True}, {"steps": 1}]},
            r"phases\.1\.decoder_only: .*fixes the meaning",
        ),
    ],
)
def test_wrong_configurations_name_the_key(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny("vae", **change)


def test_only_the_vae_has_a_decoder() -> None:
    with pytest.raises(ValueError, match=r"phases\.0\.decoder_only: only the vae has a decoder"):
        tiny("stage1", phases=[{"steps": 1, "decoder_only": True}])


@pytest.mark.parametrize("name", ["tiny", "small", "flashvideo", "tiny-fast"])
def test_presets_are_valid(name: str) -> None:
    config = Config.model_validate(preset(name, "vae"))
    assert [p.decoder_only for p in config.phases] == [False, True]
    assert memory.largest_bucket(config).frames > 1
