"""train, sample and enhance, end to end: the real commands on shards, on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import av
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel
from typer.testing import CliRunner

from generation import config
from generation.codecs.base import Codec
from generation.codecs.open import open_codec
from generation.codecs.patch import PatchCodec
from generation.sample import enhance
from generation.sample.options import Options
from generation.train.trainer import losses_of
from jobs.cli import app
from tests.generation import synthetic

ROOT = Path(__file__).parents[2]
SMALL = [
    "--set",
    "transformer.layers=2",
    "--set",
    "transformer.heads=2",
    "--set",
    "transformer.head_dim=16",
    "--set",
    "train.batch_size=2",
    "--set",
    "train.validate_every=0",
]


def reelmill(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.output


def refused(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result.output


def shape(path: Path) -> tuple[int, int, int]:
    """Frames, height and width of an mp4, decoded."""
    with av.open(str(path)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    return (len(frames), *frames[0].shape[:2])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered clips with captions."""
    return synthetic.write_dataset(tmp_path_factory.mktemp("data"), 8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """Both stages, trained for two steps."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    for stage in ("stage1", "stage2"):
        reelmill("train", stage, "--data", dataset, "--out", folder, "--steps", "2", *SMALL)
    return folder


def test_a_text_model_with_code_of_its_own_asks_nothing(tmp_path: Path, dataset: Path) -> None:
    model = tmp_path / "model"
    ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(model)
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    auto = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (model / "tokenizer_config.json").write_text(json.dumps(auto))
    text = [f"text.model={model}", "text.kind=transformers", "text.max_tokens=8"]
    arguments = ["train", "stage1", "--data", dataset, "--out", tmp_path / "run", "--steps", "1", *SMALL]
    arguments += [word for value in text for word in ("--set", value)]
    result = CliRunner().invoke(app, [str(word) for word in arguments], input="y\n" * 9)
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert "comes with code of its own, which is never run" in result.stderr
    assert "[y/N]" not in result.output
    assert not (tmp_path / "ran").exists()


def test_training_can_be_continued_by_the_same_command(tmp_path: Path, dataset: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    command = ["train", "stage1", "--data", dataset, *SMALL]
    reelmill(*command, "--out", whole, "--steps", "4")
    reelmill(*command, "--out", parts, "--steps", "3")
    said = reelmill(*command, "--out", parts, "--steps", "4")
    assert "resuming from step 3" in said
    assert losses_of(parts / "stage1") == losses_of(whole / "stage1")
    assert len(losses_of(whole / "stage1")) == 4
    name = Path("stage1/weights/transformer/diffusion_pytorch_model.safetensors")
    assert (parts / name).read_bytes() == (whole / name).read_bytes()
    config = (parts / "stage1" / "config.json").read_text()
    said = reelmill(*command, "--out", parts, "--steps", "4", "--set", "train.log_every=3")
    assert "is trained: 4 steps" in said
    assert (parts / "stage1" / "config.json").read_text() == config  # it records the training of the weights
    said = reelmill(*command, "--out", parts, "--steps", "4", "--set", "sampling.guidance=2.5")
    assert "changed since the last start: sampling.guidance: 3.0 -> 2.5" in said
    after = json.loads((parts / "stage1" / "config.json").read_text())  # and the use of the weights
    assert after.pop("sampling")["guidance"] == 2.5
    assert after == {k: v for k, v in json.loads(config).items() if k != "sampling"}


def test_another_learning_rate_is_used_and_printed_in_both_directions(tmp_path: Path, dataset: Path) -> None:
    command = [
        "train",
        "stage1",
        "--data",
        dataset,
        *SMALL,
        "--out",
        tmp_path / "run",
        "--set",
        "train.warmup_steps=0",
    ]
    reelmill(*command, "--steps", "1")
    said = reelmill(*command, "--steps", "2", "--set", "train.learning_rate=5e-05")
    assert "changed since the last start: train.learning_rate: 0.001 -> 5e-05" in said
    said = reelmill(*command, "--steps", "3")
    assert "changed since the last start: train.learning_rate: 5e-05 -> 0.001" in said
    lines = (tmp_path / "run" / "stage1" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["learning_rate"] for line in lines] == [1e-3, 5e-5, 1e-3]


def test_a_prompt_becomes_a_preview_and_a_final_video(tmp_path: Path, run: Path) -> None:
    said = reelmill("sample", "a red circle", "--run", run, "--out", tmp_path, "--steps", "3", "--seed", "5")
    folder = tmp_path / "0000-a-red-circle"
    assert str(folder / "final.mp4") in said
    assert shape(folder / "preview.mp4") == (9, 32, 48)
    assert shape(folder / "final.mp4") == (9, 64, 96)
    about = json.loads((folder / "preview.json").read_text())
    assert (about["prompt"], about["seed"], about["sampling"]["steps"]) == ("a red circle", 5, 3)


def test_options_of_execution_change_no_video(tmp_path: Path, run: Path) -> None:
    """On the CPU offloading gives the same bits. The memory estimate is printed first."""
    plain, other = tmp_path / "plain", tmp_path / "other"
    command = ["sample", "a red circle", "--run", run, "--steps", "2", "--guidance", "1"]
    said = reelmill(*command, "--out", plain)
    assert said.count("memory: about ") == 2  # for each stage
    for offload in ("model", "block"):
        said = reelmill(*command, "--out", other / offload, "--offload", offload)
        for name in ("latents.safetensors", "preview.mp4", "final.mp4"):
            path = Path("0000-a-red-circle") / name
            assert (other / offload / path).read_bytes() == (plain / path).read_bytes(), (offload, name)
    apart = [*command[:-1], "3", "--guidance-batch", "apart", "--preview-only"]
    assert "guidance apart" in reelmill(*apart, "--out", other / "apart")
    assert "--compile" in refused(*command, "--out", other / "c", "--compile", "--offload", "block")


def test_size_and_length_can_be_chosen(tmp_path: Path, run: Path) -> None:
    made = reelmill(
        "sample", "x", "--run", run, "--out", tmp_path, "--steps", "2", "--frames", "5", "--size", "64x48",
        "--final-size", "112x80", "--enhance-steps", "2",
    )  # fmt: skip
    folder = Path(made.strip().splitlines()[-1]).parent
    assert shape(folder / "preview.mp4") == (5, 48, 64)
    assert shape(folder / "final.mp4") == (5, 80, 112)


def test_prompts_of_a_file_each_get_a_folder_and_a_second_run_makes_only_what_is_missing(
    tmp_path: Path, run: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a blue square\n\nein grüner Kreis\n", encoding="utf-8")
    out = tmp_path / "out"
    command = ["sample", "--prompts", prompts, "--run", run, "--out", out, "--steps", "2"]
    reelmill(*command)
    finals = sorted(out.glob("*/final.mp4"))
    assert [p.parent.name for p in finals] == ["0000-a-blue-square", "0001-ein-gruner-kreis"]
    first, second = (load_file(p.parent / "latents.safetensors")["latents"] for p in finals)
    assert not torch.equal(first, second)
    before = finals[0].stat().st_mtime_ns
    for path in finals[1].parent.iterdir():
        path.unlink()
    finals[1].parent.rmdir()
    reelmill(*command)
    assert finals[0].stat().st_mtime_ns == before
    again = load_file(finals[1].parent / "latents.safetensors")["latents"]
    assert torch.equal(again, second)
    alone = tmp_path / "alone"  # a single prompt of a list can be repeated with its own seed
    reelmill("sample", "ein grüner Kreis", "--run", run, "--out", alone, "--steps", "2", "--seed", "1",
             "--preview-only")  # fmt: skip
    assert torch.equal(load_file(next(alone.glob("*/latents.safetensors")))["latents"], second)
    assert not list(alone.glob("*/final.mp4"))


ENHANCE = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from generation.sample.trained import open_trained
from generation.sample.enhance import enhance, open_source, plan_enhance
from generation.sample.options import Options
run, preview, out = map(Path, sys.argv[1:])
device = torch.device("cpu")
torch.set_num_threads(1)
trained = open_trained(run, "stage2", device)
source = open_source(preview, device, Options(), None)
plan = plan_enhance(trained, source, Options())
save_file({"latents": enhance(trained, trained.model(), source, plan)}, out)
"""


def test_a_preview_enhanced_in_another_process_gives_the_same_bits(tmp_path: Path, run: Path) -> None:
    """One process makes the final video from a prompt. In the other way each stage has its own process."""
    torch.set_num_threads(1)
    reelmill("sample", "a red circle", "--run", run, "--out", tmp_path / "one", "--steps", "3")
    reelmill(
        "sample", "a red circle", "--run", run, "--out", tmp_path / "two", "--steps", "3", "--preview-only"
    )
    name = "0000-a-red-circle"
    latents = tmp_path / "two" / name / "latents.safetensors"
    assert latents.read_bytes() == (tmp_path / "one" / name / "latents.safetensors").read_bytes()
    command = [sys.executable, "-m", "jobs.cli", "enhance", str(tmp_path / "two" / name), "--run", str(run)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    finals = [(tmp_path / way / name / "final.mp4").read_bytes() for way in ("one", "two")]
    assert finals[0] == finals[1]

    from generation.sample.trained import open_trained

    trained = open_trained(run, "stage2", torch.device("cpu"))
    source = enhance.open_source(tmp_path / "one" / name, torch.device("cpu"), Options(), None)
    here = enhance.enhance(trained, trained.model(), source, enhance.plan_enhance(trained, source, Options()))
    script = [sys.executable, "-c", ENHANCE, str(run), str(tmp_path / "two" / name), str(tmp_path / "there")]
    subprocess.run(script, cwd=ROOT, check=True, capture_output=True, timeout=300)
    assert torch.equal(here, load_file(tmp_path / "there")["latents"])
    other = enhance.plan_enhance(trained, source, Options(seed=7))
    assert not torch.equal(here, enhance.enhance(trained, trained.model(), source, other))


def test_an_own_autoencoder_serves_both_stages(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands train the autoencoder and make final videos. Working directories differ."""
    monkeypatch.chdir(tmp_path)
    said = reelmill("train", "vae", "--data", dataset, "--out", "run", "--steps", "3")
    assert "memory: about" in said
    own = [f"codec.{key}={value}" for key, value in (("kind", "slice"), ("model", "run/vae"), ("spatial", 4))]
    chosen = [part for setting in own for part in ("--set", setting)]
    for stage in ("stage1", "stage2"):
        reelmill("train", stage, "--data", dataset, "--out", "run", "--steps", "2", *SMALL, *chosen)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    reelmill("sample", "a red circle", "--run", "../run", "--out", "videos", "--steps", "2")
    (folder,) = (tmp_path / "elsewhere" / "videos").iterdir()
    assert shape(folder / "preview.mp4") == (9, 32, 48)
    assert shape(folder / "final.mp4") == (9, 64, 96)
    monkeypatch.chdir(tmp_path)
    said = refused("train", "stage1", "--data", dataset, "--out", "other", *SMALL, *chosen[:4])
    assert "codec.spatial: 2, but run/vae has 4; write codec.spatial=4" in said.replace(f"{tmp_path}/", "")


def test_any_video_can_be_enhanced(tmp_path: Path, run: Path) -> None:
    source = tmp_path / "clip.mp4"
    source.write_bytes(
        synthetic.encode(synthetic.render_clip(synthetic.contents(1)[0], 11, 48, 32, 8.0), 8.0)
    )
    out = tmp_path / "larger" / "clip.mp4"
    reelmill("enhance", source, "--prompt", "a shape", "--run", run, "--out", out, "--size", "96x64")
    assert shape(out) == (9, 64, 96)  # 11 frames are cut to 4n + 1
    assert "needs --prompt" in refused("enhance", source, "--run", run, "--out", out)
    assert "needs --out" in refused("enhance", source, "--run", run, "--prompt", "x")
    assert "take 9" in refused(
        "enhance", source, "--run", run, "--prompt", "x", "--out", out, "--frames", "13"
    )


def test_a_final_video_is_made_again_with_other_settings(tmp_path: Path, run: Path) -> None:
    reelmill("sample", "x", "--run", run, "--out", tmp_path, "--steps", "2")
    final = tmp_path / "0000-x" / "final.mp4"
    first = final.read_bytes()
    reelmill("enhance", final.parent, "--run", run, "--noise-step", "900")
    assert final.read_bytes() != first
    assert json.loads((final.parent / "final.json").read_text())["noise_step"] == 900
    reelmill("sample", "x", "--run", run, "--out", tmp_path, "--steps", "2")
    assert final.read_bytes() == first


def test_previews_share_a_codec_and_are_decoded_when_they_are_enhanced(
    tmp_path: Path, run: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    reelmill(
        "train", "stage1", "--data", dataset, "--out", other, "--steps", "1", *SMALL, "--set", "codec.std=0.4"
    )
    (tmp_path / "prompts.txt").write_text("x\ny\n")
    folders: list[Path] = []
    for name, first in (("own", run), ("of another codec", other)):
        out = tmp_path / name
        reelmill(
            "sample", "--prompts", tmp_path / "prompts.txt", "--run", first, "--out", out, "--steps", "1",
            "--preview-only",
        )  # fmt: skip
        folders += sorted(out.iterdir())
    opened: list[float] = []
    decoded: list[int] = []

    def noted(settings: config.Codec, device: torch.device) -> Codec:
        opened.append(settings.std)
        return open_codec(settings, device)

    def decode(self: PatchCodec, latents: torch.Tensor, frames: int) -> torch.Tensor:
        decoded.append(frames)
        return torch.cat(list(self.decode_stream(latents, frames)), dim=2)

    monkeypatch.setattr(enhance, "open_codec", noted)
    monkeypatch.setattr(PatchCodec, "decode", decode)

    def made() -> tuple[list[float], int]:
        opened.clear(), decoded.clear()
        enhance.enhance_previews(run, folders, Options(), torch.device("cpu"))
        return list(opened), len(decoded)

    assert made() == ([0.4], 4)
    assert made() == ([], 0)  # all videos exist
    record = folders[0] / "final.json"
    about = json.loads(record.read_text())
    assert about["precision"] == "fp32"
    record.write_text(json.dumps({**about, "precision": "bf16"}))
    assert made() == ([], 1)
    assert json.loads(record.read_text()) == about
    # The latents come from another codec. The error is reported before a file is removed.
    preview = folders[2] / "preview.json"
    known = json.loads(preview.read_text())
    preview.write_text(json.dumps({**known, "codec": {**known["codec"], "std": 0.3}}))
    with pytest.raises(ValueError, match="take the same weights"):
        enhance.enhance_previews(run, folders[2:], Options(noise_step=900), torch.device("cpu"))
    assert (folders[2] / "final.json").exists()


def test_a_lora_on_an_own_base(tmp_path: Path, run: Path, dataset: Path) -> None:
    lora = tmp_path / "lora"
    reelmill(
        "train", "stage1", "--data", dataset, "--out", lora, "--steps", "2", *SMALL,
        "--set", f"transformer.pretrained={run / 'stage1'}", "--set", "lora.rank=4", "--set", "lora.alpha=4",
        "--set", "train.warmup_steps=0", "--set", "train.learning_rate=0.05",
    )  # fmt: skip
    assert (lora / "stage1" / "weights" / "pytorch_lora_weights.safetensors").exists()
    assert not (lora / "stage1" / "weights" / "transformer").exists()
    for name, folder in (("base", run), ("lora", lora)):
        reelmill("sample", "x", "--run", folder, "--out", tmp_path / name, "--steps", "2", "--preview-only")
    made = [load_file(tmp_path / n / "0000-x" / "latents.safetensors")["latents"] for n in ("base", "lora")]
    assert not torch.equal(*made)
    said = refused(
        "train", "stage1", "--data", dataset, "--out", tmp_path / "x", *SMALL, "--set", "lora.rank=4"
    )
    assert "transformer.pretrained" in said


TRAIN = ["train", "stage1", "--data", "{dataset}", "--out", "{new}"]
SAMPLE = ["sample", "x", "--run", "{run}", "--out", "{new}"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*TRAIN, "--preset", "huge"], ["--preset", "huge", "tiny, tiny-fast, small"]),
        ([*TRAIN, "--set", "train.stepz=3"], ["train.stepz", "steps"]),
        ([*TRAIN, "--set", "train.learning_rate=fast"], ["train.learning_rate", "fast"]),
        ([*TRAIN, "--set", "lora.rank=0"], ["lora.rank", "greater than or equal to 1"]),
        (
            [*TRAIN, "--set", "data.buckets=[{frames: 10, height: 32, width: 48}]"],
            ["10 frames", "take 9 or 13"],
        ),
        (
            [*TRAIN, "--set", "data.buckets=[{frames: 9, height: 34, width: 48}]"],
            ["height 34", "take 32 or 36"],
        ),
        ([*TRAIN, "--set", "phases=[{steps: 2, data: {fpz: 3}}]"], ["phases.0.data", "fpz"]),
        ([*TRAIN, "--set", "transformer.pretrained={new}"], ["transformer.pretrained", "{new}"]),
        (
            [*TRAIN, "--set", "data.where={aesthetics.mean: {min: 11}}"],
            ["no clip", "aesthetics.mean below 11"],
        ),
        (
            [*TRAIN, "--set", "data.where={aesthetic: {min: 1}}"],
            ["data.where: ", "'aesthetic'", "the columns are aesthetics.mean, "],
        ),
        (
            [*TRAIN, "--set", "data.where={quality.brightness: {max: 1}}"],
            ["data.where: ", "not measured", "motion.speed"],
        ),
        (
            [*TRAIN, "--set", "data.buckets=[{frames: 49, height: 32, width: 48}]"],
            ["no clip", "too short: 49 frames at 8 a second need 6 s"],
        ),
        ([*TRAIN, "--device", "tpu"], ["tpu", "cpu or cuda"]),
        (["train", "stage1", "--data", "{new}", "--out", "{new}"], ["{new} has no shards", "reelmill build"]),
        ([*TRAIN, "--set", "train.batch_size=1000000000"], ["too little memory", "train.batch_size"]),
        ([*SAMPLE, "--frames", "8"], ["8 frames", "take 5 or 9"]),
        ([*SAMPLE, "--size", "50x32"], ["width 50", "take 48 or 52"]),
        ([*SAMPLE, "--size", "big"], ["--size big", "480x256"]),
        ([*SAMPLE, "--final-size", "101x64"], ["width 101", "take 100 or 104"]),
        (["sample", "--run", "{run}", "--out", "{new}"], ["PROMPT", "--prompts"]),
        (["sample", "x", "--run", "{run}", "--out", "{empty}"], ["{empty}", "this is a file"]),
        ([*SAMPLE, "--guidance", "1", "--negative", "rain"], ["negative prompt", "guidance above 1"]),
        ([*SAMPLE, "--frames", "-3"], ["--frames", "greater than or equal to 1"]),
        ([*TRAIN, "--set", "sampling.guidance_ramp=spiral"], ["guidance_ramp", "spiral"]),
        (["sample", "  ", "--run", "{run}", "--out", "{new}"], ["no prompt"]),
        (["sample", "--prompts", "{empty}", "--run", "{run}", "--out", "{new}"], ["{empty}", "no prompt"]),
        (["sample", "--prompts", "{missing}", "--run", "{run}", "--out", "{new}"], ["{missing}", "No such"]),
        (
            ["sample", "x", "--run", "{missing}", "--out", "{new}"],
            ["{missing}", "no such run", "reelmill train"],
        ),
        (["enhance", "{missing}", "--run", "{run}", "--out", "{new}"], ["{missing}", "no such file"]),
        (["enhance", "{empty}", "--run", "{run}", "--prompt", "x", "--out", "{new}"], ["{empty}"]),
    ],
)
def test_wrong_usage_names_a_remedy(
    tmp_path: Path, dataset: Path, run: Path, arguments: list[str], says: list[str]
) -> None:
    (tmp_path / "empty.txt").write_text("\n  \n")
    places = {
        "dataset": dataset,
        "run": run,
        "new": tmp_path / "new",
        "empty": tmp_path / "empty.txt",
        "missing": tmp_path / "missing",
    }

    def filled(text: str) -> str:
        for name, path in places.items():
            text = text.replace("{" + name + "}", str(path))
        return text

    said = refused(*map(filled, arguments))
    for part in says:
        assert filled(part) in said
    assert not places["new"].exists()


def test_a_missing_stage_is_reported_before_the_other_stage_works(tmp_path: Path, dataset: Path) -> None:
    run = tmp_path / "run"
    reelmill("train", "stage1", "--data", dataset, "--out", run, "--steps", "1", *SMALL)
    out = tmp_path / "out"
    said = refused("sample", "x", "--run", run, "--out", out)
    assert f"{run} has no stage2 (it has stage1)" in said
    assert "reelmill train stage2" in said
    assert not out.exists()
    reelmill("sample", "x", "--run", run, "--out", out, "--steps", "1", "--preview-only")
    assert (out / "0000-x" / "preview.mp4").exists()


def test_weights_of_another_preset_are_refused_with_the_numbers_that_differ(
    tmp_path: Path, run: Path, dataset: Path
) -> None:
    said = refused(
        "train", "stage1", "--data", dataset, "--out", tmp_path / "new", "--preset", "small",
        "--set", f"transformer.pretrained={run / 'stage1'}",
        "--set", "data.buckets=[{frames: 9, height: 32, width: 48}]",
    )  # fmt: skip
    assert "transformer.layers: 2, not 16" in said
    assert "codec" in said
    said = refused("train", "stage1", "--data", dataset, "--out", run, "--preset", "tiny")
    assert "another configuration" in said
    assert "transformer.layers: 2 -> 4" in said


def test_damaged_missing_and_other_previews_are_refused(tmp_path: Path, run: Path) -> None:
    reelmill("sample", "x", "--run", run, "--out", tmp_path, "--steps", "1", "--preview-only")
    folder = tmp_path / "0000-x"
    said = refused("sample", "x", "--run", run, "--out", tmp_path, "--steps", "2", "--preview-only")
    assert "holds another preview" in said
    latents = load_file(folder / "latents.safetensors")["latents"]
    save_file({"latents": latents + 1}, folder / "latents.safetensors")
    assert "latents.safetensors does not fit" in refused("enhance", folder, "--run", run)
    (folder / "latents.safetensors").unlink()
    assert "latents.safetensors is missing" in refused("enhance", folder, "--run", run)


@pytest.mark.sampled("long commands", keep=1)
@pytest.mark.timeout(900)
def test_shards_of_the_demo_train_both_stages(tmp_path: Path, footage: Path) -> None:
    """The commands of the README: build with the demo configuration, 20 steps per stage, sample, enhance."""

    def process(*arguments: str | Path) -> str:
        command = [sys.executable, "-m", "jobs.cli", *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    data, run, out = tmp_path / "data", tmp_path / "run", tmp_path / "out"
    process("build", footage / "bikes.mp4", footage / "flower.mp4", "--out", data, "--config", "demo")
    for stage in ("stage1", "stage2"):
        said = process(
            "train", stage, "--data", data, "--out", run, "--steps", "20", "--set", "train.batch_size=2"
        )
        assert "step 20/20" in said
        assert len(losses_of(run / stage)) == 20
    process("sample", "a street", "--run", run, "--out", out, "--size", "64x32", "--final-size", "128x64",
            "--steps", "8")  # fmt: skip
    assert shape(out / "0000-a-street" / "preview.mp4") == (9, 32, 64)
    assert shape(out / "0000-a-street" / "final.mp4") == (9, 64, 128)
    larger = tmp_path / "hiker.mp4"
    process("enhance", footage / "hiker.mp4", "--prompt", "a hiker", "--run", run, "--out", larger,
            "--frames", "9", "--size", "144x96")  # fmt: skip
    assert shape(larger) == (9, 96, 144)
