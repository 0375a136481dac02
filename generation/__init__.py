"""Training and sampling of the two-stage text-to-video model. The package does not import Ray or the other
packages. It only knows the schema of the shards that the other packages write.

Every room may use the modules beside the rooms: `config` and `presets` (the configuration of a stage),
`json_schema` (the keys of a configuration, for editors), `run` (the folder of a run), `disk` (files that
appear whole or not at all), `cache` (tensors by their origin), `draws` (random numbers by key), `device`
(peak, precision, memory) and `media` (frames and video files).

These are the rooms in order. A room imports only rooms of the lines before its own line:

data, models              clips of the shards as batches; networks and their weights
text, codecs              captions as token states; video as latents and back
process                   the mathematics: diffusion, flow, guidance, degradation, both objectives
train, sample, published  the training loop; previews and final videos; conversion of published checkpoints
evaluate, report          figures about a run; pages and pictures of the results
"""
