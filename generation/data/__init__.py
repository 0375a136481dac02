"""Clips of a dataset as batches. In: the shards of a dataset. Out: pixels or cached latents, and captions.

shards      an index of the columns, row groups, and the frames of clips
plan        which rows are used, in which bucket and order: a function of the columns only
transform   which frames, which window and which caption a clip gives
decode      decoding in child processes, which import no torch
ahead       fetching the next items in a thread
loader      the whole loader: batches in the order of the plan, from any position

This room may import the modules below the rooms, and no other room.
"""
