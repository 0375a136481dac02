"""The checks of a caption as columns of the table."""

from __future__ import annotations

from typing import cast

import numpy as np

from captioning.base import Caption, Captioner
from captioning.checks.measures import measure, similarity
from captioning.prompts import Prompt, prompt_of, rewrite_of
from curation.config.schema import Config
from curation.store.rows import CaptionChecks
from curation.store.schema import CAPTION_COLUMNS
from filters import EMBEDDER
from filters.aesthetics import find_encoder, load_encoder
from filters.base import Column

_MEANINGS = (
    Column(
        "caption.refusal", "0 or 1", (0, 1), "1: the model refuses or excuses itself instead of describing"
    ),
    Column("caption.echo", "share", (0, 1), "of the caption that repeats its prompt"),
    Column("caption.boilerplate", "0 or 1", (0, 1), "1: it begins by speaking of the video or of itself"),
    Column(
        "caption.truncated", "0 or 1", (0, 1), "1: it ran into the limit of tokens, or ends in mid-sentence"
    ),
    Column("caption.repetition", "share", (0, 1), "of the caption that is a repetition of itself"),
    Column("caption.language", "share", (0, 1), "of the caption that is in the language asked for"),
    Column("caption.words", "words", (0, 1000), "its length"),
    Column("caption.similarity", "cosine", (-1, 1), "of its CLIP embedding with that of the clip"),
)
COLUMNS = {column.name: column for column in _MEANINGS}
assert tuple(COLUMNS) == CAPTION_COLUMNS


class Checker:
    """Checks the captions of one captioner.

    A caption is also compared with the embedding of its clip, if that embedding exists.
    """

    def __init__(self, config: Config, captioner: Captioner):
        self._language = config.captions.language
        self._prompt = _prompt_of(captioner)
        scorer = config.scorers.get(EMBEDDER)
        self._compares = "caption.similarity" in config.rules and scorer is not None
        self._scorer = scorer

    def __call__(self, caption: Caption, embedding: np.ndarray | None) -> CaptionChecks:
        """The columns `caption.*` with their values. embedding: of the clip; None: no comparison."""
        found = measure(
            caption.text,
            kind=caption.kind,
            prompt=self._prompt,
            truncated=caption.truncated,
            wanted=self._language or "en",
        )
        if self._language is None:
            del found["language"]
        found |= caption.checks
        if self._compares and embedding is not None:
            found["similarity"] = similarity(self._embed(caption.text), embedding)
        return cast(CaptionChecks, {f"caption.{name}": float(value) for name, value in found.items()})

    def _embed(self, text: str) -> np.ndarray:
        """The embedding of a text, (dimensions,) float32.

        The text tower belongs to the model whose image tower made the clip's embedding. The tower reads only
        the first tokens of a long caption (77 for CLIP).
        """
        import open_clip
        import torch

        scorer = self._scorer
        assert scorer is not None
        device = scorer.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        net, _ = load_encoder(scorer.model, scorer.pretrained, scorer.precision, device)
        tokenizer = open_clip.get_tokenizer(find_encoder(scorer.model, scorer.pretrained).name)
        with torch.inference_mode():
            made: np.ndarray = net.encode_text(tokenizer([text]).to(device)).float().cpu().numpy()[0]
        return made


def _prompt_of(captioner: Captioner) -> Prompt | str:
    """The captioner's prompt, or "" if there is none. A check compares captions with the prompt."""
    setting = getattr(captioner, "prompt", "")
    for known in (prompt_of, rewrite_of):
        try:
            return known(setting) if setting else ""
        except ValueError:
            continue
    return ""
