"""Figures about a run. In: a run, a dataset, prompts. Out: evaluation.json and videos of the prompts.

parts       the evaluation part by part; each part is kept on disk, so a stopped evaluation can resume
settings    the settings of an evaluation
codec       how well the autoencoder reconstructs real clips
restoring   how well Stage II restores degraded clips
following   whether videos of Stage I, and of both stages, show what their prompts say
judge       a small network, trained here, that recognises words in videos
networks    published networks: LPIPS, CLIP, and features of videos
scores      numbers about videos, by formula
figures     the result type of all parts
real_clips  clips of a dataset, prepared as for training
bars        limits that a figure must reach and a control must miss
vbench      copies of videos for the tool of VBench

The room may import every room except `train`, `published` and `report`.
"""
