"""The settings of an evaluation, and its figures of codecs and of Stage II, compared with other ways."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from generation import draws
from generation.codecs.patch import PatchCodec
from generation.config import Bucket
from generation.evaluate import scores
from generation.evaluate.codec import FIT_DB, FIT_DETAIL, evaluate_codec, is_fit, void
from generation.evaluate.figures import Figures
from generation.evaluate.following import read_by, shuffled
from generation.evaluate.judge import Judge, JudgeNet
from generation.evaluate.real_clips import Clips, load
from generation.evaluate.restoring import Restoring, evaluate_stage2
from generation.evaluate.settings import Settings
from generation.media import from_uint8
from generation.process.degrade import degrade_pixels
from generation.sample.trained import Trained, open_trained
from generation.train.open import open_stage
from tests.generation import synthetic, tiny_runs

CPU = torch.device("cpu")


# ---- settings


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"evaluations": []}, "evaluations"),
        ({"evaluations": [0]}, "evaluations"),
        ({"scale": 1}, "scale"),
        ({"scale": math.inf}, "scale"),
        ({"attributes": {"colour": ["red"]}}, "attributes.colour"),
        ({"attributes": {"colour": ["red", "Red"]}}, "attributes.colour: a word is twice in red, Red"),
        (
            {"attributes": {"colour": ["red", "light blue"]}},
            "attributes.colour: 'light blue' is not a single word",
        ),
        ({"attributes": {"colour": ["red", "blue-ish"]}}, "attributes.colour: 'blue-ish' is not a single"),
        ({"attributes": {"seen": ["red", "blue"]}}, "attributes.seen: .* nothing else may .* take another"),
        ({"attributes": {"the.colour": ["red", "blue"]}}, "attributes.the.colour"),
        ({"attributes": {"type": ["red", "blue"]}}, "attributes.type"),
        ({"attributes": {"training": ["red", "blue"]}}, "attributes.training"),
        ({"focus": "very striped"}, "focus: 'very striped' is not a single word"),
        ({"focus": ""}, "focus: '' is not a single word"),
        ({"swap": {"in stripes": "plain"}}, "swap: 'in stripes' is not a single word"),
        ({"lpips": "resnet"}, "lpips"),
        ({"bars": [{"figure": "vae.psnr_db"}]}, "vae.psnr_db has no min and no max"),
        ({"clipz": 3}, "clipz"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says) as error:
        Settings.model_validate(wrong)
    assert next(iter(wrong)) in str(error.value)


def test_groups_that_settings_allow_can_be_judged() -> None:
    """A name is refused if the network cannot use it or a figure has it. Other names are allowed."""
    names = ["colour", "shape", "way", "kind", "texture", "größe"]
    settings = Settings.model_validate({"attributes": {name: ["a", "b"] for name in names}})
    assert list(JudgeNet(settings.attributes, 16).heads) == names


# ---- codecs


def clips(count: int = 6) -> Clips:
    """Rendered clips (N, 3, 5, 16, 24), striped and plain in turn."""
    what = [
        synthetic.Content(("striped", "plain")[k % 2], c.colour, c.shape, c.direction)
        for k, c in enumerate(synthetic.contents(count))
    ]
    videos = [from_uint8(synthetic.render_clip(content, 5, 24, 16, 8.0)) for content in what]
    return Clips(torch.stack(videos), [content.caption for content in what], [str(k) for k in range(count)])


class Changed(PatchCodec):
    """A codec that returns changed videos."""

    def changed(self, video: Tensor) -> Tensor:
        return video

    def decode(self, latents: Tensor, frames: int) -> Tensor:
        return self.changed(super().decode(latents, frames))


class Bicubic(Changed):
    def changed(self, video: Tensor) -> Tensor:
        return scores.bicubic(video, 2.0)


class Noisy(Changed):
    """A codec that adds much detail, and all of the detail is wrong."""

    def changed(self, video: Tensor) -> Tensor:
        return scores.bicubic(video, 2.0) + 0.2 * draws.normal(video.shape, "noisy")


class Sharper(Changed):
    """A codec that loses half of the detail, and keeps the other half correctly."""

    def changed(self, video: Tensor) -> Tensor:
        return (video + scores.bicubic(video, 2.0)) / 2


def codec(kind: type[PatchCodec]) -> PatchCodec:
    return kind(tiny_runs.tiny("stage2").codec)


def test_the_lossless_codec_loses_nothing() -> None:
    truth = clips()
    figures = evaluate_codec(codec(PatchCodec), truth, Settings()).figures
    assert figures["psnr_db"] > 60
    assert figures["ssim"] > 0.9999
    assert figures["detail"] == pytest.approx(1, abs=1e-3)
    plain = scores.psnr(scores.bicubic(truth.video, 2.0), truth.video)
    assert figures["bicubic_psnr_db"] == pytest.approx(float(plain.mean()), rel=1e-5)
    assert figures["gain_db"] == pytest.approx(figures["psnr_db"] - figures["bicubic_psnr_db"], rel=1e-5)
    assert figures["clips"] == 6
    assert is_fit(figures)


def test_a_codec_that_gives_back_bicubic_copies_is_unfit() -> None:
    figures = evaluate_codec(codec(Bicubic), clips(), Settings()).figures
    assert figures["gain_db"] == pytest.approx(0, abs=1e-3)
    assert figures["detail"] < 0.2
    assert not is_fit(figures)


@pytest.mark.parametrize("kind", [Noisy, Sharper])
def test_gain_and_detail_are_both_needed(kind: type[PatchCodec]) -> None:
    figures = evaluate_codec(codec(kind), clips(), Settings()).figures
    assert not is_fit(figures)
    assert (figures["gain_db"] > FIT_DB) == (kind is Sharper)
    assert (figures["detail"] > FIT_DETAIL) == (kind is Noisy)


@pytest.mark.parametrize(("gain", "detail", "fit"), [(2, 0.7, True), (1.99, 1, False), (30, 0.69, False)])
def test_what_is_fit(gain: float, detail: float, fit: bool) -> None:
    assert is_fit({"gain_db": gain, "detail": detail}) is fit


def test_gain_and_detail_are_of_the_clips_in_focus() -> None:
    truth, own = clips(), codec(Sharper)
    figures = evaluate_codec(own, truth, Settings(focus="Striped")).figures
    made = (truth.video + scores.bicubic(truth.video, 2.0)) / 2
    gain = scores.psnr(made, truth.video) - scores.psnr(scores.bicubic(truth.video, 2.0), truth.video)
    assert figures["gain_db"] == pytest.approx(float(gain[::2].mean()), abs=1e-3)
    assert figures["psnr_db"] == pytest.approx(float(scores.psnr(made, truth.video).mean()), abs=1e-3)
    detail = scores.detail(made, truth.video, 2.0)
    assert figures["detail"] == pytest.approx(float(detail[::2].mean()), abs=1e-3)
    everywhere = evaluate_codec(own, truth, Settings()).figures
    assert everywhere["detail"] != pytest.approx(figures["detail"], abs=1e-3)


def test_a_word_in_no_caption_cannot_be_in_focus() -> None:
    with pytest.raises(ValueError, match=r"focus: no caption of the 6 held-out clips has the word dotted;"):
        evaluate_codec(codec(PatchCodec), clips(), Settings(focus="dotted"))


# ---- Stage II


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_dataset(tmp_path_factory.mktemp("data"), 24, frames=5, width=24, height=16)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """A Stage II with the lossless codec, trained for 20 steps."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    bucket = {"frames": 5, "height": 16, "width": 24}
    config = tiny_runs.tiny(
        "stage2",
        data={"buckets": [bucket], "validation_fraction": 0.25},
        degradation={"scale": [2, 3], "noise_steps": [3, 300]},
        sampling={"steps": 2, "guidance": 3.0},
        train={"learning_rate": 1e-2},
    )
    tiny_runs.train(config, dataset, folder)
    return folder


@pytest.fixture
def trained(run: Path) -> Trained:
    return open_trained(run, "stage2", CPU)


@pytest.fixture(scope="module")
def truth(run: Path, dataset: Path) -> Clips:
    config = open_trained(run, "stage2", CPU).config
    bucket = Bucket(frames=5, height=16, width=24)
    found = load(str(dataset), config.data, bucket, which="held out", limit=4)
    assert len(found) == 4
    return found


@pytest.fixture
def of(trained: Trained, truth: Clips) -> Restoring:
    return Restoring(trained, truth, Settings(clips=4))


def test_each_clip_has_a_degradation_of_its_own(of: Restoring, truth: Clips) -> None:
    settings = of.config.degradation
    for k, video in enumerate(truth.video):
        assert torch.equal(of.low[k : k + 1], degrade_pixels(video[None], settings, "evaluate", k))
    assert torch.equal(of.low_latents, of.encoded(of.low))


def test_the_row_of_the_truth_is_without_error(of: Restoring, truth: Clips) -> None:
    row = of.row(truth.video, of.latents)
    assert (row["psnr_db"], row["flicker_db"], row["latent_error"]) == pytest.approx((100, 100, 0), abs=1e-3)
    assert (row["ssim"], row["detail"]) == pytest.approx((1, 1), abs=1e-6)
    plain = scores.bicubic(truth.video, 2.0)
    assert row["gain_db"] == pytest.approx(100 - float(scores.psnr(plain, truth.video).mean()), abs=1e-3)
    assert row["ssim_gain"] == pytest.approx(1 - float(scores.ssim(plain, truth.video).mean()), abs=1e-5)
    assert row["other_gain_db"] is None


def test_the_row_of_bicubic_has_no_gain(of: Restoring) -> None:
    row = of.row(of.plain, of.encoded(of.plain))
    assert (row["gain_db"], row["ssim_gain"]) == (0, 0)
    assert row["detail"] < 0.2


def test_the_latent_error_is_that_over_the_low_quality_copies(of: Restoring) -> None:
    row = of.row(of.low, of.low_latents)
    assert row["latent_error"] == 1
    halfway = (of.low_latents + of.latents) / 2
    assert of.row(of.low, halfway)["latent_error"] == pytest.approx(0.25, rel=1e-4)


def test_a_row_is_of_the_clips_in_focus(trained: Trained, truth: Clips) -> None:
    captions: list[str | None] = ["a striped one", "a plain one", "a striped one", None]
    of = Restoring(trained, Clips(truth.video, captions, truth.ids), Settings(focus="plain"))
    row = of.row(of.low, of.low_latents)
    psnr = scores.psnr(of.low, truth.video)
    gain = psnr - scores.psnr(of.plain, truth.video)
    assert row["psnr_db"] == pytest.approx(float(psnr[1]), rel=1e-6)
    assert row["ssim"] == pytest.approx(float(scores.ssim(of.low, truth.video)[1]), rel=1e-6)
    assert row["detail"] == pytest.approx(float(scores.detail(of.low, truth.video, 2.0)[1]), rel=1e-6)
    assert row["flicker_db"] == pytest.approx(float(scores.flicker(of.low, truth.video)[1]), rel=1e-6)
    assert row["gain_db"] == pytest.approx(float(gain[1]), rel=1e-6)
    assert row["other_gain_db"] == pytest.approx(float(gain[[0, 2, 3]].mean()), rel=1e-6)


def test_pictures_do_not_flicker(trained: Trained, truth: Clips) -> None:
    of = Restoring(trained, Clips(truth.video[:, :, :1], truth.captions, truth.ids), Settings())
    row = of.row(of.low, of.low_latents)
    assert [key for key, value in row.items() if value is None] == ["flicker_db", "other_gain_db"]
    assert all(math.isfinite(value) for value in row.values() if value is not None)


def test_what_a_network_makes(of: Restoring, trained: Trained, truth: Clips) -> None:
    """A call is deterministic and depends on prompts and evaluations. Videos are decoded latents."""
    model = trained.model()
    asked = [caption or "" for caption in truth.captions]
    video, latents = of.enhanced(model, asked, 2)
    assert video.shape == truth.video.shape
    assert torch.equal(video, torch.cat([trained.codec.decode(one[None], 5) for one in latents]))
    again = of.enhanced(model, asked, 2)
    assert torch.equal(again[0], video)
    assert not torch.equal(of.enhanced(model, asked, 1)[1], latents)
    one_other = of.enhanced(model, ["something else", *asked[1:]], 2)[1]
    assert not torch.equal(one_other[0], latents[0])
    assert torch.equal(one_other[1:], latents[1:])


def test_the_negative_prompt_is_used(run: Path, truth: Clips) -> None:
    plain, other = (open_trained(run, "stage2", CPU) for _ in range(2))
    sampling = other.config.sampling.model_copy(update={"negative_prompt": "a blur"})
    other.config = other.config.model_copy(update={"sampling": sampling})
    asked = ["a red circle"] * 4
    made = [Restoring(t, truth, Settings()).enhanced(t.model(), asked, 1)[1] for t in (plain, other)]
    assert not torch.equal(*made)


def test_a_network_that_has_diverged_is_told(of: Restoring, trained: Trained) -> None:
    model = trained.model()
    next(model.parameters()).fill_(math.nan)
    with pytest.raises(
        ValueError, match=r"stage2: the network makes values .* not finite.*train.learning_rate"
    ):
        of.enhanced(model, ["x"] * 4, 1)


def test_untrained_weights_are_those_that_training_began_with(trained: Trained, tmp_path: Path) -> None:
    begun = open_stage(trained.config, CPU, tmp_path).model.state_dict()
    fresh = trained.untrained().state_dict()
    assert fresh.keys() == begun.keys()
    assert all(torch.equal(fresh[name], begun[name]) for name in fresh)
    learnt = trained.model().state_dict()
    assert not all(torch.equal(fresh[name], learnt[name]) for name in fresh)


class Looking(Judge):
    """A judge that reads the strongest colour in the middle of the first frame."""

    def read(self, videos: Tensor) -> Tensor:
        h, w = videos.shape[-2:]
        middle = videos[:, :, 0, h // 4 : -h // 4, w // 4 : -w // 4].mean((2, 3))
        return middle.argmax(1, keepdim=True)


COLOURS = {"colour": ("red", "green", "blue")}
LOOK = Looking(JudgeNet(COLOURS, 16), COLOURS, 16, {"colour": 1.0})
MADE = ("evaluations_1", "evaluations_2", "evaluations_3", "shuffled_prompts", "wrong_prompts", "untrained")


@pytest.fixture(scope="module")
def figures(run: Path, truth: Clips) -> Figures:
    said: list[str] = []
    settings = Settings(clips=4, evaluations=(3, 1), swap={"moving": "standing", "red": "blue"})
    found = evaluate_stage2(open_trained(run, "stage2", CPU), truth, settings, LOOK, said.append)
    assert len(said) == len(MADE)
    assert found.notes == []
    return found.figures


def test_stage2_has_every_row_and_control(figures: Figures) -> None:
    single = {"detail_over_fewest", "wrong_prompts_cost_db", "short_of_most_db"}
    assert set(figures) == {*MADE, "bicubic", "low_quality", "usual"} | single
    for name in (*MADE, "bicubic", "low_quality"):
        row = dict(figures[name])
        assert row.pop("shown").keys() == {"colour", "jointly", "jointly_over_chance"}
        assert row.pop("other_gain_db") is None
        assert all(math.isfinite(value) for value in row.values()), name
    json.dumps(figures, allow_nan=False)


def test_stage2_compares_the_usual_evaluations(figures: Figures) -> None:
    """The run samples with two evaluations, which are added to the asked-for 1 and 3."""
    usual, fewest, most, wrong = (
        figures[name] for name in ("evaluations_2", "evaluations_1", "evaluations_3", "wrong_prompts")
    )
    assert figures["usual"] == usual
    assert figures["detail_over_fewest"] == usual["detail"] / fewest["detail"]
    assert figures["short_of_most_db"] == most["psnr_db"] - usual["psnr_db"]
    assert figures["wrong_prompts_cost_db"] == usual["psnr_db"] - wrong["psnr_db"]
    assert wrong["psnr_db"] != usual["psnr_db"]
    assert figures["shuffled_prompts"]["psnr_db"] != usual["psnr_db"]


def test_rows_of_stage2_are_of_what_was_made(figures: Figures, trained: Trained, truth: Clips) -> None:
    of = Restoring(trained, truth, Settings(clips=4))
    asked = [caption or "" for caption in truth.captions]
    wrong = [prompt.replace("moving", "standing").replace("red", "blue") for prompt in asked]
    for name, model, prompts in (
        ("usual", trained.model(), asked),
        ("shuffled_prompts", trained.model(), shuffled(asked)),
        ("wrong_prompts", trained.model(), wrong),
        ("untrained", trained.untrained(), asked),
    ):
        video, latents = of.enhanced(model, prompts, 2)
        row = dict(figures[name])
        assert row.pop("shown") == read_by(LOOK, video, truth.captions), name
        assert row == of.row(video, latents), name
    assert figures["bicubic"]["gain_db"] == 0
    assert figures["low_quality"]["latent_error"] == 1


def test_stage2_says_why_a_control_is_missing(trained: Trained, truth: Clips) -> None:
    same = Clips(truth.video[:2], ["a red thing"] * 2, truth.ids[:2])
    settings = Settings(evaluations=(1,), swap={"striped": "plain"}, scale=4)
    found = evaluate_stage2(trained, same, settings, None, lambda text: None)
    assert {"shuffled_prompts", "wrong_prompts", "wrong_prompts_cost_db"}.isdisjoint(found.figures)
    assert "shown" not in found.figures["usual"]
    scale, shuffle, swap = found.notes
    assert "bicubic starts from smaller pictures (scale 4) than Stage II does" in scale
    assert "(degradation.scale 2 to 3)" in scale
    assert "all captions are the same" in shuffle
    assert swap == "stage2: no caption has one of the words of swap: striped"


def test_claims_in_the_latents_of_an_unfit_autoencoder_count_for_nothing() -> None:
    unfit: Figures = {"stage2": {"vae_fit": False}}
    fit: Figures = {"stage2": {"vae_fit": True}}
    claims = ("psnr_db", "gain_db", "latent_error", "ssim", "ssim_gain")
    for path in ("wrong_prompts_cost_db", *(f"usual.{claim}" for claim in claims)):
        assert void(unfit, f"stage2.{path}") == "VAE unfit"
        assert void(fit, f"stage2.{path}") == ""
        assert void({"stage2": {}}, f"stage2.{path}") == ""
        assert void({}, f"stage2.{path}") == ""
    for path in ("stage2.usual.shown.colour", "vae.psnr_db", "chain.colour", "stage2.usual.detail"):
        assert void(unfit, path) == ""
