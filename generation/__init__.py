"""Training and sampling of the two-stage text-to-video model. The package does not import Ray or the other
packages. Of their work, this package knows only the schema of the shards.

Every room may use these modules, which belong to no room: `config` and `presets` (the settings of a stage),
`run` (the folder of a run), `disk` (files that are written completely or not at all), `cache` (tensors on
disk, found by their origin), `draws` (random numbers by key), `device` (peak speed, precision, memory) and
`media` (frames and video files).

The rooms follow in order. A room imports only rooms from lines above its own line:

data, models              clips of the shards as batches; networks and their weights
text, codecs              captions as token states; video as latents and back
process                   the mathematics: diffusion, flow, guidance, degradation, both objectives
train, sample, published  the training loop; previews and final videos; conversion of published checkpoints
evaluate, report          figures about a run; pages and pictures of the results
"""
