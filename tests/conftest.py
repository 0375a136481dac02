"""Shared fixtures: one thread per library, the shared real footage, one Ray for all tests that need it."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

# Before decord, which loads every CUDA library that it finds: PyTorch then crashes on the CPU.
import torch  # noqa: F401, I001
import cv2
import pytest

from curation.config.schema import Config
from curation.config.load import load_config

# What a shell puts into the background is deaf to Ctrl-C, and all that is started from there inherits it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_STATUS = pytest.StashKey[int]()
SHARED = Path(__file__).parents[1].parent / "shared"

CHEAP = """
base: none
filters: {duration: {}, resolution: {}, motion: {}, quality: {}, borders: {}, transition: {}}
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    today = int(time.strftime("%Y%m%d", time.gmtime()))
    parser.addoption("--seed", type=int, default=today, help="of random tests; default: today, as YYYYMMDD")


# Folders and files that `make quick` leaves out.
HEAVY = (
    *("jobs/", "curation/test_", "curation/captions/", "curation/sandbox/", "curation/decode/test_segments"),
    *("curation/store/test_lease", "curation/store/test_whole_file", "curation/shards/test_damage"),
    *("filters/test_transition", "filters/test_borders", "filters/test_text", "filters/test_motion"),
    "filters/test_camera",
    *("captioning/local/", "captioning/server/", "generation/train/", "generation/evaluate/test_parts"),
    *(
        "generation/data/test_loader",
        "generation/data/test_decode",
        "generation/sample/",
        "generation/codecs/",
    ),
    *(
        "generation/published/",
        "generation/models/test_compile",
        "generation/test_benchmark",
        "benchmarks/",
        "examples/",
    ),
)


# Files that take a minute and more. They begin first, so that the two processes of `make test` end together.
LONG = (
    *("curation/test_kill", "jobs/test_recipe", "curation/test_build", "jobs/test_cluster"),
    *("jobs/test_leftovers", "curation/test_own_", "curation/captions/test_on_ray", "jobs/test_kill"),
    *("examples/", "curation/test_faults", "curation/test_pipeline", "generation/train/test_parallel"),
    *("generation/codecs/test_slice", "generation/train/test_memory", "jobs/test_no_room", "jobs/test_train"),
)


def _order(item: pytest.Item) -> int:
    path = item.path.relative_to(Path(__file__).parent).as_posix()
    return next((k for k, name in enumerate(LONG) if path.startswith(name)), len(LONG))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    groups: dict[str, list[pytest.Item]] = {}
    keep: dict[str, int] = {}
    for item in items:
        if item.path.relative_to(here).as_posix().startswith(HEAVY):
            item.add_marker("heavy")
        if mark := item.get_closest_marker("sampled"):
            groups.setdefault(mark.args[0], []).append(item)
            keep[mark.args[0]] = mark.kwargs["keep"]
    for name, members in groups.items():
        # The others are marked slow, so that `make test` and `make slow` together take all of them.
        draw = random.Random(f"{config.getoption('--seed')} {name}")
        chosen = draw.sample(members, min(keep[name], len(members)))
        for item in members:
            if item not in chosen:
                item.add_marker("slow")
    items.sort(key=_order)


def pytest_report_header(config: pytest.Config) -> str:
    return f"random tests: --seed {config.getoption('--seed')} repeats them"


@pytest.fixture(scope="session")
def seed(pytestconfig: pytest.Config) -> int:
    """Long tests take a part of their cases: another part with each seed. `-m slow` takes all of them."""
    value: int = pytestconfig.getoption("--seed")
    print(f"--seed {value}")
    return value


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    cv2.setNumThreads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_notes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What commands note of what the user said goes to a folder of the tests, not to the developer's."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="session")
def footage() -> Path:
    """The folder of real footage with known truth; tests that need it are skipped where it is absent."""
    folder = SHARED / "data" / "video"
    if not folder.is_dir():
        pytest.skip("the shared footage is not here")
    return folder


@pytest.fixture(scope="session")
def cheap_config() -> Config:
    """Every filter that needs no model, and no rules."""
    return load_config(CHEAP)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for the whole test session: it takes seconds to start."""
    from curation.cluster import session

    with session.session(load_config("run: {object_store_mb: 256}")):
        yield


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave without the teardown of native threads, which can abort; see `jobs.cli.leave`."""
    status = config.stash.get(_STATUS, None)
    if status is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
