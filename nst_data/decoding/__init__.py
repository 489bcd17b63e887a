"""What a decoder has to know of an image's bytes before and after it: headers, which side is up, gray values to levels.

In: encoded bytes, or a picture that Pillow has opened. Out: sizes, an orientation, 8-bit levels. `nst_data.images` decodes with these.
"""
