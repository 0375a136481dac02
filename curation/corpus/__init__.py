"""Rendered footage whose truth is known: to test a build with, and to learn from. No part of the flow.

In: settings and a seed. Out: videos, captions and truth.json.

    plan.py   scenes, defects and transitions are planned and written
    draw.py   the pictures

May import config.
"""
