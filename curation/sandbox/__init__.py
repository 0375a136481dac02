"""The decoding child as its parent sees it: a process with limits of memory, time and output.

In: a request. Out: messages, or `SourceFailed`. The child itself is `curation.decode.__main__`.

    parent.py     starts the child, asks it, replaces it after a fault
    protocol.py   messages over a pipe, checked; both sides load it
    words.py      foreign text, made safe for one line of a table or a terminal

Imports no other room.
"""
