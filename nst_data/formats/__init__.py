"""`nst export`: write labels and images in the formats of other tools.

Input: a generation, an edition or a review of the store, and the pool with its images. Output: a folder of files for torchvision,
`datasets`, webdataset, FiftyOne or Label Studio. An interrupted export resumes, and folders with other files are refused.
"""
