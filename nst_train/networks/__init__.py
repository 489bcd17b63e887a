"""Creating networks by name, and the noise inside them (dropout, stochastic depth).

In: the name of a timm, transformers or user-defined model, and training settings. Out: a torch module with its data config, and the
files of a trained network in the format that timm or transformers load.
"""
