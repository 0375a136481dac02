"""The code that parses sources. It runs in the decoding child (`python -m curation.decode`).

In: a request about one source. Out: messages with frames, spans, scores or encoded clips. No Ray, no dataset.

    answers.py      the child's answers, checked by the parent
    __main__.py     the child: it answers requests, and no module imports it
    video.py        an opened source: its frames, with the times that container/clock.py gives them
    image_file.py   stills and animations, which Pillow reads
    sampling.py     the frames that scorers ask for
    measure.py      the scores of clips; rescore.py computes some scores again
    segments.py     one piece of a long source; join.py joins the pieces, in the driver
    cut.py          encodes accepted spans
    woven.py        is a source interlaced or telecined? Some of its frames say so
    probe.py        reads only headers
    pictures.py     pictures of our own clips, for captioners
    shots/          from frames to candidate clips: cuts, scenes, spans
    likeness/       arithmetic on how alike frames are, from which shots/similarity.py finds cuts
    container/      times of frames, rates of clips, and the index of an mp4 in front
    pixels/         one frame, and arithmetic on pictures: turned, mirrored, HDR and transparent ones

May import decode.container, decode.pixels, decode.shots, sandbox.protocol, sources, config and store.
"""
