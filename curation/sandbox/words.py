"""What decoders, file names and servers say, made safe for one line of a table or a terminal."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the parent's side must stay light
    pass

_MAX_WORDS_CHARS = 500
_MAX_WORDS_LINES = 2000  # of which the last words are made


def readable(text: str) -> str:
    """`text` on one line, with everything that does not print (and lone surrogates) as escapes."""
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """File names, too, may hold what moves the cursor or sets the title of a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def last_words(written: str) -> str:
    """What a decoder complained of at last: distinct complaints in the order of their last occurrence.

    The same on every run: ffmpeg puts an address into each line.
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
