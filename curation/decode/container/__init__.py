"""Containers: the times that they state, the rates of clips, and the mp4 files that we write.

    clock.py        the times of frames, from timestamps that start again or stand in another order
    rates.py        the rate at which a clip is stored
    faststart.py    the index of an mp4 in front of its pictures

May import nothing of curation.
"""
