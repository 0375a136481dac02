"""Checks of captions. In: the text of a caption and the prompt that it answers. Out: numbers for rules.

`measures`: all checks (`measure`), each check alone, and the default rules.
`language`: the degree to which a text is in the wanted language.
`phrases`: patterns of refusals, introductions and chat templates.

Checks are pure functions. They import `captioning.prompts` and libraries, but no captioner.
"""
