"""The parquet tables of a corpus: their columns, the shards they are written in, and lazy frames over them.

Input: rows of keys, hashes, labels and soft labels. Output: shards that appear whole or not at all, with their checksums, and a lazy frame
of Polars or Spark over the shards of a version.
"""
