"""Human review: answers, one file per reviewer; frozen versions of them; and the choice of which images to ask about.

`answers` stores each answer as it is given, under the hash of its image, so that it applies to every generation and to other copies of
the pool. If reviewers disagree, an image is disputed until one of them changes their answer. `picks` are the images that a person should
look at: scored by soft labels and given features, spread over classes and features.
"""
