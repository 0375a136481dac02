"""Arithmetic on decoded pictures. No files and no decoders: arrays in, arrays out.

    display.py      how a stored picture is turned and mirrored for display

May import nothing of curation.
"""
