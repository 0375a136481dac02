"""Prompt following is measured on rendered clips, which follow their prompts, and on clips that do not."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from generation import draws
from generation.evaluate import following, judge, scores
from generation.evaluate.figures import Figures, Found, ratio
from generation.evaluate.following import Made, by_flow, is_seen, read_by, shuffled, swapped
from generation.evaluate.judge import Judge, labels
from generation.evaluate.real_clips import Clips
from generation.media import from_uint8
from tests.generation import synthetic
from tests.generation.synthetic import Content

COLOUR = {"colour": tuple(synthetic.COLOURS)}
DIRECTION = {"direction": tuple(synthetic.DIRECTIONS)}
BOTH = {**COLOUR, **DIRECTION}


def clips(count: int, seed: int = 0) -> Clips:
    """Rendered clips (N, 3, 5, 16, 16). Every kind comes once before a kind repeats. Light always differs."""
    every = list(itertools.product(synthetic.COLOURS, synthetic.SHAPES, synthetic.DIRECTIONS))
    order = torch.randperm(len(every), generator=draws.generator("clips", seed)).tolist()
    what = [Content("plain", *every[order[k % len(order)]]) for k in range(count)]
    videos = [from_uint8(synthetic.render_clip(content, 5, 16, 16, 8.0)) for content in what]
    light = 0.05 * draws.normal((count, 3, 1, 1, 1), "light", seed)
    ids = [f"{seed}-{k}" for k in range(count)]
    return Clips((torch.stack(videos) + light).clamp(-1, 1), [content.caption for content in what], ids)


def prompts(of: Clips) -> list[str]:
    return [caption or "" for caption in of.captions]


@pytest.fixture(scope="module")
def trained_on() -> Clips:
    return clips(96)


@pytest.fixture(scope="module")
def held_out() -> Clips:
    return clips(24, seed=1)


@pytest.fixture(scope="module")
def found(trained_on: Clips, held_out: Clips) -> Judge:
    """A judge of colours and directions."""
    words = labels(trained_on.captions, BOTH)
    examined = (held_out.video, labels(held_out.captions, BOTH))
    return judge.train(trained_on.video, words, BOTH, examined, steps=50)


class Told(Judge):
    """A judge that reads words from the first numbers of a video."""

    def read(self, videos: Tensor) -> Tensor:
        return videos[:, : len(self.attributes), 0, 0, 0].round().long()


def told(attributes: judge.Attributes) -> Told:
    return Told(judge.JudgeNet(attributes, 16), attributes, 16, dict.fromkeys(attributes, 1.0))


def videos_that_show(words: Sequence[Sequence[int]]) -> Tensor:
    numbers = torch.tensor([[*row, *[0] * (3 - len(row))] for row in words], dtype=torch.float32)
    return numbers[:, :, None, None, None].expand(-1, -1, 2, 16, 16)


# ---- optical flow


def test_flow_sees_where_real_clips_go(held_out: Clips) -> None:
    assert by_flow(held_out.video, held_out.captions, BOTH) == 1.0


def test_flow_is_at_chance_when_prompts_are_those_of_others(held_out: Clips) -> None:
    share = by_flow(held_out.video, shuffled(prompts(held_out)), BOTH)
    assert share is not None
    assert 0.05 < share < 0.45


def test_what_stands_still_goes_nowhere(held_out: Clips) -> None:
    still = held_out.video[:, :, :1].expand_as(held_out.video)
    assert by_flow(still, held_out.captions, BOTH) == 0.0


def test_flow_is_asked_by_whatever_group_is_of_directions() -> None:
    some = [k for k, way in enumerate(("left", "up", "right", "down")) if way in ("left", "right")]
    what = [Content("plain", "red", "square", way) for way in ("left", "up", "right", "down")]
    videos = torch.stack([from_uint8(synthetic.render_clip(c, 5, 16, 16, 8.0)) for c in what])
    captions = [content.caption.replace("left", "LEFT") for content in what]
    assert some == [0, 2]
    assert by_flow(videos, captions, {"way": ("Right", "Left")}) == 1.0
    assert by_flow(videos[some], captions[::-1][::2], {"way": ("right", "left")}) is None
    assert by_flow(videos, [c.replace("right", "left") for c in captions], {"way": ("right", "left")}) == 0.5


def test_flow_says_nothing_without_directions_and_of_pictures(held_out: Clips) -> None:
    assert by_flow(held_out.video, held_out.captions, COLOUR) is None
    assert by_flow(held_out.video, ["a red square"] * len(held_out), BOTH) is None
    assert by_flow(held_out.video[:, :, :1], held_out.captions, BOTH) is None
    assert by_flow(held_out.video, held_out.captions, {"way": ("left", "right", "round")}) is None


# ---- words in videos


def test_what_is_read_is_counted_by_group_and_together() -> None:
    attributes = {"colour": ("red", "green", "blue", "yellow"), "shape": ("circle", "square", "triangle")}
    asked = ["red circle", "green square", "blue triangle", "yellow circle", "red", "nothing"]
    shown = videos_that_show([[0, 0], [1, 1], [2, 0], [0, 1], [0, 2], [3, 2]])
    figures = read_by(told(attributes), shown, asked)
    assert figures == pytest.approx(
        {"colour": 4 / 5, "shape": 2 / 4, "jointly": 2 / 4, "jointly_over_chance": 2 / 4 * 12}
    )


def test_what_no_prompt_asks_for_has_no_figure() -> None:
    attributes = {"colour": ("red", "blue"), "shape": ("circle", "square")}
    figures = read_by(told(attributes), videos_that_show([[0, 0]]), ["red"])
    assert figures == {"colour": 1.0, "shape": None, "jointly": None, "jointly_over_chance": None}


def test_a_judge_reads_real_clips(found: Judge, held_out: Clips) -> None:
    figures = following.examine(found, held_out)
    assert figures == {"accuracy": {"colour": 1.0, "direction": 1.0}, "direction_by_flow": 1.0}
    assert read_by(found, held_out.video, held_out.captions) == pytest.approx(
        {"colour": 1, "direction": 1, "jointly": 1, "jointly_over_chance": 16, "direction_by_flow": 1}
    )


@pytest.mark.parametrize(
    ("right", "says"), [(0.98, "about colour 0.980"), (math.nan, "no caption has a word of this group")]
)
def test_an_unfit_judge_stops_all(right: float, says: str, held_out: Clips) -> None:
    unfit = Judge(judge.JudgeNet(BOTH, 16), BOTH, 16, {"colour": right, "direction": 1.0})
    with pytest.raises(following.JudgeUnfit, match=f"judge unfit: on 24 .*{says}.*judge_steps") as error:
        following.examine(unfit, held_out)
    assert "direction" not in str(error.value)


# ---- prompts


def test_seen_words_came_together_in_a_caption() -> None:
    trained_on = ["a red square moving left", "a blue circle moving up", "a green one", None]
    asked = ["moving up: blue", "red, left", "red, up", "green", "something"]
    assert is_seen(asked, trained_on, BOTH) == [True, True, False, None, None]
    assert is_seen(["red"], ["red", "blue"], COLOUR) == [True]


def test_shuffled_prompts_are_all_of_others() -> None:
    for seed in range(40):
        pick = random.Random(seed)
        count = pick.randint(2, 30)
        asked = [f"prompt {pick.randint(0, count)}" for _ in range(count)]
        others = shuffled(asked)
        assert sorted(others) == sorted(asked)
        assert others == shuffled(asked)
        if max(Counter(asked).values()) <= count / 2:
            assert all(one != other for one, other in zip(asked, others, strict=True)), (asked, others)


def test_shuffling_is_not_to_the_next_one() -> None:
    """In an ordered list of prompts, neighbours are similar."""
    asked = [f"{k:02d}" for k in range(40)]
    steps = Counter((int(other) - int(one)) % 40 for one, other in zip(asked, shuffled(asked), strict=True))
    assert len(steps) > 15


def test_shuffling_where_one_prompt_is_most_of_them() -> None:
    asked = ["a", "a", "b", "a", "c", "a", "a"]
    others = shuffled(asked)
    assert sorted(others) == sorted(asked)
    assert sum(one != other for one, other in zip(asked, others, strict=True)) == 4  # the largest possible
    assert shuffled(["a", "a", "a"]) == ["a", "a", "a"]
    assert shuffled(["a"]) == ["a"]
    assert shuffled([]) == []


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a striped red square", "a plain red square"),
        ("A Striped, plain thing.", "A plain, striped thing."),
        ("stripedness: unplain", "stripedness: unplain"),
        ("", ""),
    ],
)
def test_swapped_words(prompt: str, expected: str) -> None:
    assert swapped(prompt, {"striped": "plain", "Plain": "striped"}) == expected


# ---- Stage I


def follow(found: Judge | None, made: Tensor, asked: Sequence[str], **changed: object) -> Found:
    real = clips(24, seed=2)
    given: Figures = {"real": real, "captions": real.captions, "found": found, "fresh": None, **changed}
    return following.evaluate_stage1(Made(list(asked), made, None), **given)


def test_stage1_of_videos_that_follow_their_prompts(found: Judge, held_out: Clips) -> None:
    fresh = draws.normal((6, 3, 5, 16, 16), "fresh").clamp(-1, 1)
    figures = follow(found, held_out.video, prompts(held_out), fresh=fresh).figures
    assert figures["videos"] == 24
    for name in ("colour", "direction", "jointly", "direction_by_flow"):
        assert figures[name] == 1.0
        for control in ("shuffled_prompts", "untrained"):
            assert figures[control][name] < 0.7, (control, name)
    still = figures["standing_still"]
    assert (still["colour"], still["direction_by_flow"]) == (1.0, 0.0)
    assert still["direction"] < 0.7
    assert figures["untrained"] == read_by(found, fresh, prompts(held_out)[:6])


def test_stage1_of_words_that_were_seen_together_and_of_others(found: Judge, held_out: Clips) -> None:
    made = held_out.video.clone()
    asked = prompts(held_out)
    red = [k for k, prompt in enumerate(asked) if "red" in prompt]
    made[red] = -1.0
    captions = [prompt for prompt in asked if "red" not in prompt]
    assert 2 < len(red) < 12
    figures = follow(found, made, asked, captions=captions).figures
    assert (figures["seen"]["videos"], figures["unseen"]["videos"]) == (24 - len(red), len(red))
    assert figures["seen"]["jointly"] == 1.0
    assert figures["unseen"]["direction_by_flow"] == 0.0
    assert figures["unseen"]["jointly_over_chance"] < 8
    assert "unseen" not in follow(found, made[:2], asked[:2], captions=asked).figures


def test_stage1_tells_how_much_videos_of_a_prompt_differ() -> None:
    levels = torch.tensor([0.0, 0.2, 0.5, 0.1, 0.1]).view(5, 1, 1, 1, 1).expand(5, 3, 2, 8, 8)
    asked = ["x", "y", "x", "y", "z"]
    video = torch.arange(4).view(4, 1, 1, 1, 1).div(10).expand(4, 3, 2, 16, 16)
    # Two pieces of one clip do not count as two clips.
    real = Clips(video, ["a", "a", "a", None], ["one", "two", "one", "three"])
    result = follow(None, levels, asked, real=real)
    assert result.figures["spread"] == pytest.approx((0.5 + 0.1) / 2 * 127.5, rel=1e-5)
    assert result.figures["real_spread"] == pytest.approx(0.1 * 127.5, rel=1e-5)
    assert not any("twice" in note for note in result.notes)


def test_stage1_says_why_a_figure_is_missing(found: Judge, held_out: Clips) -> None:
    without = follow(None, held_out.video[:3], ["a", "b", "c"])
    assert without.figures["spread"] is None
    first, second = without.notes
    assert "no prompt comes twice" in first
    assert "without attributes" in second
    assert set(without.figures) == {"videos", "spread", "real_spread"}
    same = follow(found, held_out.video[:2], ["a red thing"] * 2)
    assert same.figures["direction"] is None
    assert "shuffled_prompts" not in same.figures
    assert {"seen", "unseen"}.isdisjoint(same.figures)
    assert same.notes == [
        "stage1: no prompt has a word of direction",
        "stage1: all prompts are the same, so there is no control with other prompts",
    ]


# ---- both stages


def chain(found: Judge | None, made: Made, truth: Clips, real: Clips, features: object = None) -> Found:
    return following.evaluate_chain(made, truth, real, real.captions, found, features)  # type: ignore[arg-type]


def test_distances_are_of_sets_that_are_alike(held_out: Clips, trained_on: Clips) -> None:
    """Sets have the same size, number and length, and the standing clips are not clips of the target."""
    looked_at: list[Tensor] = []

    def features(videos: Tensor) -> Tensor:
        looked_at.append(videos)
        return videos.mean((2, 3)).flatten(1).double()

    made = Made(prompts(held_out)[:20], scores.resized(held_out.video[:20], 8, 8), held_out.video[:20, :, :3])
    real = Clips(trained_on.video[:15], trained_on.captions[:15], trained_on.ids[:15])
    result = chain(None, made, held_out, real, features)
    target, still_there, two_stage, first, static, real_static = looked_at
    assert {tuple(videos.shape) for videos in looked_at} == {(15, 3, 3, 16, 16)}
    assert torch.equal(target, held_out.video[:15, :, :3])
    assert torch.equal(still_there, real.video[:, :, :3])
    assert torch.equal(two_stage, held_out.video[:15, :, :3])
    assert torch.equal(first, scores.resized(made.previews[:15, :, :3], 16, 16))
    assert torch.equal(static, held_out.video[:15, :, :1].expand(-1, -1, 3, -1, -1))
    assert torch.equal(real_static, real.video[:, :, :1].expand(-1, -1, 3, -1, -1))
    figures = result.figures
    sets = {"real": still_there, "two_stage": two_stage, "stage1_bicubic": first, "static": static}
    sets["real_static"] = real_static
    for key, videos in sets.items():
        both = features(videos), features(target)
        assert figures["frechet"][key] == pytest.approx(scores.frechet(*both), rel=1e-6), key
        assert figures["kernel_distance"][key] == pytest.approx(scores.kernel_distance(*both), abs=1e-9), key
    of = figures["kernel_distance"]
    # There is no ratio to a distance that is not above 0, as between two sets of the same kind.
    assert max(of["stage1_bicubic"], of["static"]) < 0
    assert figures["two_stage_over_stage1_bicubic"] is None
    assert figures["stage1_bicubic_over_static"] is None


def test_distances_are_in_the_order_of_what_is_wrong(found: Judge, trained_on: Clips) -> None:
    """The sets are clips in other light, the same clips blurred, and the same clips standing still."""
    truth, others = clips(48, seed=1), clips(48, seed=3)
    made = Made(prompts(others), scores.resized(others.video, 4, 4), others.video)
    figures = chain(None, made, truth, trained_on, found.features).figures
    for name in ("frechet", "kernel_distance"):
        of = figures[name]
        assert of["real"] < of["stage1_bicubic"], name
        assert of["real"] < min(of["static"], of["real_static"]), name
        assert of["two_stage"] < of["stage1_bicubic"], name
    of = figures["kernel_distance"]
    assert figures["two_stage_over_stage1_bicubic"] == of["two_stage"] / of["stage1_bicubic"]
    assert figures["stage1_bicubic_over_static"] == of["stage1_bicubic"] / of["static"]


def test_the_chain_is_judged_beside_its_controls(found: Judge, held_out: Clips, trained_on: Clips) -> None:
    made = Made(prompts(held_out), torch.zeros(24, 3, 5, 8, 8), held_out.video)
    figures = chain(found, made, held_out, trained_on).figures
    assert figures["videos"] == 24
    assert (figures["colour"], figures["direction"], figures["jointly_over_chance"]) == (1.0, 1.0, 16.0)
    for control in ("shuffled_prompts", "stage1_bicubic"):
        assert figures[control]["colour"] < 0.6
        assert figures[control]["direction_by_flow"] < 0.6
    assert figures["standing_still"]["direction"] < 0.7


def test_the_chain_says_why_there_are_no_distances(found: Judge, held_out: Clips, trained_on: Clips) -> None:
    made = Made(prompts(held_out)[:1], held_out.video[:1], held_out.video[:1])
    one = chain(found, made, held_out, trained_on)
    assert "frechet" not in one.figures
    assert any("need at least two prompts" in note for note in one.notes)
    nobody = chain(None, made, held_out, trained_on)
    assert nobody.figures == {"videos": 1}
    assert nobody.notes == [
        "chain: without attributes or an extractor, distances to real videos are not measured"
    ]


def test_a_ratio_to_nothing_is_none() -> None:
    assert ratio(1.0, 4.0) == 0.25
    assert ratio(1.0, 0.0) is None
    assert ratio(1.0, -1e-9) is None
