"""Read labels written by other tools: timm's inference script, pipelines, FiftyOne, Label Studio, handmade tables.

In: a file, a folder, tar shards or a table. Out: the key of each image and its classes with their probabilities, in columns that
`nst_data.tables` checks.
"""
