"""Training. In: a configuration, a dataset, the processes. Out: checkpoints, logs, weights for sampling.

trainer          the loop of all stages, and its exact resume
stage            what the loop knows of a stage
diffusion_stage  Stages I and II as the loop knows them
vae_stage        the autoencoder as the loop knows it
open             the stage that a configuration names; no module of the room imports `open`
start            the folder of a training: written down, or compared
checkpoint       everything that a resume needs, on disk
parallel         several processes, applied from outside of the model
metrics          what a training shows of itself
memory           whether a training step fits the device

May import `process`, `codecs`, `text`, `data`, `models` and what stands below the rooms; never `sample`.
"""
