"""Captions of accepted clips. In: clips with pictures or a text. Out: captions, and numbers about captions.

`base`: what a captioner is (`CaptionRequest`, `Caption`, `Captioner`).
`makers`: the captioners by name.
`prompts`: the questions to models, and reading the answers.
`sidecar`: captions from files and columns that people wrote. `beside`: the names of such files, `subtitles`:
cues and rolling captions, `formats`: other subtitle files, `texts`: captions in JSON and in columns.
`local`, `server`: captions by a model on this machine, or by a model on a server.
`rewrite`: captions rewritten by a language model, of either kind.
`checks`: numbers about a caption, and the default rules.

Imports follow the order base, prompts; subtitles, formats, texts, beside, sidecar; checks, local, server;
rewrite.
No module imports Ray or another package of the project.
"""
