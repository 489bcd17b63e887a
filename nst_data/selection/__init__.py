"""From a generation to an edition: which pseudo-labeled images make the training set, and how often each stands in it.

In: the labels of a generation as a lazy frame, and `BalanceSettings`. Out: the selected rows with their copies, sealed as an edition,
and the number of images left out by each reason. Steps take a lazy frame and return one (sections 3.1 and A.4 of the paper).
"""
