"""Creating networks by name, and the noise inside them (dropout, stochastic depth).

Input: the name of a timm, transformers or user-defined model, and training settings. Output: a torch module with its data config, and the
files of a trained network in the format that timm or transformers load.
"""
