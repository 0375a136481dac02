"""Foreign bytes: whatever parses a source runs here, in the decoding child (`python -m curation.decode`).

In: a request about one source. Out: messages with frames, spans, scores or encoded clips. No Ray, no dataset.

    answers.py      what the child answers, checked where the parent receives it
    __main__.py     the child: it answers requests; nothing imports it
    video.py        frames with their times
    shots.py        cuts; scenes.py makes scenes of them, and spans.py candidate clips
    sampling.py     the frames that scorers ask for
    measure.py      the scores of clips; rescore.py computes some of them again
    segments.py     one piece of a long source; join.py puts the pieces together, in the driver
    cut.py          accepted spans are encoded        probe.py   headers alone
    pictures.py     pictures of our own clips, for captioners

May import sandbox.protocol, sources, config and store.
"""
