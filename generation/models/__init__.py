"""Networks and their weights. In: a configuration, a folder or a name on the hub. Out: a network, or files.

network     the network of a stage: built, with its adapters, and exported to `weights/`
cogvideox   the transformer of both stages, of diffusers: its start, its call, its cost
attention   which kernels the transformer may take on a GPU
rotary      tables of positions for one grid
lora        low-rank adapters: added, fused, saved
pretrained  trained networks on disk, in the layout of diffusers
hub         where a published model lies, and what stands for its contents

May import what stands below the rooms, and no other room.
"""
