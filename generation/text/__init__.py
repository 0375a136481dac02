"""Captions to token states. In: captions. Out: float32 tokens (L, D) on the CPU, one tensor each.

encoder     the protocol of an encoder, and the encoders of transformers behind it
open        the encoder that a configuration names; no module of the room imports `open`
source      where an encoder and its tokenizer lie
cache       token states by caption, in memory and on disk
tokens      tokens of several captions as one batch, and zeros in a caption's place

May import `models` (the hub) and what stands below the rooms.
"""
