"""What the code is like to read: sizes by room, length of sentences, old words, imports between rooms.

`python -m benchmarks.house [ROOT]` prints a table for the checkout at ROOT (default: this one), so that
two states of the project can be compared. A sentence is counted where a docstring or a message has at least
three words up to a full stop, a colon or its end. The script parses the code and imports none of it.
"""

from __future__ import annotations

import ast
import re
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = ("curation", "filters", "captioning", "generation", "jobs")
# Words and turns that a reader whose first language is another one looks up, or reads twice.
OLD_WORDS = (
    *("dear", "dearer", "dearest", "spared", "spares", "goes on", "go on", "went on", "told"),
    *("is told", "are told"),
    *("sound", "at hand", "in vain", "nobody", "whoever", "whatever it is", "thereby", "therein", "thereof"),
    *("of late", "of one's own", "anew", "nor", "save for", "but for", "lest", "ere", "shall", "hitherto"),
    *("whence", "gone through", "comes to its end", "came to its end", "are no more", "is no more"),
    *("are none", "is none"),
)
_LONGEST_FIRST = sorted(map(re.escape, OLD_WORDS), key=len, reverse=True)
_OLD = re.compile(rf"\b({'|'.join(_LONGEST_FIRST)})\b", re.IGNORECASE)
_MESSAGES = ("print", "say", "complain", "failed", "note", "yield_line")  # calls whose text a user reads


@dataclass
class Room:
    """Counts of one folder. Lines are physical lines."""

    files: int = 0
    lines: int = 0
    longest_file: tuple[int, str] = (0, "")
    longest_function: tuple[int, str] = (0, "")
    sentences: list[int] = field(default_factory=list)  # words in each
    old: Counter[str] = field(default_factory=Counter)


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    """(room, file) of each module: the room is its folder, with dots."""
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            yield ".".join(path.relative_to(root).parent.parts), path


def count(root: Path) -> dict[str, Room]:
    """Room -> its counts."""
    rooms: dict[str, Room] = defaultdict(Room)
    for name, path in modules(root):
        text = path.read_text(encoding="utf-8")
        tree, room = ast.parse(text), rooms[name]
        lines = text.count("\n")
        room.files += 1
        room.lines += lines
        room.longest_file = max(room.longest_file, (lines, path.name))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                room.longest_function = max(room.longest_function, (size, f"{path.stem}.{node.name}"))
        for words in prose(tree):
            room.old.update(m.group(1).lower() for m in _OLD.finditer(words))
            room.sentences += sentence_lengths(words)
    return rooms


def prose(tree: ast.AST) -> Iterator[str]:
    """Docstrings, and the texts of raised errors and of printed messages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if text := ast.get_docstring(node):
                yield text
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield from map(_text, node.exc.args)
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", getattr(node.func, "id", "")) in _MESSAGES
        ):
            yield from map(_text, node.args)


def _name(function: ast.expr) -> str:
    return str(getattr(function, "attr", getattr(function, "id", "")))


def _text(node: ast.expr) -> str:
    """A literal, with a word in the place of what an f-string fills in."""
    if isinstance(node, ast.Constant):
        return str(node.value) if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(v) if isinstance(v, ast.Constant) else "X" for v in node.values)
    if isinstance(node, ast.BinOp):
        return f"{_text(node.left)} {_text(node.right)}"
    return ""


def sentence_lengths(text: str) -> list[int]:
    """Words of each sentence. Code in back quotes is one word; listed lines (indented) are no sentences."""
    plain = re.sub(r"`[^`]*`", "X", text)
    plain = re.sub(r"(?m)^ {2,}\S.*$", ".", plain)
    parts = re.split(r"[.!?:](?:\s|$)|\n\s*\n", plain)
    lengths = [len(re.findall(r"[\w'’-]+", part)) for part in parts]
    return [n for n in lengths if n >= 3]


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]
    rooms = count(root)
    row = "{:28} {:>5} {:>6}  {:28} {:36} {:>14} {:>9}"
    print(
        row.format(
            "room", "files", "lines", "longest file", "longest function", "words/sentence", "old words"
        )
    )
    for name, room in sorted(rooms.items()):
        file, function = (f"{n} {what}" for n, what in (room.longest_file, room.longest_function))
        middle = statistics.median(room.sentences or [0])
        print(row.format(name, room.files, room.lines, file, function, f"{middle:.0f}", room.old.total()))
    sentences = [n for room in rooms.values() for n in room.sentences]
    old = sum((room.old for room in rooms.values()), Counter())
    long = sum(n > 25 for n in sentences)
    files, lines = (sum(getattr(room, what) for room in rooms.values()) for what in ("files", "lines"))
    print(f"all: {files} files, {lines} lines, {len(sentences)} sentences")
    print(f"     median sentence {statistics.median(sentences):.0f} words, {long} sentences of more than 25")
    print(f"     {old.total()} old words: {', '.join(f'{word} {n}' for word, n in old.most_common(12))}")


if __name__ == "__main__":
    main()
