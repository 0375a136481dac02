"""Training. In: a configuration, a dataset, the processes. Out: checkpoints, logs, weights for sampling.

trainer          the training loop of all stages, and its exact resume
stage            the interface between the loop and a stage
diffusion_stage  that interface for Stages I and II
vae_stage        that interface for the autoencoder
open             opens the stage that a configuration names; no module of the room imports `open`
session          one training from its start to its end, in this process; progress prints its lines
start            writes the configuration of a training into its folder, or compares it
checkpoint       checkpoints on disk, with everything that a resume needs
parallel         training on several processes; the model does not know of them
metrics          losses, rates and time left, for the progress line and TensorBoard
memory           whether a training step fits the device

The room may import `process`, `codecs`, `text`, `data`, `models` and the modules beside the rooms, but never
`sample`.
"""
