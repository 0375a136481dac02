"""Video to latents and back. In: video (B, 3, T, H, W) in [-1, 1]. Out: latents (B, C, t, h, w).

base        the protocol that the stages know, and the rules of its grid
open        the codec that a configuration names; no module of the room imports `open`
patch       a fixed and lossless transform, made of `dct`, the cosine transform
cogvideox   the published autoencoder of CogVideoX
slice       a trained Slice VAE, whose network is in `slice_vae`
tiles       large pictures in overlapping tiles
memory      the memory that a codec takes, measured with `footprint`, which counts bytes at their peak

May import `models` (published weights) and what stands below the rooms.
"""
