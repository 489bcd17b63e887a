"""Evaluation: accuracy, calibration and robustness of classifiers.

In: classifiers, and labeled images or a published set. Out: metrics by suite. Outcomes are cached for each image, so that an interrupted
evaluation resumes, and metrics are recorded for a teacher on request.
"""
