"""Clips of a dataset as batches. In: the shards of a dataset. Out: pixels or cached latents, and captions.

shards      an index of the columns, row groups, and the frames of clips
plan        which rows, in which bucket and order: a function of the columns alone
transform   which frames, which window and which caption a clip gives
decode      decoding in processes of their own, which import no torch
ahead       fetching the next items in a thread
loader      all of it together: batches in the order of the plan, from any position

May import what stands below the rooms, and no other room.
"""
