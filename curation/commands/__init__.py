"""One module for each command that is not a build.

In: a dataset and a configuration that `jobs` has read. Out: a changed dataset, or lines for the user.

    select.py    other rules over what is measured
    caption.py   other captions for the clips that exist
    remove.py    sources are taken out for good
    status.py    what a build would still do
    common.py    a Ray session only where there is work for one

May import every other room.
"""
