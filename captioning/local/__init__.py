"""Models of transformers on this machine. In: pictures of clips, or texts. Out: captions, or texts.

`source`: finds a model in a folder or on the hub, by its config.json.
`generate`: loads a model and generates text in batches. Only this module imports torch at its top.
`vlm`: the captioner `transformers`, a vision-language model.
`lm`: a language model, for `captioning.rewrite`.

`vlm` and `lm` import `generate` at the first use, because torch takes seconds to import. These modules import
`captioning.base`, `captioning.prompts` and each other in the order above, but neither `server` nor `rewrite`.
"""
