"""Read labels written by other tools: timm's inference script, pipelines, FiftyOne, Label Studio, handmade tables.

Input: a file, a folder, tar shards or a table. Output: the key of each image and its classes with their probabilities, in columns that
`nst_data.tables` checks.
"""
