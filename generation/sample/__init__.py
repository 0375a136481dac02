"""Sampling. In: the folder of a run, and prompts or a video. Out: previews and final videos.

previews        from prompts to previews, by Stage I
enhance         from previews, or any video, to final videos, by Stage II
preview_folder  preview folders on disk
trained         a trained stage, opened for sampling
options         the options of a user, and the callback for progress
execution       which parts are on the device at which time
memory          whether sampling fits the memory of the device

The room may import `process`, `codecs`, `text`, `models` and the modules beside the rooms, but never `train`.
"""
