"""The judge: words of captions, and a network that must recognise the words in unseen clips."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from generation import draws
from generation.evaluate import judge
from generation.evaluate.judge import Judge, labels
from generation.media import from_uint8
from tests.generation import synthetic
from tests.generation.synthetic import Content

COLOUR = {"colour": tuple(synthetic.COLOURS)}
BOTH = {**COLOUR, "direction": tuple(synthetic.DIRECTIONS)}


# ---- words


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a red circle moving left", [0, 0]),
        ("A Yellow circle, moving DOWN.", [3, 3]),
        ("a circle moving up", [-1, 2]),  # no colour
        ("a red and a blue circle moving up", [-1, 2]),  # two colours
        ("a red, red circle", [0, -1]),  # the same colour twice counts once
        ("a reddish circle, moving upwards", [-1, -1]),  # parts of longer words do not count
        ("blue-ish: up/over", [2, 2]),
        ("", [-1, -1]),
        (None, [-1, -1]),
    ],
)
def test_labels(caption: str | None, expected: list[int]) -> None:
    assert labels([caption], BOTH).tolist() == [expected]


def test_words_of_a_group_may_be_written_in_capitals() -> None:
    assert labels(["a red ball"], {"colour": ("Blue", "Red")}).tolist() == [[1]]


def test_labels_of_nothing_have_their_shape() -> None:
    assert labels([], BOTH).shape == (0, 2)
    assert labels(["a", "b"], {}).shape == (2, 0)


def test_accuracy_is_of_the_rows_that_have_a_word() -> None:
    truth = torch.tensor([[0, 1, -1], [1, -1, -1], [2, 0, -1], [0, -1, -1]])
    read = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0], [0, 0, 0]])
    first, second, third = judge.accuracy(read, truth)
    assert (first, second) == (0.75, 0.5)
    assert math.isnan(third)


def test_joint_is_of_the_rows_that_have_words_of_all_groups() -> None:
    truth = torch.tensor([[0, 1], [1, -1], [2, 0], [0, 0]])
    read = torch.tensor([[0, 1], [1, 0], [2, 1], [0, 0]])
    assert judge.joint(read, truth) == pytest.approx(2 / 3)
    assert math.isnan(judge.joint(read[1:2], truth[1:2]))


def test_groups_are_unfit_below_what_is_asked_and_where_nobody_knows() -> None:
    net = judge.JudgeNet(BOTH, 16)
    right = {"a": judge.FIT, "b": judge.FIT - 0.001, "c": math.nan, "d": 1.0}
    assert Judge(net, BOTH, 16, right).unfit == ["b", "c"]


# ---- pictures


def test_scaled_is_square_and_keeps_what_fits() -> None:
    video = draws.normal((2, 3, 2, 16, 16), "scaled").clamp(-1, 1)
    assert judge.scaled(video, 16) is video
    even = torch.full((1, 3, 4, 20, 30), 0.25)
    found = judge.scaled(even, 12)
    assert found.shape == (1, 3, 4, 12, 12)
    assert torch.allclose(found, torch.full_like(found, 0.25), atol=1e-6)
    assert float(judge.scaled(video.sign(), 24).abs().max()) <= 1


@pytest.mark.parametrize(("side", "frames"), [(4, 1), (16, 3), (30, 5), (64, 2)])
def test_the_network_takes_any_length_and_size(side: int, frames: int) -> None:
    net = judge.JudgeNet(BOTH, side)
    made = net(torch.zeros(2, 3, frames, side, side))
    assert {name: tuple(scores.shape) for name, scores in made.items()} == {
        "colour": (2, 4),
        "direction": (2, 4),
    }


# ---- training


def _clips(count: int, seed: int, attributes: judge.Attributes = COLOUR) -> tuple[Tensor, Tensor]:
    """Rendered clips (N, 3, 3, 16, 16) in [-1, 1], and the numbers of their words."""
    every = list(itertools.product(synthetic.COLOURS, synthetic.SHAPES, synthetic.DIRECTIONS))
    order = torch.randperm(len(every), generator=draws.generator("clips", seed)).tolist()
    what = [Content("plain", *every[order[k % len(order)]]) for k in range(count)]
    videos = [from_uint8(synthetic.render_clip(content, 3, 16, 16, 8.0)) for content in what]
    return torch.stack(videos), labels([content.caption for content in what], attributes)


@pytest.fixture(scope="module")
def trained() -> Judge:
    return judge.train(*_clips(48, 0), COLOUR, _clips(24, 1), steps=30)


def test_it_learns_what_can_be_seen(trained: Judge) -> None:
    assert trained.accuracy == {"colour": 1.0}
    assert trained.unfit == []
    videos, truth = _clips(40, 2)  # these are more than a batch
    assert torch.equal(trained.read(videos), truth)


def test_it_reads_videos_of_other_sizes_and_lengths(trained: Judge) -> None:
    content = Content("plain", "green", "circle", "up")
    video = from_uint8(synthetic.render_clip(content, 9, 48, 32, 8.0))[None]
    assert trained.read(video).tolist() == [[1]]
    found = trained.features(torch.cat([video, video]))
    assert found.dtype == torch.float64
    assert found.shape == (2, trained.net.heads["colour"].in_features)
    assert torch.equal(found[0], found[1])
    with torch.no_grad():
        words = trained.net.heads["colour"](found.float())
    assert words.argmax(1).tolist() == [1, 1]


def test_training_is_deterministic_and_leaves_the_global_draws_alone(trained: Judge) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again = judge.train(*_clips(48, 0), COLOUR, _clips(24, 1), steps=30)
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in again.net.state_dict().items():
        assert torch.equal(value, trained.net.state_dict()[name]), name
    other = judge.train(*_clips(48, 0), COLOUR, _clips(24, 1), steps=2, seed=1)
    assert not torch.equal(other.net.layers[0].weight, trained.net.layers[0].weight)


def test_it_is_unfit_when_captions_tell_of_other_clips() -> None:
    videos, truth = _clips(48, 0)
    shuffled = truth[torch.randperm(len(truth), generator=draws.generator("shuffled"))]
    found = judge.train(videos, shuffled, COLOUR, _clips(24, 1), steps=30)
    assert found.accuracy["colour"] < 0.7
    assert found.unfit == ["colour"]


def test_groups_are_fit_or_not_by_themselves() -> None:
    """A group whose words do not describe the clips does not harm other groups."""
    videos, truth = _clips(48, 0, BOTH)
    wrong = truth.roll(7, 0)[:, 1]
    found = judge.train(videos, torch.stack([truth[:, 0], wrong], 1), BOTH, _clips(24, 1, BOTH), steps=40)
    assert found.unfit == ["direction"]


def test_clips_without_a_word_do_no_harm() -> None:
    """Most captions have no word of a group, and a whole batch of such clips would have no loss."""
    videos, truth = _clips(96, 0)
    told = [truth[:, 0].tolist().index(word) for word in range(4)]
    truth[[k for k in range(96) if k not in told]] = -1
    found = judge.train(videos, truth, COLOUR, _clips(24, 1), steps=30)
    assert found.accuracy["colour"] > 0.9


def test_a_group_of_which_no_held_out_caption_has_a_word_is_unfit() -> None:
    videos, truth = _clips(24, 0)
    found = judge.train(videos, truth, COLOUR, (videos[:4], torch.full((4, 1), -1)), steps=1)
    assert math.isnan(found.accuracy["colour"])
    assert found.unfit == ["colour"]


def test_a_word_that_no_caption_has_is_named() -> None:
    videos, truth = _clips(8, 0)
    truth = torch.cat([truth, torch.full((8, 1), -1)], 1)
    attributes = {**COLOUR, "size": ("small", "large")}
    with pytest.raises(
        ValueError, match=r"attributes\.size: none of 8 captions has small, large .*judge_clips"
    ):
        judge.train(videos, truth, attributes, (videos, truth), steps=1)
    truth[:, 1] = torch.arange(8) % 2
    more = {**attributes, "size": ("small", "large", "huge")}
    with pytest.raises(ValueError, match=r"attributes\.size: none of 8 captions has huge as"):
        judge.train(videos, truth, more, (videos, truth), steps=1)
