"""What people say of images: their answers, one file for each reviewer, and frozen versions of them; and which images to ask them about.

`answers` keeps each answer as it is given, known by the hash of its image, so that it holds for every generation and for
another copy of the pool. Where reviewers disagree an image is disputed until one of them changes their answer.
`picks` are the images that a person should look at: scores from soft labels and given features, spread over classes and features.
"""
