"""Features from a pretrained network, and the simplest classifier on top of them.

Input: a source of images and the name of a model. Output: `nst_data.features`, one vector per image, taken before the network's
classifier; and a linear probe, the weights of a new last layer.
"""
