"""Tiny checkpoints, made once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from captioning.local.vlm import Transformers
from tests.captioning import tiny_vlm
from tests.captioning.tiny_vlm import tiny_captioner


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model of a family. The first call makes the folder."""

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
    """A captioner that all tests of a family share. Tests must not change it."""

    @cache
    def made(family: str) -> Transformers:
        return tiny_captioner(checkpoint(family))

    return made


@pytest.fixture
def llava(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("llava_onevision")
