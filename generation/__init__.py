"""Training and sampling of the two-stage text-to-video model. The package imports neither Ray nor the
other packages: of their work it knows only the schema of the shards.

Below the rooms stand modules that every room may use: `config` and `presets` (what a stage is trained
with), `run` (the folder of a run), `disk` (writing whole or not at all), `cache` (tensors by what made them),
`draws` (random numbers by key), `device` (peak, precision, memory), `media` (frames and video files).

The rooms, in order; a room imports only rooms of the lines before its own:

data, models              clips of the shards as batches; networks and their weights
text, codecs              captions as token states; video as latents and back
process                   the mathematics: diffusion, flow, guidance, degradation, both objectives
train, sample, published  the training loop; previews and final videos; checkpoints of others, converted
evaluate, report          figures about a run; pages and pictures of what was made
"""
