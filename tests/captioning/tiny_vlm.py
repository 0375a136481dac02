"""Tiny checkpoints of the model families in the documents, with random weights, saved by `save_pretrained`.

The random weights are large. With small weights only the embedding of the last token would decide, and all
pictures would give the same text. Tokenizers are made here, except Qwen's tokenizer if its file exists.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from captioning.base import Caption, CaptionFailed, CaptionRequest
from captioning.local.vlm import Transformers

QWEN_PROCESSOR = Path(__file__).parents[3] / "shared" / "data" / "qwen2_5_vl_processor"
PATCH, SIDE = 14, 28  # pixels, of the vision towers in this module
END_EVERY = 24
SIZES = [(112, 168), (168, 112), (112, 112), (84, 196), (60, 240)]  # height and width of the clips
TOKENS = 16
ASKED = "Say what is seen."  # with few tokens the pictures influence the text more
# fmt: off
_WORDS = [
    "a", "the", "red", "blue", "green", "old", "young", "big", "small", "fox", "dog", "bird", "boat", "car",
    "house", "tree", "street", "river", "hill", "window", "runs", "sleeps", "turns", "falls", "opens",
    "shines", "left", "right", "slowly", "fast", "above", "below", "near", "far", "light", "dark", "warm",
]
_SPECIAL = [
    "<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<image>", "<video>", "<img>", "</img>",
    "<ctx>", "<global-img>", "<fake_token_around_image>", "<end_of_utterance>", "<row_1_col_1>",
]
# fmt: on
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE"
    "{% elif c['type'] == 'video' %}VIDEO{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def template(image: str = "<image>", video: str = "<video>") -> str:
    return _TEMPLATE.replace("IMAGE", image).replace("VIDEO", video)


def tokenizer(pieces: Sequence[str] = (), **extra: str) -> Any:
    """A tokenizer with bytes, so that every text has tokens; words, so that answers can be read; and
    `pieces`, each a single token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [f"Ġ{first}{second}" for first in _WORDS for second in _WORDS]
    whole = [piece.replace(" ", "Ġ") for piece in pieces]
    entries = [*_SPECIAL, *alphabet, *whole, *(f"Ġ{word}" for word in _WORDS), *pairs]
    made = Tokenizer(models.BPE({entry: k for k, entry in enumerate(entries)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in _SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="<|im_end|>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=extra,
    )


def language(vocabulary: int, **other: Any) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,
        **other,
    }


def save(kind: Any, config: Any, processor: Any, folder: Path, eos: int, pad: int, seed: int = 0) -> Path:
    """A checkpoint of the model class `kind` with random weights from `seed`.

    One token in `END_EVERY` ends an answer, so that the rows of a batch end at different steps.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config).eval()
    vocabulary = config.get_text_config().vocab_size
    model.generation_config.eos_token_id = [eos, *range(vocabulary // 2, vocabulary, END_EVERY // 2)]
    model.generation_config.pad_token_id = pad
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def qwen2_5_vl(folder: Path) -> Path:
    """A checkpoint with the real tokenizer, picture settings and chat template.

    The real files name the processor of Qwen2-VL, which ignores the seconds between pictures. The hub's
    checkpoints name the processor of Qwen2.5-VL.
    """
    from transformers import (
        AutoProcessor,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
    )

    real = AutoProcessor.from_pretrained(QWEN_PROCESSOR)
    processor = Qwen2_5_VLProcessor(
        real.image_processor, real.tokenizer, real.video_processor, chat_template=real.chat_template
    )
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}
    config = Qwen2_5_VLConfig(
        text_config=language(151936, rope_parameters=rope),
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 4,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
            "window_size": 56,
            "tokens_per_second": 2,
            "initializer_range": 0.2,
        },
        tie_word_embeddings=False,
    )
    return save(Qwen2_5_VLForConditionalGeneration, config, processor, folder, 151645, 151643)


def qwen3_vl(folder: Path) -> Path:
    from transformers import (
        AutoProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    real = AutoProcessor.from_pretrained(QWEN_PROCESSOR)
    size = {"shortest_edge": 32**2, "longest_edge": 512**2}
    images = real.image_processor.__class__(patch_size=16, size=size)
    processor = Qwen3VLProcessor(
        images, real.tokenizer, Qwen3VLVideoProcessor(), chat_template=real.chat_template
    )
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6, "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config=language(151936, rope_parameters=rope),
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 4,
            "out_hidden_size": 64,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
            "initializer_range": 0.2,
        },
        tie_word_embeddings=False,
    )
    return save(Qwen3VLForConditionalGeneration, config, processor, folder, 151645, 151643)


def _tower(kind: str) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": PATCH,
        "initializer_range": 0.2,
        "initializer_factor": 1.0,
    }


_GRID = [[SIDE, SIDE], [SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]


def llava_onevision(folder: Path) -> Path:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    words = tokenizer()
    size = {"height": SIDE, "width": SIDE}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=_GRID),
        words,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=template(),
    )
    config = LlavaOnevisionConfig(
        vision_config={**_tower("siglip_vision_model"), "vision_use_head": False},
        text_config={"model_type": "qwen2", **language(len(words))},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=_GRID,
    )
    return save(
        LlavaOnevisionForConditionalGeneration,
        config,
        processor,
        folder,
        words.eos_token_id,
        words.pad_token_id,
    )


def llava_next_video(folder: Path) -> Path:
    from transformers import (
        LlavaNextImageProcessor,
        LlavaNextVideoConfig,
        LlavaNextVideoForConditionalGeneration,
        LlavaNextVideoProcessor,
        LlavaNextVideoVideoProcessor,
    )

    words = tokenizer()
    size = {"height": SIDE, "width": SIDE}
    processor = LlavaNextVideoProcessor(
        LlavaNextVideoVideoProcessor(size=size, crop_size=size, do_center_crop=True),
        LlavaNextImageProcessor(
            size={"shortest_edge": SIDE}, crop_size=size, image_grid_pinpoints=_GRID, do_center_crop=True
        ),
        words,
        chat_template=template(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    config = LlavaNextVideoConfig(
        vision_config={**_tower("clip_vision_model"), "projection_dim": 32},
        text_config={"model_type": "llama", **language(len(words))},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=_GRID,
        image_seq_length=(SIDE // PATCH) ** 2,
    )
    return save(
        LlavaNextVideoForConditionalGeneration,
        config,
        processor,
        folder,
        words.eos_token_id,
        words.pad_token_id,
    )


def internvl(folder: Path) -> Path:
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    words = tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<ctx>",
        video_token="<video>",
    )
    size = {"height": SIDE, "width": SIDE}
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4),
        words,
        InternVLVideoProcessor(size=size),
        image_seq_length=1,
        chat_template=template(image="<ctx>"),
    )
    vision = {**_tower("internvl_vision"), "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]}
    del vision["initializer_factor"]
    config = InternVLConfig(
        vision_config=vision,
        text_config={"model_type": "qwen2", **language(len(words))},
        image_token_id=words.convert_tokens_to_ids("<ctx>"),
        image_seq_length=1,
    )
    return save(
        InternVLForConditionalGeneration, config, processor, folder, words.eos_token_id, words.pad_token_id
    )


def smolvlm(folder: Path) -> Path:
    """A checkpoint whose processor needs the package num2words."""
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    words = tokenizer(
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
    )
    edge = {"longest_edge": SIDE}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(size={"longest_edge": 2 * SIDE}, max_image_size=edge),
        words,
        SmolVLMVideoProcessor(size=edge, max_image_size=edge),
        image_seq_len=1,
        chat_template=template(),
    )
    vision = _tower("smolvlm_vision")
    del vision["initializer_factor"]
    config = SmolVLMConfig(
        vision_config=vision,
        text_config={"model_type": "llama", **language(len(words))},
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    return save(
        SmolVLMForConditionalGeneration,
        config,
        processor,
        folder,
        words.convert_tokens_to_ids("<end_of_utterance>"),
        words.pad_token_id,
    )


def qwen2(folder: Path) -> Path:
    """A language model with a chat template and without vision."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    words = tokenizer()
    words.chat_template = template()
    config = Qwen2Config(**language(len(words)))
    return save(Qwen2ForCausalLM, config, words, folder, words.eos_token_id, words.pad_token_id)


def rewriter(folder: Path) -> Path:
    """Like `qwen2`, but answers are JSON objects of the form that rewriting asks for, with random words.

    Some texts break a rule or do not end."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    opening, closing = '{"rewritten description": "', '."}'
    words = tokenizer([opening, closing])
    words.chat_template = template()
    config = Qwen2Config(**language(len(words)))
    save(Qwen2ForCausalLM, config, words, folder, words.eos_token_id, words.pad_token_id)
    model = Qwen2ForCausalLM.from_pretrained(folder)
    ends = model.generation_config.eos_token_id
    opened, closed = (words.convert_tokens_to_ids(piece.replace(" ", "Ġ")) for piece in (opening, closing))
    newline = words.convert_tokens_to_ids("Ċ")  # the last token of the question
    follows = [([newline], opened), (ends[1:], closed), ([closed], ends[0])]
    with torch.no_grad():
        for direction, (tokens, following) in enumerate(follows):
            # The embedding is so long that the layers cannot turn it, so the wanted token follows.
            model.model.embed_tokens.weight[tokens] = 0.0
            model.model.embed_tokens.weight[tokens, direction] = 500.0
            model.lm_head.weight[following] = 0.0
            model.lm_head.weight[following, direction] = 2.0
    model.generation_config.eos_token_id = ends[0]
    model.save_pretrained(folder)
    return folder


FAMILIES = {
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "llava_onevision": llava_onevision,
    "llava_next_video": llava_next_video,
    "internvl": internvl,
    "smolvlm": smolvlm,
}


def pictures(seed: int, count: int, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Blocks of colour that differ between pictures, so that reduced pictures differ, too."""
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        blocks = draw.integers(0, 256, (2, 3, 3), dtype=np.uint8)
        rows, columns = np.arange(height) * 2 // height, np.arange(width) * 3 // width
        made.append(blocks[rows[:, None], columns[None]])
    return tuple(made)


def clip(
    clip_id: str, seed: int, size: tuple[int, int], count: int = 8, seconds: float = 4.0
) -> CaptionRequest:
    """A clip of `count` pictures. `size` is height and width in pixels; `seconds` 0 makes an image."""
    still = seconds == 0
    count = 1 if still else count
    return CaptionRequest(
        clip_id,
        "film.mp4",
        1.0,
        1.0 + seconds,
        is_image=still,
        pictures=pictures(seed, count, *size),
        times_s=tuple((k + 0.5) * seconds / count for k in range(count)),
    )


def tiny_captioner(folder: Path, **settings: Any) -> Transformers:
    return Transformers(model=str(folder), **{"max_tokens": TOKENS, "prompt": ASKED, **settings})


def mixed_clips(count: int = 32) -> list[CaptionRequest]:
    """Videos of five shapes, two lengths and two numbers of pictures; every fourth clip is an image."""
    return [
        clip(
            f"clip-{k:02}",
            k,
            SIZES[k % 5],
            count=8 if k % 3 else 6,
            seconds=0 if k % 4 == 3 else 2.0 + 3 * (k % 2),
        )
        for k in range(count)
    ]


def texts_of(answers: Sequence[Caption | CaptionFailed]) -> dict[str, str]:
    """The text of each clip. With random weights some answers end at their first token."""
    failed = [a for a in answers if isinstance(a, CaptionFailed)]
    assert {a.error for a in failed} <= {"EmptyAnswer"}
    return {a.clip_id: a.text if isinstance(a, Caption) else "" for a in answers}


def edited(folder: Path, to: Path, name: str, **changes: Any) -> Path:
    """A copy of a checkpoint with other values in one of its JSON files. None removes a key."""
    shutil.copytree(folder, to)
    file = to / name
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return to
