"""From a folder of photographs to a recipe, and what a recipe will cost before it is run.

In: where images lie. Out: what is there and what of it will hurt, the settings that suit it and this machine, and a
commented recipe that says why each value is what it is.
"""
