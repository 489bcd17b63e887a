"""Labels that other tools wrote: timm's inference script, pipelines, FiftyOne, Label Studio, tables by hand.

In: a file, a folder, tar shards or a table. Out: for each image its key and its classes with their probabilities, in columns that
`nst_data.tables` checks.
"""
