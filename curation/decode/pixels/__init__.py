"""Arithmetic on decoded pictures. No files and no decoders: arrays in, arrays out.

    alpha.py        frames with transparent parts
    display.py      how a stored picture is turned and mirrored for display
    hdr.py          HLG and PQ, tone-mapped to BT.709
    profile.py      pictures with colour profiles
    stills.py       pictures of 16 bits, and transparent ones

May import nothing of curation.
"""
