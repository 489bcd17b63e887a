"""A recipe: the YAML file of a whole run, its settings, and its steps.

Input: a file, and values that override its own. Output: checked settings, errors with their line, the sources it names, what is
already finished, and each step of Algorithm 1 for `nst_train.noisy_student`.
"""
