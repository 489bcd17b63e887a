"""What decoders need to know about an image besides its pixels: headers, orientation, and how to scale gray values to 8 bits.

Input: encoded bytes, or an image opened with Pillow. Output: sizes, an orientation, 8-bit levels. Used by `nst_data.images`.
"""
