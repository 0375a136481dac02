"""Makes text from decoders, file names and servers safe for one line of a table or a terminal."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the parent's side must stay light
    pass

_MAX_WORDS_CHARS = 500
_MAX_WORDS_LINES = 2000  # `last_words` reads only so many lines from the end


def readable(text: str) -> str:
    """`text` on one line. Characters that cannot be printed, and lone surrogates, become escapes."""
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """`text` with escapes for characters that could move the cursor or set the title of a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def last_words(written: str) -> str:
    """The last complaints of a decoder: distinct complaints in the order of their last occurrence.

    Memory addresses, which ffmpeg writes into each line, are removed. So every run gives the same text.
    """
    lines: dict[str, None] = {}
    for line in written.splitlines()[-_MAX_WORDS_LINES:]:
        complaint = readable(re.sub(r" (@|at) 0x[0-9a-f]+", "", line))
        if complaint:
            lines.pop(complaint, None)
            lines[complaint] = None
    words = ""
    for complaint in reversed(lines):
        longer = f"{complaint}; {words}" if words else complaint[:_MAX_WORDS_CHARS]
        if len(longer) > _MAX_WORDS_CHARS:
            break
        words = longer
    return words
