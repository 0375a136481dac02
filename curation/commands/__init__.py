"""One module for each command except `build`.

In: a dataset and a configuration that `jobs` has read. Out: a changed dataset, or lines for the user.

    select.py    applies other rules to the measured clips
    caption.py   makes other captions for the existing clips
    remove.py    removes sources permanently
    status.py    finds the work that a build would still do
    working.py   one command at a time writes to a dataset, and ends in order
    common.py    opens a Ray session only if there is work for one

May import every other room.
"""
