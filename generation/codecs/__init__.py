"""Video to latents and back. In: video (B, 3, T, H, W) in [-1, 1]. Out: latents (B, C, t, h, w).

base        the protocol of all codecs, and the rules of the latent grid
open        the codec that a configuration names; no module of this room imports `open`
patch       a fixed and lossless transform, which uses `dct`, the cosine transform
cogvideox   the published autoencoder of CogVideoX
slice       a trained Slice VAE, whose network is in `slice_vae`
own         the base of a codec of your own, which a configuration names by import path
tiles       large pictures in overlapping tiles
memory      the memory that a codec needs, measured with `footprint`, which counts bytes at their peak

This room may import `models` (published weights) and the modules below the rooms.
"""
