"""Captions to token states. In: captions. Out: float32 tokens (L, D) on the CPU, one tensor per caption.

encoder     the protocol of text encoders, and the encoders of the library transformers
open        the encoder that a configuration names; no module of this room imports `open`
source      the location of an encoder and its tokenizer
cache       token states by caption, in memory and on disk
tokens      tokens of several captions as one batch, and zeros in place of a caption

This room may import `models` (the hub) and the modules below the rooms.
"""
