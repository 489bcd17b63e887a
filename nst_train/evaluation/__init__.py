"""Evaluation: accuracy, calibration and robustness of classifiers.

Input: classifiers, and labeled images or a published set. Output: metrics by suite. Outcomes are cached for each image, so that an
interrupted evaluation resumes, and metrics are recorded for a teacher on request.
"""
