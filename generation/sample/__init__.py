"""Sampling. In: the folder of a run, and prompts or a video. Out: previews and final videos.

previews        from prompts to previews, by Stage I
enhance         from previews, or any video, to final videos, by Stage II
preview_folder  previews on disk
trained         a trained stage, opened for sampling
options         what a user asks for, and how progress is told
execution       what lies on the device when
memory          whether sampling fits the device, and in which way

May import `process`, `codecs`, `text`, `models` and what stands below the rooms; never `train`.
"""
