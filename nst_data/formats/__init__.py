"""Labels and images in the formats of other tools: `nst export`.

In: a generation or an edition of the store, and the pool that holds its images. Out: a folder of files that torchvision, `datasets`,
webdataset, FiftyOne or Label Studio reads; it goes on where it was interrupted, and takes no folder with files of anybody else.
"""
