"""Pages and a picture for people. In: folders of evaluations, trainings, previews. Out: HTML and a PNG.

page        the pages of an evaluation and of a recipe, filled into page.html
curves      charts of the logs of a training
picture     frames of previews beside frames of final videos, in one image

The room may import `sample` (for preview folders) and the modules beside the rooms. No room imports `report`.
"""
