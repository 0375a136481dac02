"""Rendered footage with known truth, for tests of a build and for training. Builds do not use this room.

In: settings and a seed. Out: videos, captions and truth.json.

    plan.py   plans and writes scenes, defects and transitions
    draw.py   draws the pictures

May import config.
"""
