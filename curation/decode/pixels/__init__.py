"""Arithmetic on decoded pictures. No files and no decoders: arrays in, arrays out.

    frame.py        one frame of a source, and pictures of it as displayed
    alpha.py        frames with transparent parts
    display.py      how a stored picture is turned and mirrored for display
    fields.py       is a source progressive, interlaced or telecined? By what moves between its frames
    combs.py        the part of the frames that show combs
    mend.py         interlaced and telecined frames, as pictures of one moment
    levels.py       from limited range to full range
    hdr.py          HLG and PQ, tone-mapped to BT.709
    profile.py      pictures with colour profiles
    stills.py       pictures of 16 bits, and transparent ones

May import nothing of curation.
"""
