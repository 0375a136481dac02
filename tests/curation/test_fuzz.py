"""Whatever bytes it is given, the decoding child answers, in time, and leaves nothing behind."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests import fuzz

SEED = 1


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[fuzz.Seed]:
    return fuzz.rendered(tmp_path_factory.mktemp("seeds"))


def check(
    seeds: Sequence[fuzz.Seed], cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> fuzz.Found:
    work, temporary = tmp_path / "work", tmp_path / "tmp"
    work.mkdir()
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = fuzz.Resources.now(temporary)
    found = fuzz.run(seeds, SEED, range(cases), work)
    assert found.violations == []
    assert fuzz.Resources.now(temporary) == before
    assert list(work.iterdir()) == []
    assert found.growth_bytes() < 16 << 20
    # It has come through to the end, and it has not: else the mutations are too weak, or too strong.
    assert found.outcomes["cut: done"] > cases / 5
    assert sum(n for outcome, n in found.outcomes.items() if not outcome.endswith("done")) > cases / 5
    return found


def test_mutated_files(seeds: list[fuzz.Seed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(seeds, 60, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_mutated_files(
    seeds: list[fuzz.Seed], footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = check([*seeds, *fuzz.real(footage, tmp_path)], 2000, tmp_path, monkeypatch)
    print(dict(found.outcomes), found.slowest, found.growth_bytes())


def test_cases_can_be_repeated_alone(seeds: list[fuzz.Seed]) -> None:
    cases = [fuzz.case(seeds, SEED, k) for k in range(30)]
    assert fuzz.case(seeds, SEED, 17) == cases[17]
    assert fuzz.case(seeds, SEED + 1, 17) != cases[17]
    plain = {s.data for s in seeds}
    assert sum(c.data in plain for c in cases) <= 1
    assert len({c.name for c in cases}) > 8


@pytest.mark.parametrize("mutation", fuzz._MUTATIONS)
def test_every_mutation_takes_every_length(seeds: list[fuzz.Seed], mutation: fuzz.Mutation) -> None:
    rng = random.Random(0)
    whole = seeds[0].data
    changed = 0
    for length in (17, 100, len(whole)):
        for _ in range(100):
            data = bytearray(whole[:length])
            mutation(data, whole, rng)
            changed += data != whole[:length]
    assert changed > 50


def test_what_must_not_be_is_noticed(tmp_path: Path) -> None:
    good = ("measure", "open", "NoVideo", "the file has no video stream")
    assert list(fuzz._faults(good)) == []
    assert list(fuzz._faults(("measure: done", "[]"))) == []
    for bad in (
        ("measure", "", "NoVideo", good[3]),
        ("measure", "open", "", good[3]),
        ("measure", "open", "NoVideo", ""),
        ("measure", "open", "NoVideo", "two\nlines of text"),
        ("measure", "open", "NoVideo", "<file at 0x7f1200000000>"),
        ("measure", "open", "NoVideo", "x" * 2001),
    ):
        assert len(list(fuzz._faults(bad))) == 1, bad
    before = fuzz.Resources.now(tmp_path)
    (tmp_path / "left").touch()
    fd = os.open(tmp_path / "left", os.O_RDONLY)
    try:
        after = fuzz.Resources.now(tmp_path)
    finally:
        os.close(fd)
    assert (after.descriptors - before.descriptors, after.temporary_files - before.temporary_files) == (1, 1)
