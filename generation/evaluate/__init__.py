"""Figures about a run. In: a run, a dataset, prompts. Out: evaluation.json, and videos of the prompts.

parts       the evaluation part by part, each kept on disk, so that a stopped evaluation goes on
settings    how a run is evaluated
codec       what the autoencoder gives back of real clips
restoring   what Stage II restores of degraded clips
following   whether videos of Stage I, and of both stages, show what their prompts say
judge       a small network of our own that reads words off videos
networks    networks of others: LPIPS, CLIP, and features of videos
scores      numbers about videos, by formula
figures     what every part returns
real_clips  clips of a dataset, as training sees them
bars        what a figure must reach, and what a control must not reach
vbench      videos laid out for the tool of VBench

May import every room but `train`, `published` and `report`.
"""
