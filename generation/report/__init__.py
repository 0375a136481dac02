"""What people look at. In: folders of evaluations, trainings, previews. Out: pages and one picture.

page        the pages of an evaluation and of a recipe, filled into page.html
curves      what a training wrote down, as charts
picture     frames of previews beside frames of final videos, in one image

May import `sample` (the folder of a preview) and what stands below the rooms. No room imports `report`.
"""
