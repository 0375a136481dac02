"""Models on an OpenAI-compatible server. In: pictures of clips, or texts. Out: captions, or texts.

`chat`: sends questions to a server, many at the same time, with retries.
`endpoint`: the captioner `endpoint`, which sends the pictures of clips.

`endpoint` imports `chat`. Both import `captioning.base`, and `endpoint` also imports `captioning.prompts`.
They import neither `local` nor `rewrite`.
"""
