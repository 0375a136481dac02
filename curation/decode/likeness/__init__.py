"""Where shots begin, by how alike the frames around each moment are. Arrays in, arrays out.

    describe.py     a frame becomes a vector of 488 bytes
    compare.py      vectors become distances between the frames of a window
    network.py      distances become the probability of a hard cut and of a gradual transition
    decide.py       probabilities become cuts and ranges of frames
    network.npz     its coefficients; `python -m benchmarks.likeness.train` makes them

May import decode.pixels.
"""
