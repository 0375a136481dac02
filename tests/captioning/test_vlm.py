"""Captions by real models of transformers: tiny, random, and of the families that the docs name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import random
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captioning.base import Caption, CaptionerMissing, CaptionFailed, CaptionRequest, Pictures
from captioning.prompts import PROMPTS, plain
from captioning.vlm import Transformers
from tests.captioning import tiny_vlm

ROOT = Path(__file__).parents[2]
SIZES = [(112, 168), (168, 112), (112, 112), (84, 196), (60, 240)]
TOKENS = 16
ASKED = "Say what is seen."  # few tokens: pictures count for more of what follows


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model of that family, made at the first call."""

    @cache
    def made(family: str) -> Path:
        if family.startswith("qwen2_5") or family.startswith("qwen3"):
            if not tiny_vlm.QWEN_PROCESSOR.is_dir():
                pytest.skip("the real processor files of Qwen2.5-VL are not here")
        elif family == "smolvlm" and find_spec("num2words") is None:
            pytest.skip("the processor of SmolVLM needs num2words")
        folder: Path = tiny_vlm.FAMILIES[family](tmp_path_factory.mktemp(family))
        return folder

    return made


@pytest.fixture(scope="session")
def loaded(checkpoint: Callable[[str], Path]) -> Callable[[str], Transformers]:
    """A captioner that all tests of a family share: they leave it as it was."""

    @cache
    def made(family: str) -> Transformers:
        return _captioner(checkpoint(family))

    return made


@pytest.fixture
def llava(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("llava_onevision")


def _captioner(folder: Path, **settings: Any) -> Transformers:
    return Transformers(model=str(folder), **{"max_tokens": TOKENS, "prompt": ASKED, **settings})


def _mixed(count: int = 32) -> list[CaptionRequest]:
    """Videos of five shapes, two lengths and two numbers of pictures, and an image in every four."""
    return [
        tiny_vlm.clip(
            f"clip-{k:02}",
            k,
            SIZES[k % 5],
            count=8 if k % 3 else 6,
            seconds=0 if k % 4 == 3 else 2.0 + 3 * (k % 2),
        )
        for k in range(count)
    ]


def _texts(answers: Sequence[Caption | CaptionFailed]) -> dict[str, str]:
    """Of each clip; random weights end some answers with their first token."""
    failed = [a for a in answers if isinstance(a, CaptionFailed)]
    assert {a.error for a in failed} <= {"EmptyAnswer"}
    return {a.clip_id: a.text if isinstance(a, Caption) else "" for a in answers}


# What a clip's text depends on


@pytest.mark.parametrize("family", tiny_vlm.FAMILIES)
def test_a_clips_text_is_its_own(loaded: Callable[[str], Transformers], family: str) -> None:
    """Clips in batches, in any order, say what each says alone; and say different things."""
    captioner = loaded(family)
    count = 32 if family in ("qwen2_5_vl", "llava_onevision") else 12
    clips = _mixed(count)
    together = captioner(clips)
    by_id = {answer.clip_id: answer for answer in together}
    assert sorted(by_id) == [clip.clip_id for clip in clips]
    alone = [captioner([clip])[0] for clip in clips]
    assert [by_id[clip.clip_id] for clip in clips] == alone
    shuffled = random.Random(1).sample(clips, len(clips))
    captioner._load().generator.batch = 5
    assert {a.clip_id: a for a in captioner(shuffled)} == by_id
    captioner._load().generator.batch = captioner.batch_clips
    texts = list(_texts(together).values())
    assert len(set(texts)) >= 0.85 * count
    ends = [a.truncated for a in together if isinstance(a, Caption)]
    assert 2 <= sum(ends) <= count - 2  # rows of a batch end at different steps


@pytest.mark.parametrize("family", tiny_vlm.FAMILIES)
def test_as_documented_by_transformers(loaded: Callable[[str], Transformers], family: str) -> None:
    """A clip says what `apply_chat_template` and `generate` by hand say."""
    from transformers import GenerationConfig

    captioner = loaded(family)
    processor, model = captioner._load()._processor, captioner._load().generator.model
    model.generation_config = GenerationConfig.from_pretrained(captioner.model)
    clips = [clip for clip in _mixed(5) if len(clip.pictures) in (1, 8)]
    expected = {}
    for clip in clips:
        seen = {"type": "image", "image": clip.pictures[0]}
        options: dict[str, Any] = {}
        if not clip.is_image:
            seen = {"type": "video", "video": np.stack(clip.pictures)}
            rate = 1 / (clip.times_s[1] - clip.times_s[0])
            # A video of which every second frame is shown, from the second on.
            indices = [2 * k + 1 for k in range(8)]
            metadata = {
                "total_num_frames": 16,
                "fps": 2 * rate,
                "frames_indices": indices,
                "duration": 8 / rate,
            }
            options = {"do_sample_frames": False, "video_metadata": [metadata]}
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": [seen, {"type": "text", "text": ASKED}]}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=options,
        )
        said = model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS)[0]
        said = said[inputs["input_ids"].shape[1] :].tolist()
        ends = [k for k, token in enumerate(said) if token in model.generation_config.eos_token_id]
        expected[clip.clip_id] = plain(
            processor.tokenizer.decode(said[: ends[0] if ends else None], skip_special_tokens=True)
        )
    assert _texts(captioner(clips)) == expected


def test_again_is_the_same(llava: Path) -> None:
    clips = _mixed(8)
    assert _captioner(llava)(clips) == _captioner(llava)(clips)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "smolvlm"])
def test_times_are_told(loaded: Callable[[str], Transformers], family: str) -> None:
    """Families that know when a picture was taken are told so, from the clip's start."""
    clip = tiny_vlm.clip("a", 1, (112, 168), seconds=8.0)
    checkpoint = loaded(family)._load()
    inputs = checkpoint.inputs([clip])
    if family == "qwen2_5_vl":
        assert float(inputs["second_per_grid_ts"][0]) == pytest.approx(2.0)  # two pictures, one each second
        return
    told = checkpoint._processor.tokenizer.decode(inputs["input_ids"][0])
    # Of pairs of pictures at 0.5 and 1.5 s, 2.5 and 3.5 s …; and of pictures at 0.5, 1.5, 2.5 … s.
    expected = ["<1.0 seconds>", "<7.0 seconds>"] if family == "qwen3_vl" else ["from 00:00:", "from 00:07:"]
    assert all(words in told for words in expected)
    if family == "smolvlm":
        assert "eight frames from a 0:00:08 [H:MM:SS] video" in told


def test_pictures_decide(loaded: Callable[[str], Transformers]) -> None:
    """Another last picture, another order: another text. So the comparisons above compare something."""
    for family in ("llava_onevision", "internvl"):
        captioner = loaded(family)
        clip = tiny_vlm.clip("a", 1, (112, 168))
        shown = clip.pictures
        others = [(*shown[:-1], tiny_vlm.pictures(2, 1, 112, 168)[0]), shown[::-1]]
        texts = [
            _texts(captioner([dataclasses.replace(clip, pictures=pictures)]))["a"]
            for pictures in (shown, *others)
        ]
        assert len(set(texts)) == 3


def test_draws_are_the_clips_own(llava: Path) -> None:
    captioner = _captioner(llava, temperature=1.0, seed=3)
    clips = _mixed(16)
    together = _texts(captioner(clips))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert {k: v for clip in reversed(clips) for k, v in _texts(captioner([clip])).items()} == together
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's draws are touched
    greedy = _texts(_captioner(llava)(clips))
    other = _texts(_captioner(llava, temperature=1.0, seed=4)(clips))
    assert sum(greedy[k] != together[k] for k in greedy) >= 12
    assert sum(other[k] != together[k] for k in other) >= 12
    # Of two clips with the same pictures, too: a draw is not the pictures'.
    twins = [dataclasses.replace(clips[0], clip_id=name) for name in ("x", "y")]
    assert len(set(_texts(captioner(twins)).values())) == 2


def test_draws_follow_the_softmax() -> None:
    from captioning.generate import _Draws

    scores = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(20000, 4)
    draws = _Draws(0, [str(k) for k in range(20000)], torch.device("cpu"))
    picked = draws(torch.zeros(20000, 1, dtype=torch.long), scores).argmax(-1)
    found = torch.bincount(picked, minlength=4) / 20000
    assert torch.allclose(found, scores[0].softmax(0), atol=0.015)


def test_repetition_penalty_does_not_see_padding() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    from captioning.generate import _Penalty

    scores = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[0, 0, 3, 4, 5], [1, 2, 0, 4, 5]])  # 0 is padding in one row, and said in the other
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])  # the last one is new
    found = _Penalty(1.3, mask)(ids, scores)
    for row, own in enumerate([ids[0, 2:], ids[1]]):
        expected = RepetitionPenaltyLogitsProcessor(1.3)(own[None], scores[row : row + 1])
        assert torch.equal(found[row : row + 1], expected)


def test_recommended_penalty(llava: Path, tmp_path: Path) -> None:
    """That of the checkpoint's authors, or the setting; a text stays the clip's own. It draws nothing."""
    folder = tiny_vlm.edited(
        llava,
        tmp_path / "m",
        "generation_config.json",
        repetition_penalty=1.5,
        do_sample=True,
        temperature=0.1,
        top_k=3,
        eos_token_id=5,
    )
    clips = _mixed(12)
    own = _texts(_captioner(folder)(clips))
    assert own == _texts(_captioner(folder, repetition_penalty=1.5)(clips))
    assert own != _texts(_captioner(folder, repetition_penalty=1.0)(clips))
    captioner = _captioner(folder)
    assert own == {k: v for clip in clips for k, v in _texts(captioner([clip])).items()}


# What is recorded


def test_what_is_recorded(llava: Path) -> None:
    clips = _mixed(4)
    answer = Transformers(model=str(llava), max_tokens=TOKENS)(clips[:1])[0]
    assert isinstance(answer, Caption)
    assert (answer.captioner, answer.kind, answer.prompt_version) == ("transformers", "long", "detailed-1")
    assert (answer.model, answer.revision) == (str(llava), None)
    short = _captioner(llava, prompt="short")(clips[:1])[0]
    assert isinstance(short, Caption)
    assert (short.kind, short.prompt_version) == ("short", PROMPTS["short"].version)
    assert short.text != answer.text
    own = _captioner(llava)(clips[1:2])[0]
    assert isinstance(own, Caption)
    assert own.prompt_version is not None
    assert own.prompt_version.startswith("custom-")
    structured = _captioner(llava, prompt="structured")(clips[:1])[0]
    assert isinstance(structured, CaptionFailed)  # random weights write no JSON
    assert structured.error == "BrokenAnswer"


def test_truncated(llava: Path) -> None:
    """At the limit of tokens, and only there: a longer limit begins with the same text."""
    clips = _mixed(16)
    short = {a.clip_id: a for a in _captioner(llava, max_tokens=8)(clips) if isinstance(a, Caption)}
    long = {a.clip_id: a for a in _captioner(llava, max_tokens=200)(clips) if isinstance(a, Caption)}
    assert 0 < sum(a.truncated for a in short.values()) < 16
    assert not any(a.truncated for a in long.values())
    for clip_id, answer in short.items():
        if answer.truncated:
            assert len(long[clip_id].text) > len(answer.text)
            assert long[clip_id].text.startswith(answer.text.rstrip("�"))
        else:
            assert long[clip_id].text == answer.text


def test_pictures_are_asked_for() -> None:
    assert Transformers(frames=5, side=300).pictures == Pictures(5, None, 300)


def test_key(llava: Path, tmp_path: Path) -> None:
    """Changes with what decides the text, and with nothing else."""
    base = _captioner(llava)
    assert base.key == _captioner(llava).key
    assert _captioner(llava, prompt="short").key.startswith("transformers-1-short-1-")
    same: list[dict[str, Any]] = [{"batch_clips": 3}, {"dtype": "bfloat16"}, {"attention": "eager"}]
    assert {_captioner(llava, **change).key for change in same} == {base.key}
    others: list[dict[str, Any]] = [
        {"prompt": "short"},
        {"prompt": "Say what the fox does."},
        {"frames": 4},
        {"side": 224},
        {"max_tokens": 100},
        {"temperature": 0.5},
        {"seed": 1},
        {"repetition_penalty": 1.1},
    ]
    assert len({base.key, *(_captioner(llava, **change).key for change in others)}) == len(others) + 1
    # Of a folder the contents count, wherever it lies; of the hub name and revision.
    moved = tiny_vlm.edited(llava, tmp_path / "a", "generation_config.json")
    (moved / "generation_config.json").write_bytes((llava / "generation_config.json").read_bytes())
    assert _captioner(moved).key == base.key
    assert _captioner(tiny_vlm.edited(llava, tmp_path / "b", "config.json", x=1)).key != base.key
    assert Transformers(model="a/b").key != Transformers(model="a/b", revision="v2").key


def test_a_pickled_captioner_leaves_its_model(llava: Path) -> None:
    captioner = _captioner(llava)
    clips = _mixed(2)
    said = captioner(clips)
    data = pickle.dumps(captioner)
    assert len(data) < 1000
    assert pickle.loads(data) == captioner
    assert pickle.loads(data)(clips) == said


def test_a_second_try_shares_the_model(llava: Path) -> None:
    captioner = _captioner(llava)
    before = captioner.again()
    clips = _mixed(8)
    first = _texts(captioner(clips))
    for again in (before, captioner.again()):
        assert (again.seed, again.temperature) == (1, 0.7)
        assert again._load() is captioner._load()
        assert _texts(again(clips)) != first
    warm = _captioner(llava, temperature=0.9, seed=5).again()
    assert (warm.seed, warm.temperature) == (6, 0.9)


# Memory and bad clips


def _limited(captioner: Transformers, most: int) -> list[int]:
    """As on a device whose memory takes `most` clips; the sizes of the batches that are tried."""
    model = captioner._load().generator.model
    generate, tried = model.generate, []
    refused: list[weakref.ref[torch.Tensor]] = []

    def limited(**inputs: Any) -> Any:
        assert all(inputs() is None for inputs in refused)  # they would fill the memory still
        tried.append(len(inputs["input_ids"]))
        if tried[-1] > most:
            refused.append(weakref.ref(inputs["input_ids"]))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return generate(**inputs)

    model.generate = limited
    return tried


@pytest.mark.parametrize("most", [3, 1])
def test_out_of_memory(llava: Path, most: int, caplog: pytest.LogCaptureFixture) -> None:
    clips = [clip for clip in _mixed(32) if not clip.is_image and len(clip.pictures) == 8][:16]
    expected = _texts(_captioner(llava)(clips))
    captioner = _captioner(llava, batch_clips=8)
    tried = _limited(captioner, most)
    assert _texts(captioner(clips)) == expected
    fits = 2 if most == 3 else 1
    halvings = [8, 4, 2, 1][: 3 if most == 3 else 4]
    assert tried == [*halvings, *[fits] * (16 // fits - 1)]
    assert f"trying {fits}" in caplog.text


def test_memory_for_not_even_one(llava: Path) -> None:
    captioner = _captioner(llava, batch_clips=4)
    tried = _limited(captioner, 0)
    clips = _mixed(32)[:3]
    answers = captioner(clips)
    assert {a.clip_id for a in answers} == {clip.clip_id for clip in clips}
    assert all(isinstance(a, CaptionFailed) and a.error == "OutOfMemoryError" for a in answers)
    assert len(tried) <= 6  # bounded


def test_batches_grow_again(llava: Path) -> None:
    """One long clip does not slow down all that follow."""
    captioner = _captioner(llava, batch_clips=4, max_tokens=1)
    clips = [tiny_vlm.clip(f"{k:03}", k, (56, 56), count=2) for k in range(4)]
    captioner(clips)
    _limited(captioner, 2)
    captioner(clips)
    generator = captioner._load().generator
    assert generator.batch == 2
    del generator.model.generate
    for _ in range(20):
        captioner(clips)
    assert generator.batch == 4


def test_memory_of_the_cpu(llava: Path) -> None:
    """Raised by torch itself, which is no OutOfMemoryError there."""
    captioner = _captioner(llava, batch_clips=2)
    model = captioner._load().generator.model
    generate = model.generate

    def hungry(**inputs: Any) -> Any:
        if len(inputs["input_ids"]) > 1:
            torch.empty(1 << 60, dtype=torch.uint8)
        return generate(**inputs)

    model.generate = hungry
    clips = _mixed(3)
    assert _texts(captioner(clips)) == _texts(_captioner(llava)(clips))


def test_a_bad_clip_fails_alone(loaded: Callable[[str], Transformers]) -> None:
    captioner = loaded("qwen2_5_vl")
    clips = [tiny_vlm.clip(f"{k}", k, (112, 168)) for k in range(4)]
    flat = tiny_vlm.clip("flat", 5, (2, 900))  # no model takes such an aspect ratio
    torn = dataclasses.replace(clips[0], clip_id="torn", pictures=(*clips[0].pictures[:7], flat.pictures[0]))
    empty = dataclasses.replace(clips[0], clip_id="empty", pictures=())
    answers = {a.clip_id: a for a in captioner([clips[0], flat, clips[1], torn, empty, *clips[2:]])}
    assert {k: answers[k] for k in "0123"} == {a.clip_id: a for a in captioner(clips)}
    failed = {k: a.error for k, a in answers.items() if isinstance(a, CaptionFailed)}
    assert failed == {"flat": "ValueError", "torn": "ValueError", "empty": "NoPictures"}
    flattened = answers["flat"]
    assert isinstance(flattened, CaptionFailed)
    assert "aspect ratio" in flattened.message


def test_no_clips(llava: Path) -> None:
    assert _captioner(llava)([]) == []


def test_read_only_pictures_and_a_video_of_one(llava: Path) -> None:
    """Pictures as they come out of Arrow; a video too short for two pictures; one without times."""
    clips = [tiny_vlm.clip("one", 1, (60, 80), count=1), tiny_vlm.clip("image", 1, (60, 80), seconds=0)]
    clips += [dataclasses.replace(tiny_vlm.clip("timeless", 2, (60, 80)), times_s=(), end_s=1.0)]
    for clip in clips:
        for picture in clip.pictures:
            picture.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        texts = _texts(_captioner(llava)(clips))
    assert texts["one"] == texts["image"] != texts["timeless"]


def test_pictures_where_videos_are_not_taken(llava: Path, tmp_path: Path) -> None:
    """A template that knows no videos gets so many pictures."""
    folder = tiny_vlm.edited(llava, tmp_path / "m", "config.json")
    (folder / "chat_template.jinja").write_text(tiny_vlm.template(video=""))
    captioner = _captioner(folder)
    clips = _mixed(16)
    together = captioner(clips)
    assert not captioner._load().videos
    assert len(set(_texts(together).values())) >= 14
    inputs = captioner._load().inputs(clips[:1])
    token = captioner._load().generator.model.config.image_token_index
    assert int((inputs["input_ids"] == token).sum()) == 6 * 5  # pictures of 4 patches and the end of a line
    assert {a.clip_id: a for a in together} == {clip.clip_id: captioner([clip])[0] for clip in clips}


# Settings reach the model


@pytest.mark.parametrize(
    ("dtype", "attention", "expected"),
    [
        ("auto", "sdpa", torch.float32),
        ("bfloat16", "eager", torch.bfloat16),
        ("float16", "sdpa", torch.float16),
    ],
)
def test_precision_and_attention(llava: Path, dtype: Any, attention: Any, expected: torch.dtype) -> None:
    captioner = _captioner(llava, dtype=dtype, attention=attention)
    model = captioner._load().generator.model
    assert model.dtype == expected
    assert model.config._attn_implementation == attention
    assert model.config.text_config._attn_implementation == attention
    assert len(_texts(captioner(_mixed(4)))) == 4


def test_only_pixels_are_made_coarse(llava: Path) -> None:
    generator = _captioner(llava, dtype="bfloat16")._load().generator
    numbers = torch.tensor([0.7321])
    assert generator._moved("pixel_values_videos", numbers).dtype == torch.bfloat16
    assert generator._moved("second_per_grid_ts", numbers).dtype == torch.float32


def test_one_token_begins_the_text(llava: Path, tmp_path: Path) -> None:
    """A tokenizer that puts it there and a template that writes it are of one mind in Llama's families."""
    from tokenizers import processors
    from transformers import AutoTokenizer

    folder = tiny_vlm.edited(llava, tmp_path / "m", "config.json")
    words = AutoTokenizer.from_pretrained(folder)
    words.bos_token = "<s>"
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A", special_tokens=[("<s>", words.bos_token_id)]
    )
    words.save_pretrained(folder)
    for start in ("<s>", ""):
        (folder / "chat_template.jinja").write_text(start + tiny_vlm.template())
        inputs = _captioner(folder)._load().inputs(_mixed(1))
        assert int((inputs["input_ids"] == words.bos_token_id).sum()) == 1


def test_attention_changes_no_text(llava: Path) -> None:
    clips = _mixed(16)
    assert _texts(_captioner(llava, attention="eager")(clips)) == _texts(_captioner(llava)(clips))


def test_auto_precision_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from captioning.generate import precision

    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert precision("auto", gpu) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert precision("auto", gpu) == torch.float16
    assert precision("float32", gpu) == torch.float32


# What is missing


def _refusal(captioner: Transformers) -> str:
    with pytest.raises(CaptionerMissing) as caught:
        captioner.check()
    with pytest.raises(CaptionerMissing):
        captioner(_mixed(1))
    return str(caught.value)


def test_check_looks_at_little(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", never)
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", never)
    _captioner(llava).check()


def test_what_a_folder_lacks(llava: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert _refusal(_captioner(tmp_path / "none")).startswith(
        f"captions.transformers.model: there is no folder {tmp_path}/none; name one that exists"
    )
    assert "holds no config.json; name a folder as `hf download`" in _refusal(_captioner(tmp_path / "empty"))
    bare = tiny_vlm.edited(llava, tmp_path / "bare", "config.json")
    (bare / "model.safetensors").unlink()
    assert "lacks weights" in _refusal(_captioner(bare))
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002.x"}}
    (bare / "model.safetensors.index.json").write_text(json.dumps(index))
    (bare / "model-00001-of-00002.safetensors").write_bytes(b"")
    assert "lacks 1 of 2 weight files, such as model-00002.x" in _refusal(_captioner(bare))
    mute = tiny_vlm.edited(llava, tmp_path / "mute", "config.json")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (mute / name).unlink()
    assert "lacks a tokenizer" in _refusal(_captioner(mute))
    broken = tiny_vlm.edited(llava, tmp_path / "broken", "config.json")
    (broken / "config.json").write_text("{")
    assert "config.json is no model's configuration" in _refusal(_captioner(broken))


def test_another_kind_of_model(llava: Path, tmp_path: Path) -> None:
    said = _refusal(
        _captioner(tiny_vlm.edited(llava, tmp_path / "m", "config.json", model_type="internvl_chat"))
    )
    assert "is of the type internvl_chat, which transformers does not load" in said
    assert "ends in -hf" in said


def test_what_only_loading_shows(llava: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    def said(folder: Path, **settings: Any) -> str:
        with pytest.raises(CaptionerMissing) as caught:
            _captioner(folder, **settings)(_mixed(1))
        return str(caught.value)

    partial = tiny_vlm.edited(llava, tmp_path / "partial", "config.json")
    weights = load_file(partial / "model.safetensors")
    dropped = next(name for name in weights if "q_proj.weight" in name)
    save_file(
        {k: v for k, v in weights.items() if k != dropped}, partial / "model.safetensors", {"format": "pt"}
    )
    assert "lacks 1 of the weights, such as " in said(partial)
    cut = tiny_vlm.edited(llava, tmp_path / "cut", "config.json")
    (cut / "model.safetensors").write_bytes((llava / "model.safetensors").read_bytes()[:-1000])
    assert "cannot be loaded" in said(cut)
    base = tiny_vlm.edited(llava, tmp_path / "base", "config.json")
    (base / "chat_template.jinja").unlink()
    assert "has no chat template; name a checkpoint that is tuned to instructions" in said(base)
    if find_spec("flash_attn") is None:
        found = said(llava, attention="flash_attention_2")
        assert found.startswith("captions.transformers.attention: flash_attention_2 cannot be had")


def test_packages_that_are_not_here(llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioning.vlm.find_spec", lambda name: None)
    with pytest.raises(CaptionerMissing, match=r"captions.transformers.attention: .*pip install flash-attn"):
        _captioner(llava, attention="flash_attention_2").check()
    folder = tiny_vlm.edited(llava, tmp_path / "m", "config.json", model_type="smolvlm")
    with pytest.raises(CaptionerMissing, match=r"captions.transformers.model: .*pip install num2words"):
        _captioner(folder).check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 0}, "captions.transformers.frames: at least 1, not 0"),
        ({"side": 0}, "captions.transformers.side: at least 1, not 0"),
        ({"max_tokens": 0}, "captions.transformers.max_tokens: at least 1, not 0"),
        ({"batch_clips": -1}, "captions.transformers.batch_clips: at least 1, not -1"),
        ({"temperature": float("nan")}, "captions.transformers.temperature: at least 0, not nan"),
        ({"repetition_penalty": 0.0}, "captions.transformers.repetition_penalty: above 0"),
        ({"model": " "}, "captions.transformers.model: a folder or the name of a model"),
        ({"prompt": "detaild"}, "unknown prompt 'detaild'"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Transformers(**settings)


_ASK = """
import json, sys
from captioning.vlm import Transformers
for name, revision, says in json.loads(sys.argv[1]):
    captioner = Transformers(**({"model": name} if name else {}), revision=revision, max_tokens=16)
    try:
        captioner.check()
        said = None
        if says:
            from tests.captioning import tiny_vlm
            said = captioner([tiny_vlm.clip("a", 1, (60, 80))])[0]
        print(json.dumps([captioner.key, said and said.text, said and said.revision]))
    except ValueError as error:
        print(json.dumps(type(error).__name__ + " " + str(error)))
"""
Question = tuple[str | None, str | None, bool]  # model, revision, does it say something


def _ask(cache: Path, questions: list[Question], **environment: str) -> list[Any]:
    """What `check` and a caption say, in a process of its own: the hub's address is read at import."""
    done = subprocess.run(
        [sys.executable, "-c", _ASK, json.dumps(questions)],
        env={**os.environ, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_default_model_without_a_hub(tmp_path: Path) -> None:
    (said,) = _ask(tmp_path, [(None, None, False)], HF_HUB_OFFLINE="1")
    assert said.startswith(
        "CaptionerMissing captions.transformers.model: there is no folder Qwen/Qwen2.5-VL-3B-Instruct"
    )
    assert "unset HF_HUB_OFFLINE" in said
    assert "hf download Qwen/Qwen2.5-VL-3B-Instruct --local-dir FOLDER" in said
    assert "captions.transformers.model=FOLDER" in said


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(llava: Path) -> Iterator[str]:
    """A server that answers as the hub does: org/good and org/half are LLaVA."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            status, code, data = _hub_says(llava, self.path.lstrip("/"))
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def _hub_says(folder: Path, path: str) -> tuple[int, str, bytes]:
    name, _, rest = path.removeprefix("api/models/").partition("/resolve/")
    revision, _, file = rest.partition("/")
    if name.startswith("org/gated"):
        return 403, "GatedRepo", b""
    if not name.startswith(("org/good", "org/half")):
        return 404, "RepoNotFound", b""
    if revision not in ("", "main", COMMIT):
        return 404, "RevisionNotFound", b""
    if not (folder / file).is_file():
        return 404, "EntryNotFound", b""
    return 200, "", (folder / file).read_bytes()


def test_hub(hub: str, llava: Path, tmp_path: Path) -> None:
    good, half, gated, unknown, revision, invalid = _ask(
        tmp_path,
        [
            ("org/good", None, True),
            ("org/half", None, False),
            ("org/gated", None, False),
            ("org/unknown", None, False),
            ("org/good", "v9", False),
            ("a b", None, False),
        ],
        HF_ENDPOINT=hub,
    )
    key, text, commit = good
    local = Transformers(model=str(llava), max_tokens=16)([tiny_vlm.clip("a", 1, (60, 80))])[0]
    assert isinstance(local, Caption)
    assert (text, commit) == (local.text, COMMIT)
    assert key == Transformers(model="org/good", max_tokens=16).key
    assert isinstance(half, list)  # the check fetched config.json alone, and was content
    prefix = "CaptionerMissing captions.transformers."
    assert gated.startswith(f"{prefix}model: org/gated is gated; accept its terms on https://huggingface.co/")
    assert "hf auth login" in gated
    assert unknown.startswith(f"{prefix}model: the hub has no org/unknown, and there is no such folder")
    assert revision == f"{prefix}revision: org/good has no v9; name a branch, tag or commit"
    assert invalid == f"{prefix}model: a b is neither a folder nor a hub name"
    # Once fetched it needs no connection. Half of it would not do, which shows before the work.
    again, half = _ask(tmp_path, [("org/good", None, True), ("org/half", None, False)], HF_HUB_OFFLINE="1")
    assert again == good
    assert half.startswith(f"{prefix}model: of org/half the cache lacks weights")
    assert "run `hf download org/half` with a connection" in half


def test_import_is_quick() -> None:
    """Not by the clock: what takes seconds to import is not imported before it is needed."""
    code = (
        "import sys, captioning.vlm as v, captioning.lm; v.Transformers().key; "
        "print(sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
