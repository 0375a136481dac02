"""The parent's side of the decoding child: a process with limits on memory, time and output.

In: a request. Out: messages, or `SourceFailed`. The child itself is `curation.decode.__main__`.

    parent.py     starts the child, sends requests, replaces the child after a fault
    protocol.py   checked messages over a pipe; both sides import this module
    memory.py     watches how much memory the child holds
    words.py      makes foreign text safe for one line of a table or a terminal

Imports no other room.
"""
