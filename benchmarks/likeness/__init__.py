"""How the network of `shots.detector: similarity` is made: films are spliced from real single shots.

shots.py     reads single shots of labelled footage
shot.py      a shot of a film: a part of a single shot, with a camera of its own
events.py    what happens within a shot without ending it: flashes, text, things that pass the lens
splice.py    puts shots together, with cuts and gradual transitions whose frames are known
train.py     trains the network on such films, and writes its coefficients
"""
