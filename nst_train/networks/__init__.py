"""Names to networks, and the noise inside them (dropout, stochastic depth).

In: a model name of timm, transformers or the user's own, and training settings. Out: a torch module with its data config, and the files
of a trained one in the format that timm or transformers load.
"""
