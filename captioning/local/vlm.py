"""`transformers`: captions by any checkpoint of transformers that turns pictures or videos into text.

The Auto classes load the checkpoint with its own processor and chat template. Models that take videos get a
clip as a video with the times of its frames. Other models get a clip as several pictures.

Tested with the architectures of Qwen2.5-VL and Qwen3-VL, SmolVLM2, LLaVA-OneVision, LLaVA-NeXT-Video and
InternVL (the checkpoints whose names end in -hf).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from captioning.base import Caption, CaptionerMissing, CaptionFailed, CaptionRequest, Pictures
from captioning.local.source import Source, first_line, identity, locate
from captioning.prompts import Prompt, prompt_of

if TYPE_CHECKING:
    from captioning.local.generate import Generator, Said

_SETTING = "captions.transformers"
_TICKS = 1000  # frames per second of a nominal video: processors take the times of pictures as frame numbers
_RETRY_TEMPERATURE = 0.7


@dataclass(frozen=True)
class Transformers:
    """Captions by a model of transformers, one for each clip that has pictures.

    At `temperature` 0 decoding is greedy: a clip gets the same text in any batch. The first call loads the
    model. A pickled captioner does not contain the model. Raises `ValueError` for wrong settings.
    """

    model: str = "Qwen/Qwen2.5-VL-7B-Instruct"  # a model on the hub, or a folder
    revision: str | None = None  # branch, tag or commit on the hub
    prompt: str = "detailed"  # the name of a prompt, or the text of one
    frames: int = 8  # pictures per clip, at equal distances in time
    side: int = 448  # pixels of the longer side of a picture
    max_tokens: int = 512  # per caption
    batch_clips: int = 8  # clips per batch; halved while memory is not sufficient
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"  # auto: half on a GPU, float32 on a CPU
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    temperature: float = 0.0  # above 0: tokens are drawn; the draws depend on seed and clip
    seed: int = 0
    repetition_penalty: float | None = None  # null: the recommendation of the model's authors

    name: ClassVar[str] = "transformers"

    def __post_init__(self) -> None:
        for key in ("frames", "side", "max_tokens", "batch_clips"):
            if getattr(self, key) < 1:
                raise ValueError(f"{_SETTING}.{key}: must be at least 1, not {getattr(self, key)}")
        if not self.temperature >= 0:
            raise ValueError(f"{_SETTING}.temperature: must be at least 0, not {self.temperature}")
        if self.repetition_penalty is not None and not self.repetition_penalty > 0:
            raise ValueError(
                f"{_SETTING}.repetition_penalty: must be above 0, or null, not {self.repetition_penalty}"
            )
        if not self.model.strip():
            raise ValueError(f"{_SETTING}.model: is empty; name a folder or a model on the hub")
        self._prompt  # noqa: B018  # raises for an unknown prompt

    @property
    def pictures(self) -> Pictures:
        return Pictures(self.frames, None, self.side)

    @cached_property
    def key(self) -> str:
        """A hash of the settings that decide the text. Batch, precision and attention are no part of the key,
        because they only change rounding."""
        deciding = [
            identity(self.model, self.revision),
            self._prompt.text,
            [self.frames, self.side, self.max_tokens],
            [self.temperature, self.seed, self.repetition_penalty],
        ]
        digest = hashlib.blake2b(json.dumps(deciding).encode(), digest_size=8).hexdigest()
        return f"transformers-1-{self._prompt.version}-{digest}"

    def check(self) -> None:
        """Check the model's files and the headers of its weights. Raises `CaptionerMissing`."""
        source = locate(self.model, self.revision, _SETTING)
        _check_family(source)
        if self.attention == "flash_attention_2" and not (find_spec("flash_attn") or find_spec("kernels")):
            raise CaptionerMissing(
                f"{_SETTING}.attention: flash_attention_2 needs `pip install flash-attn`; or set sdpa"
            )
        _processor(source)

    def again(self) -> Transformers:
        """A copy for a second try with another seed and a temperature above 0. It shares the loaded model."""
        warm = max(self.temperature, _RETRY_TEMPERATURE)
        other = dataclasses.replace(self, seed=self.seed + 1, temperature=warm)
        other.__dict__["_held"] = self._held
        return other

    def __call__(self, clips: Sequence[CaptionRequest]) -> list[Caption | CaptionFailed]:
        """A caption or a failure for each clip. Raises `CaptionerMissing` if the model cannot be loaded."""
        from captioning.local.generate import Decoding, Unsaid

        answers: list[Caption | CaptionFailed] = []
        decoding = Decoding(self.max_tokens, self.temperature, self.seed, self.repetition_penalty)
        loaded = self._load()
        for asked in _alike(clips, loaded.videos):
            if not asked[0].pictures:
                answers += [
                    CaptionFailed(clip.clip_id, "NoPictures", "no picture was decoded") for clip in asked
                ]
                continue
            said = loaded.generator(asked, [clip.clip_id for clip in asked], loaded.inputs, decoding)
            for clip, answer in zip(asked, said, strict=True):
                if isinstance(answer, Unsaid):
                    answers.append(CaptionFailed(clip.clip_id, answer.error, answer.message))
                else:
                    answers.append(self._caption(clip.clip_id, answer, loaded.revision))
        return answers

    def _caption(self, clip_id: str, said: Said, revision: str | None) -> Caption | CaptionFailed:
        asked = self._prompt
        try:
            text = asked.read(said.text)
        except ValueError as error:
            limit = f"; the answer reached max_tokens={self.max_tokens}" if said.truncated else ""
            return CaptionFailed(clip_id, "BrokenAnswer" if said.text else "EmptyAnswer", f"{error}{limit}")
        return Caption(
            clip_id, self.name, asked.kind, text, self.model, revision, asked.version, said.truncated
        )

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @cached_property
    def _prompt(self) -> Prompt:
        return prompt_of(self.prompt)

    @cached_property
    def _held(self) -> list[_Loaded]:
        """The loaded model, or an empty list. Copies for second tries share the list."""
        return []

    def _load(self) -> _Loaded:
        if not self._held:
            self._held.append(_Loaded(self, self._prompt.text))
        return self._held[0]


def _check_family(source: Source) -> None:
    kind = source.config["model_type"]
    if kind == "smolvlm" and find_spec("num2words") is None:
        raise CaptionerMissing(
            f"{_SETTING}.model: the processor of {source.name} (a SmolVLM) needs `pip install num2words`"
        )
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as FAMILIES

    if kind not in FAMILIES:
        raise CaptionerMissing(
            f"{_SETTING}.model: {source.name} has the type {kind}, which transformers does not load as a "
            "vision-language model; name a model such as Qwen/Qwen2.5-VL-7B-Instruct, or an InternVL whose "
            "name ends in -hf"
        )


def _processor(source: Source) -> Any:
    """The model's processor, which has a chat template. Raises `CaptionerMissing`."""
    from transformers import AutoProcessor

    from captioning.local import generate

    try:
        made: Any = AutoProcessor.from_pretrained(
            source.name,
            revision=source.revision,
            trust_remote_code=False,  # else transformers asks, on the terminal
        )
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        # The message of transformers would mislead: it speaks of the hub and of folders with a model's name.
        lacking = re.search(r"Can't load .* containing an? (\w+\.json)", first_line(error))
        if lacking is None:
            raise generate.unloadable(error, source, _SETTING, "eager") from error
        raise CaptionerMissing(
            f"{_SETTING}.model: {source.name} lacks its processor ({lacking[1]}, or processor_config.json); "
            "name a complete folder, as `hf download` or `save_pretrained` of the processor writes it"
        ) from error
    template = getattr(made, "chat_template", None) or getattr(
        getattr(made, "tokenizer", None), "chat_template", None
    )
    if not hasattr(made, "tokenizer") or not template:
        raise CaptionerMissing(
            f"{_SETTING}.model: {source.name} has no chat template (chat_template.jinja, or chat_template in "
            "its tokenizer_config.json); name an instruction-tuned checkpoint"
        )
    return made


def _alike(clips: Sequence[CaptionRequest], videos: bool) -> list[list[CaptionRequest]]:
    """Groups of clips that may share a batch, sorted by the shape of their pictures.

    The clips of a group have the same kind and number of pictures, because processors stack their inputs and
    some chat templates differ for videos.
    """
    groups: dict[tuple[bool, int], list[CaptionRequest]] = defaultdict(list)
    for clip in clips:
        groups[_as_video(clip, videos), len(clip.pictures)].append(clip)
    for group in groups.values():
        group.sort(key=lambda clip: (clip.pictures[0].shape if clip.pictures else (), clip.clip_id))
    return [groups[key] for key in sorted(groups)]


def _as_video(clip: CaptionRequest, videos: bool) -> bool:
    # Some processors refuse a video of one picture.
    return videos and not clip.is_image and len(clip.pictures) > 1


class _Loaded:
    """A loaded checkpoint with one prompt."""

    def __init__(self, settings: Transformers, text: str):
        from transformers import AutoModelForImageTextToText

        from captioning.local import generate

        source = locate(settings.model, settings.revision, _SETTING)
        _check_family(source)
        self._processor = _processor(source)
        model = generate.load(
            AutoModelForImageTextToText,
            source,
            _SETTING,
            settings.dtype,
            settings.attention,
            generate.best_device(),
        )
        self.revision = source.revision
        self.generator: Generator = generate.Generator(model, self._processor.tokenizer, settings.batch_clips)
        self._text = text
        # A processor may take videos although its chat template ignores them.
        self.videos = getattr(self._processor, "video_processor", None) is not None and (
            self._asked("video", 1) != self._asked("video", 0)
        )

    def _asked(self, kind: str, count: int) -> str:
        content = [{"type": kind}] * count + [{"type": "text", "text": self._text}]
        asked: str = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return asked

    def inputs(self, clips: Sequence[CaptionRequest]) -> Mapping[str, Any]:
        """The model's inputs for the clips of one group (see `_alike`), padded on the left."""
        video = _as_video(clips[0], self.videos)
        text = self._asked("video", 1) if video else self._asked("image", len(clips[0].pictures))
        start = self._processor.tokenizer.bos_token
        looked: dict[str, Any] = {"input_data_format": "channels_last", "device": str(self.generator.device)}
        texts = {
            "padding": True,
            "padding_side": "left",
            "add_special_tokens": not (start and text.startswith(start)),
        }
        seen = [np.stack(clip.pictures) for clip in clips]  # copies, because torch takes no read-only arrays
        if video:
            looked |= {"do_sample_frames": False, "video_metadata": [_times(clip) for clip in clips]}
            given = {"videos": seen, "videos_kwargs": looked}
        else:
            given = {"images": [list(pictures) for pictures in seen], "images_kwargs": looked}
        made: Mapping[str, Any] = self._processor(
            text=[text] * len(clips), text_kwargs=texts, common_kwargs={"return_tensors": "pt"}, **given
        )
        return made


def _times(clip: CaptionRequest) -> dict[str, Any]:
    """The times of the pictures for a processor: frame numbers of a video with `_TICKS` frames per second."""
    count = len(clip.pictures)
    duration = clip.end_s - clip.start_s
    if not duration > 0:
        duration = float(count)
    times = (
        clip.times_s if len(clip.times_s) == count else [(k + 0.5) * duration / count for k in range(count)]
    )
    height, width, _ = clip.pictures[0].shape
    return {
        "total_num_frames": max(round(duration * _TICKS), 1),
        "fps": float(_TICKS),
        "duration": duration,
        "frames_indices": [round(time * _TICKS) for time in times],
        "height": height,
        "width": width,
    }
