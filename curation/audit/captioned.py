"""How many accepted clips have a caption to train on, and which captioner wrote it."""

from __future__ import annotations

from collections import Counter

from curation.store.dataset import Dataset


def captioned_line(dataset: Dataset) -> str | None:
    """A line for people; None where there are no clips in shards."""
    clips = 0
    by: Counter[str] = Counter()
    for part in dataset.parts("shards"):
        file = dataset.open_part("shards", part)
        try:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, ["caption", "captions"]).to_pylist()
                clips += len(rows)
                by.update(_captioner(row["caption"], row["captions"] or []) for row in rows if row["caption"])
        finally:
            file.close()
    if not clips:
        return None
    have = sum(by.values())
    names = ", ".join(f"{name} {n}" for name, n in by.most_common())
    origins = f" ({names})" if by else ""
    return f"captions {have} of {clips} accepted clips{origins}, {clips - have} have none"


def _captioner(text: str, captions: list[dict[str, str]]) -> str:
    return next((c["captioner"] for c in captions if c["text"] == text), "unknown")
