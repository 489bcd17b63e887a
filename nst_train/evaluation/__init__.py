"""What was learned: accuracy, calibration and robustness of classifiers.

In: classifiers and labeled images or a published set. Out: numbers by suite, kept image by image so that an interrupted evaluation goes
on, and written into a teacher's metrics where asked.
"""
