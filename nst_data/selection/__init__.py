"""From a generation to an edition: which pseudo-labeled images make up the training set, and how often each occurs in it.

Input: the labels of a generation as a lazy frame, and `BalanceSettings`. Output: the selected rows with their copies, sealed as an edition,
and the number of images dropped for each reason. Steps take a lazy frame and return one (sections 3.1 and A.4 of the paper).
"""
