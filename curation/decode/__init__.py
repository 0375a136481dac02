"""The code that parses sources. It runs in the decoding child (`python -m curation.decode`).

In: a request about one source. Out: messages with frames, spans, scores or encoded clips. No Ray, no dataset.

    answers.py      the child's answers, checked by the parent
    __main__.py     the child: it answers requests, and no module imports it
    video.py        frames, with the times that container/clock.py gives them
    image_file.py   stills and animations, which Pillow reads
    shots.py        cuts; scenes.py makes scenes from cuts, and spans.py makes candidate clips
    sampling.py     the frames that scorers ask for
    measure.py      the scores of clips; rescore.py computes some scores again
    segments.py     one piece of a long source; join.py joins the pieces, in the driver
    cut.py          encodes accepted spans
    probe.py        reads only headers
    pictures.py     pictures of our own clips, for captioners
    container/      times of frames, and the index of an mp4 in front
    pixels/         arithmetic on pictures: turned, mirrored, HDR and transparent ones

May import decode.container, decode.pixels, sandbox.protocol, sources, config and store.
"""
