"""Networks and their weights. In: a configuration, a folder or a name on the hub. Out: a network, or files.

network     the network of a stage: built with its adapters, and exported to `weights/`
cogvideox   the transformer of both stages, from diffusers: initial weights, calls, costs
attention   which kernels the transformer may use on a GPU
rotary      tables of positions for one grid
lora        low-rank adapters: added, fused, saved
pretrained  trained networks on disk, in the layout of diffusers
hub         the location of a published model, and a hash of its contents

This room may import the modules below the rooms, and no other room.
"""
