"""What of a dataset's own configuration counts only where this user said so, and what it is noted in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from curation.config import said
from curation.config.load import load_config
from curation.config.schema import Config, ConfigError
from tests.conftest import CHEAP

URL = "http://stranger.example/v1"


@pytest.fixture(autouse=True)
def _a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))


def data(*overrides: str) -> dict[str, Any]:
    return load_config(CHEAP, overrides).model_dump(mode="json")


ENDPOINT = ["captions.captioner=endpoint", f"captions.endpoint={{url: '{URL}', model: m}}"]
AESTHETICS = ["filters.aesthetics={}"]
WANTED: list[tuple[list[str], dict[str, str]]] = [
    ([], {}),
    (["captions.captioner=transformers"], {}),
    (AESTHETICS, {}),
    (
        [*AESTHETICS, "filters.aesthetics.model=ViT-B-32", "filters.aesthetics.pretrained=laion2b_s34b_b79k"],
        {},
    ),
    (ENDPOINT, {"captions.endpoint.url": URL}),
    (
        [*ENDPOINT, "captions.endpoint.api_key_env=AWS_SECRET_ACCESS_KEY"],
        {"captions.endpoint.url": URL, "captions.endpoint.api_key_env": "AWS_SECRET_ACCESS_KEY"},
    ),
    (
        ["captions.captioner=transformers", "captions.transformers.model=/tmp/theirs"],
        {"captions.transformers.model": "/tmp/theirs"},
    ),
    (
        ["captions.captioner=transformers", "captions.transformers.revision=refs/pr/1"],
        {"captions.transformers.revision": "refs/pr/1"},
    ),
    (
        [f"captions.rewrite={{by: endpoint, model: m, url: '{URL}', api_key_env: MY_TOKEN}}"],
        {"captions.rewrite.url": URL, "captions.rewrite.api_key_env": "MY_TOKEN"},
    ),
    (["captions.rewrite={by: transformers, model: them/theirs}"], {"captions.rewrite.model": "them/theirs"}),
    *(
        ([*AESTHETICS, f"filters.aesthetics.{key}={value}"], {f"filters.aesthetics.{key}": value})
        for key, value in [
            ("model", "hf-hub:them/theirs"),
            ("model", "local-dir:/tmp/theirs"),
            ("pretrained", "/tmp/theirs.bin"),
            ("pretrained", "theirs.pt"),
            ("head", "~/theirs.pth"),
        ]
    ),
    (["filters.text={models: /tmp/theirs}"], {"filters.text.models": "/tmp/theirs"}),
]


@pytest.mark.parametrize(("overrides", "wanted"), WANTED)
def test_what_reaches_out_is_named_and_refused_unless_the_user_says_the_same(
    overrides: list[str], wanted: dict[str, str]
) -> None:
    config = said.of_dataset(data(*overrides), [], ["/d"])
    assert config.unsaid == wanted
    if wanted:
        with pytest.raises(ConfigError) as error:
            said.refuse_unsaid(config)
        for key, value in wanted.items():
            assert f"{value} ({key})" in str(error.value)
            assert f"--set {key}={value}" in str(error.value).replace("'", "")
    else:
        said.refuse_unsaid(config)
    options = [f"{key}={value}" for key, value in wanted.items()]
    allowed = said.of_dataset(data(*overrides), options, ["/d"])
    assert allowed.unsaid == {}
    assert allowed == load_config(CHEAP, overrides)
    for left_out in options:
        some = [o for o in options if o != left_out]
        assert set(said.of_dataset(data(*overrides), some, ["/d"]).unsaid) == {left_out.partition("=")[0]}


def test_the_work_that_is_asked_for_decides_what_is_refused() -> None:
    config = said.of_dataset(data(*AESTHETICS, "filters.aesthetics.head=/tmp/theirs.pth"), [], [])
    said.refuse_unsaid(config, captions_only=True)
    compares = [*AESTHETICS, "filters.aesthetics.head=/tmp/theirs.pth", "rules.caption.similarity.min=0.1"]
    with pytest.raises(ConfigError, match=r"filters\.aesthetics\.head"):
        said.refuse_unsaid(said.of_dataset(data(*compares), [], []), captions_only=True)


def test_what_was_said_is_noted_by_dataset_and_value_and_only_as_a_whole(tmp_path: Path) -> None:
    mine = load_config(CHEAP, [*ENDPOINT, "captions.endpoint.api_key_env=MY_API_KEY"])
    said.remember("/d", mine)
    (note,) = (tmp_path / "user" / "reelmill" / "datasets").iterdir()
    assert json.loads(note.read_text())["dataset"] == "/d"
    stored = mine.model_dump(mode="json")
    assert said.of_dataset(stored, [], ["/d"]).unsaid == {}
    assert set(said.of_dataset(stored, [], ["/other"]).unsaid) == {
        "captions.endpoint.url",
        "captions.endpoint.api_key_env",
    }
    stored["captions"]["endpoint"]["url"] = "http://another.example/v1"
    theirs = said.of_dataset(stored, [], ["/d"])
    assert set(theirs.unsaid) == {"captions.endpoint.url"}
    said.remember("/d", theirs)  # what is not said is not noted
    assert said.of_dataset(mine.model_dump(mode="json"), [], ["/d"]).unsaid == {}
    assert set(said.of_dataset(stored, [], ["/d"]).unsaid) == {"captions.endpoint.url"}
    # With another server goes what was said with it: the key of the first one is not sent to the second.
    said.remember("/d", load_config(CHEAP, [ENDPOINT[0], "captions.endpoint={url: 'http://b/v1', model: m}"]))
    stored["captions"]["endpoint"]["url"] = "http://b/v1"
    assert set(said.of_dataset(stored, [], ["/d"]).unsaid) == {"captions.endpoint.api_key_env"}


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '{"said": 3}', '{"said": ["captions.endpoint.url"]}']
)
def test_a_note_that_is_damaged_says_nothing(tmp_path: Path, content: str) -> None:
    said.remember("/d", load_config(CHEAP, ENDPOINT))
    (note,) = (tmp_path / "user" / "reelmill" / "datasets").iterdir()
    note.write_text(content)
    assert said.of_dataset(data(*ENDPOINT), [], ["/d"]).unsaid


def test_where_nothing_can_be_noted_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    said.remember("/d", load_config(CHEAP, ENDPOINT))
    assert said.of_dataset(data(*ENDPOINT), [], ["/d"]).unsaid


def test_of_run_only_numbers_count_that_lift_no_bound() -> None:
    stored = data("run.ray_address=ray://them:1", "run.deadline_seconds=1e9", "run.cut_cpus=0.5")
    config = said.of_dataset(stored, [], ["/d"])
    assert config.not_taken == {"run.ray_address": "ray://them:1", "run.deadline_seconds": "1000000000.0"}
    assert (config.run.ray_address, config.run.deadline_seconds, config.run.cut_cpus) == (None, 60.0, 0.5)
    config = said.of_dataset(stored, ["run.ray_address=ray://mine:1", "run.deadline_seconds=90"], ["/d"])
    assert (config.run.ray_address, config.run.deadline_seconds) == ("ray://mine:1", 90.0)
    assert config.not_taken == {}
    said.remember("/d", config)
    again = said.of_dataset(config.model_dump(mode="json"), [], ["/d"])
    assert again == config
    assert isinstance(again, Config)


@pytest.mark.parametrize(
    ("name", "fits"),
    [("MY_API_KEY", True), ("HF_TOKEN", True), ("THE_KEY", True), ("DATABASE_URL", False), ("HOME", False)],
)
def test_the_name_of_a_key_is_one(name: str, fits: bool) -> None:
    options = [*ENDPOINT, f"captions.endpoint.api_key_env={name}"]
    config = load_config(CHEAP, options)
    said.check_key_names(config, said.typed(options))  # typed: meant
    if fits:
        said.check_key_names(config, {})
    else:
        with pytest.raises(ConfigError, match=f"--set captions.endpoint.api_key_env={name}"):
            said.check_key_names(config, {})


@pytest.mark.parametrize(
    ("option", "may"),
    [
        ("filters.json:JSONDecoder={}", True),
        ('filters.json:JSONDecoder={"frames": 4}', True),
        ("filters.json:JSONDecoder.frames=4", True),
        ("filters.json:JSONDecoderOfMine={}", False),  # another class that begins with the same letters
        ("filters.json:JSON={}", False),
    ],
)
def test_the_user_names_a_class_and_no_other_one(option: str, may: bool, monkeypatch: Any) -> None:
    asked: list[str] = []
    known = said.Known

    def spied(manifest: Any, may_import: Any) -> Any:
        asked.extend(may_import)
        return known(manifest, may_import)

    monkeypatch.setattr(said, "Known", spied)
    with pytest.raises(ConfigError):  # it is no filter, or was not allowed
        said.of_dataset({"filters": {"json:JSONDecoder": {}}}, [option], [])
    assert ("json:JSONDecoder" in asked) == may
