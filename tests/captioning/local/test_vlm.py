"""Captions by tiny models of transformers with random weights, of the model families in the documents."""

from __future__ import annotations

import dataclasses
import pickle
import random
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captioning.base import Caption, CaptionFailed, Pictures
from captioning.local.vlm import Transformers
from captioning.prompts import PROMPTS, plain
from tests.captioning import tiny_vlm
from tests.captioning.tiny_vlm import ASKED, TOKENS, mixed_clips, texts_of, tiny_captioner

# Dependencies of a clip's text


@pytest.mark.parametrize("family", tiny_vlm.FAMILIES)
def test_a_clips_text_does_not_depend_on_its_batch(
    loaded: Callable[[str], Transformers], family: str
) -> None:
    """A clip gets the same text alone and in batches of any order. Texts of clips differ."""
    captioner = loaded(family)
    count = 32 if family in ("qwen2_5_vl", "llava_onevision") else 12
    clips = mixed_clips(count)
    together = captioner(clips)
    by_id = {answer.clip_id: answer for answer in together}
    assert sorted(by_id) == [clip.clip_id for clip in clips]
    alone = [captioner([clip])[0] for clip in clips]
    assert [by_id[clip.clip_id] for clip in clips] == alone
    shuffled = random.Random(1).sample(clips, len(clips))
    captioner._load().generator.batch = 5
    assert {a.clip_id: a for a in captioner(shuffled)} == by_id
    captioner._load().generator.batch = captioner.batch_clips
    texts = list(texts_of(together).values())
    assert len(set(texts)) >= 0.85 * count
    ends = [a.truncated for a in together if isinstance(a, Caption)]
    assert 2 <= sum(ends) <= count - 2  # rows of a batch end at different steps


@pytest.mark.parametrize("family", tiny_vlm.FAMILIES)
def test_as_documented_by_transformers(loaded: Callable[[str], Transformers], family: str) -> None:
    """The text equals the result of direct calls of `apply_chat_template` and `generate`."""
    from transformers import GenerationConfig

    captioner = loaded(family)
    processor, model = captioner._load()._processor, captioner._load().generator.model
    model.generation_config = GenerationConfig.from_pretrained(captioner.model)
    clips = [clip for clip in mixed_clips(5) if len(clip.pictures) in (1, 8)]
    expected = {}
    for clip in clips:
        seen = {"type": "image", "image": clip.pictures[0]}
        options: dict[str, Any] = {}
        if not clip.is_image:
            seen = {"type": "video", "video": np.stack(clip.pictures)}
            rate = 1 / (clip.times_s[1] - clip.times_s[0])
            # A video of which every second frame is used, starting with the second.
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
    assert texts_of(captioner(clips)) == expected


def test_a_second_call_gives_the_same_text(llava: Path) -> None:
    clips = mixed_clips(8)
    assert tiny_captioner(llava)(clips) == tiny_captioner(llava)(clips)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "smolvlm"])
def test_models_get_the_times_of_pictures(loaded: Callable[[str], Transformers], family: str) -> None:
    """Model families that use times get the time of each picture from the clip's start."""
    clip = tiny_vlm.clip("a", 1, (112, 168), seconds=8.0)
    checkpoint = loaded(family)._load()
    inputs = checkpoint.inputs([clip])
    if family == "qwen2_5_vl":
        assert float(inputs["second_per_grid_ts"][0]) == pytest.approx(2.0)  # two pictures, one each second
        return
    told = checkpoint._processor.tokenizer.decode(inputs["input_ids"][0])
    # For pairs of pictures at 0.5 and 1.5 s, 2.5 and 3.5 s …; and for pictures at 0.5, 1.5, 2.5 … s.
    expected = ["<1.0 seconds>", "<7.0 seconds>"] if family == "qwen3_vl" else ["from 00:00:", "from 00:07:"]
    assert all(words in told for words in expected)
    if family == "smolvlm":
        assert "eight frames from a 0:00:08 [H:MM:SS] video" in told


def test_pictures_decide(loaded: Callable[[str], Transformers]) -> None:
    """Another last picture or another order gives another text. So the tests above are meaningful."""
    for family in ("llava_onevision", "internvl"):
        captioner = loaded(family)
        clip = tiny_vlm.clip("a", 1, (112, 168))
        shown = clip.pictures
        others = [(*shown[:-1], tiny_vlm.pictures(2, 1, 112, 168)[0]), shown[::-1]]
        texts = [
            texts_of(captioner([dataclasses.replace(clip, pictures=pictures)]))["a"]
            for pictures in (shown, *others)
        ]
        assert len(set(texts)) == 3


def test_draws_depend_only_on_the_clip(llava: Path) -> None:
    captioner = tiny_captioner(llava, temperature=1.0, seed=3)
    clips = mixed_clips(16)
    together = texts_of(captioner(clips))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert {k: v for clip in reversed(clips) for k, v in texts_of(captioner([clip])).items()} == together
    assert torch.equal(torch.get_rng_state(), state)  # torch's global generator is not used
    greedy = texts_of(tiny_captioner(llava)(clips))
    other = texts_of(tiny_captioner(llava, temperature=1.0, seed=4)(clips))
    assert sum(greedy[k] != together[k] for k in greedy) >= 12
    assert sum(other[k] != together[k] for k in other) >= 12
    # Two clips with the same pictures get different draws.
    twins = [dataclasses.replace(clips[0], clip_id=name) for name in ("x", "y")]
    assert len(set(texts_of(captioner(twins)).values())) == 2


def test_draws_follow_the_softmax() -> None:
    from captioning.local.generate import _Draws

    scores = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(20000, 4)
    draws = _Draws(0, [str(k) for k in range(20000)], torch.device("cpu"))
    picked = draws(torch.zeros(20000, 1, dtype=torch.long), scores).argmax(-1)
    found = torch.bincount(picked, minlength=4) / 20000
    assert torch.allclose(found, scores[0].softmax(0), atol=0.015)


def test_repetition_penalty_ignores_padding() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    from captioning.local.generate import _Penalty

    scores = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[0, 0, 3, 4, 5], [1, 2, 0, 4, 5]])  # 0 is padding in one row and text in the other
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])  # the last token is new
    found = _Penalty(1.3, mask)(ids, scores)
    for row, own in enumerate([ids[0, 2:], ids[1]]):
        expected = RepetitionPenaltyLogitsProcessor(1.3)(own[None], scores[row : row + 1])
        assert torch.equal(found[row : row + 1], expected)


def test_recommended_penalty(llava: Path, tmp_path: Path) -> None:
    """The penalty is the authors' or the setting. A text still depends only on its clip, without draws."""
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
    clips = mixed_clips(12)
    own = texts_of(tiny_captioner(folder)(clips))
    assert own == texts_of(tiny_captioner(folder, repetition_penalty=1.5)(clips))
    assert own != texts_of(tiny_captioner(folder, repetition_penalty=1.0)(clips))
    captioner = tiny_captioner(folder)
    assert own == {k: v for clip in clips for k, v in texts_of(captioner([clip])).items()}


# Recorded values


def test_what_is_recorded(llava: Path) -> None:
    clips = mixed_clips(4)
    answer = Transformers(model=str(llava), max_tokens=TOKENS)(clips[:1])[0]
    assert isinstance(answer, Caption)
    assert (answer.captioner, answer.kind, answer.prompt_version) == ("transformers", "long", "detailed-1")
    assert (answer.model, answer.revision) == (str(llava), None)
    short = tiny_captioner(llava, prompt="short")(clips[:1])[0]
    assert isinstance(short, Caption)
    assert (short.kind, short.prompt_version) == ("short", PROMPTS["short"].version)
    assert short.text != answer.text
    own = tiny_captioner(llava)(clips[1:2])[0]
    assert isinstance(own, Caption)
    assert own.prompt_version is not None
    assert own.prompt_version.startswith("custom-")
    structured = tiny_captioner(llava, prompt="structured")(clips[:1])[0]
    assert isinstance(structured, CaptionFailed)  # random weights write no JSON
    assert structured.error == "BrokenAnswer"


def test_truncated(llava: Path) -> None:
    """A text is truncated only at the limit of tokens. With a higher limit the text has the same start."""
    clips = mixed_clips(16)
    short = {a.clip_id: a for a in tiny_captioner(llava, max_tokens=8)(clips) if isinstance(a, Caption)}
    long = {a.clip_id: a for a in tiny_captioner(llava, max_tokens=200)(clips) if isinstance(a, Caption)}
    assert 0 < sum(a.truncated for a in short.values()) < 16
    assert not any(a.truncated for a in long.values())
    for clip_id, answer in short.items():
        if answer.truncated:
            assert len(long[clip_id].text) > len(answer.text)
            assert long[clip_id].text.startswith(answer.text.rstrip("�"))
        else:
            assert long[clip_id].text == answer.text


def test_the_settings_decide_the_pictures() -> None:
    assert Transformers(frames=5, side=300).pictures == Pictures(5, None, 300)


def test_key(llava: Path, tmp_path: Path) -> None:
    """The key changes with settings that decide the text, and with nothing else."""
    base = tiny_captioner(llava)
    assert base.key == tiny_captioner(llava).key
    assert tiny_captioner(llava, prompt="short").key.startswith("transformers-1-short-1-")
    same: list[dict[str, Any]] = [{"batch_clips": 3}, {"dtype": "bfloat16"}, {"attention": "eager"}]
    assert {tiny_captioner(llava, **change).key for change in same} == {base.key}
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
    assert len({base.key, *(tiny_captioner(llava, **change).key for change in others)}) == len(others) + 1
    # The contents of a folder count, not its path. For a hub model the name and revision count.
    moved = tiny_vlm.edited(llava, tmp_path / "a", "generation_config.json")
    (moved / "generation_config.json").write_bytes((llava / "generation_config.json").read_bytes())
    assert tiny_captioner(moved).key == base.key
    assert tiny_captioner(tiny_vlm.edited(llava, tmp_path / "b", "config.json", x=1)).key != base.key
    assert Transformers(model="a/b").key != Transformers(model="a/b", revision="v2").key


def test_a_pickled_captioner_has_no_model(llava: Path) -> None:
    captioner = tiny_captioner(llava)
    clips = mixed_clips(2)
    said = captioner(clips)
    data = pickle.dumps(captioner)
    assert len(data) < 1000
    assert pickle.loads(data) == captioner
    assert pickle.loads(data)(clips) == said


def test_a_second_try_shares_the_model(llava: Path) -> None:
    captioner = tiny_captioner(llava)
    before = captioner.again()
    clips = mixed_clips(8)
    first = texts_of(captioner(clips))
    for again in (before, captioner.again()):
        assert (again.seed, again.temperature) == (1, 0.7)
        assert again._load() is captioner._load()
        assert texts_of(again(clips)) != first
    warm = tiny_captioner(llava, temperature=0.9, seed=5).again()
    assert (warm.seed, warm.temperature) == (6, 0.9)


# Memory and bad clips


def _limited(captioner: Transformers, most: int) -> list[int]:
    """Simulate a device with memory for `most` clips. Returns the sizes of the tried batches."""
    model = captioner._load().generator.model
    generate, tried = model.generate, []
    refused: list[weakref.ref[torch.Tensor]] = []

    def limited(**inputs: Any) -> Any:
        assert all(inputs() is None for inputs in refused)  # otherwise they would still fill the memory
        tried.append(len(inputs["input_ids"]))
        if tried[-1] > most:
            refused.append(weakref.ref(inputs["input_ids"]))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return generate(**inputs)

    model.generate = limited
    return tried


@pytest.mark.parametrize("most", [3, 1])
def test_out_of_memory(llava: Path, most: int, caplog: pytest.LogCaptureFixture) -> None:
    clips = [clip for clip in mixed_clips(32) if not clip.is_image and len(clip.pictures) == 8][:16]
    expected = texts_of(tiny_captioner(llava)(clips))
    captioner = tiny_captioner(llava, batch_clips=8)
    tried = _limited(captioner, most)
    assert texts_of(captioner(clips)) == expected
    fits = 2 if most == 3 else 1
    halvings = [8, 4, 2, 1][: 3 if most == 3 else 4]
    assert tried == [*halvings, *[fits] * (16 // fits - 1)]
    assert f"trying {fits}" in caplog.text


def test_memory_is_too_small_for_one_clip(llava: Path) -> None:
    captioner = tiny_captioner(llava, batch_clips=4)
    tried = _limited(captioner, 0)
    clips = mixed_clips(32)[:3]
    answers = captioner(clips)
    assert {a.clip_id for a in answers} == {clip.clip_id for clip in clips}
    assert all(isinstance(a, CaptionFailed) and a.error == "OutOfMemoryError" for a in answers)
    assert len(tried) <= 6  # the number of attempts is limited


def test_batches_grow_again(llava: Path) -> None:
    """One long clip does not slow down all later clips."""
    captioner = tiny_captioner(llava, batch_clips=4, max_tokens=1)
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
    """On a CPU torch raises another error than OutOfMemoryError."""
    captioner = tiny_captioner(llava, batch_clips=2)
    model = captioner._load().generator.model
    generate = model.generate

    def hungry(**inputs: Any) -> Any:
        if len(inputs["input_ids"]) > 1:
            torch.empty(1 << 60, dtype=torch.uint8)
        return generate(**inputs)

    model.generate = hungry
    clips = mixed_clips(3)
    assert texts_of(captioner(clips)) == texts_of(tiny_captioner(llava)(clips))


def test_a_lost_device_ends_the_worker(llava: Path) -> None:
    """After such an error the process cannot continue, and no clip is the cause."""
    if not hasattr(torch, "AcceleratorError"):
        pytest.skip("this torch has no name for it")
    captioner = tiny_captioner(llava)

    def lost(**inputs: Any) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    captioner._load().generator.model.generate = lost
    with pytest.raises(torch.AcceleratorError):
        captioner(mixed_clips(2))


def test_a_bad_clip_fails_alone(loaded: Callable[[str], Transformers]) -> None:
    captioner = loaded("qwen2_5_vl")
    clips = [tiny_vlm.clip(f"{k}", k, (112, 168)) for k in range(4)]
    flat = tiny_vlm.clip("flat", 5, (2, 900))  # no model accepts this aspect ratio
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
    assert tiny_captioner(llava)([]) == []


def test_read_only_pictures_and_a_video_of_one(llava: Path) -> None:
    """Pictures from Arrow arrays, a video that is too short for two pictures, and a video without times."""
    clips = [tiny_vlm.clip("one", 1, (60, 80), count=1), tiny_vlm.clip("image", 1, (60, 80), seconds=0)]
    clips += [dataclasses.replace(tiny_vlm.clip("timeless", 2, (60, 80)), times_s=(), end_s=1.0)]
    for clip in clips:
        for picture in clip.pictures:
            picture.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        texts = texts_of(tiny_captioner(llava)(clips))
    assert texts["one"] == texts["image"] != texts["timeless"]


def test_pictures_where_videos_are_not_taken(llava: Path, tmp_path: Path) -> None:
    """If the template does not support videos, a clip becomes several pictures."""
    folder = tiny_vlm.edited(llava, tmp_path / "m", "config.json")
    (folder / "chat_template.jinja").write_text(tiny_vlm.template(video=""))
    captioner = tiny_captioner(folder)
    clips = mixed_clips(16)
    together = captioner(clips)
    assert not captioner._load().videos
    assert len(set(texts_of(together).values())) >= 14
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
    captioner = tiny_captioner(llava, dtype=dtype, attention=attention)
    model = captioner._load().generator.model
    assert model.dtype == expected
    assert model.config._attn_implementation == attention
    assert model.config.text_config._attn_implementation == attention
    assert len(texts_of(captioner(mixed_clips(4)))) == 4


def test_only_pixels_get_half_precision(llava: Path) -> None:
    generator = tiny_captioner(llava, dtype="bfloat16")._load().generator
    numbers = torch.tensor([0.7321])
    assert generator._moved("pixel_values_videos", numbers).dtype == torch.bfloat16
    assert generator._moved("second_per_grid_ts", numbers).dtype == torch.float32


def test_the_text_starts_with_one_start_token(llava: Path, tmp_path: Path) -> None:
    """In Llama's families both the tokenizer and the template add the start token. Only one may do so."""
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
        inputs = tiny_captioner(folder)._load().inputs(mixed_clips(1))
        assert int((inputs["input_ids"] == words.bos_token_id).sum()) == 1


def test_attention_changes_no_text(llava: Path) -> None:
    clips = mixed_clips(16)
    assert texts_of(tiny_captioner(llava, attention="eager")(clips)) == texts_of(tiny_captioner(llava)(clips))


def test_auto_precision_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from captioning.local.generate import precision

    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert precision("auto", gpu) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert precision("auto", gpu) == torch.float16
    assert precision("float32", gpu) == torch.float32


def test_import_is_quick() -> None:
    """Packages that take seconds to import are imported only when needed. No time is measured."""
    code = (
        "import sys, captioning.local.vlm as v, captioning.local.lm; v.Transformers().key; "
        "print(sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
