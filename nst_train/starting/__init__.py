"""From a folder of photographs to a recipe, and what a recipe will cost before it is run.

Input: where the images are. Output: what was found and its likely problems, the settings that suit it and this machine, and a
commented recipe that gives the reason for each value.
"""
