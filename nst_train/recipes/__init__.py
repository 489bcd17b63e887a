"""A recipe: the YAML file of a whole run, its settings, and its steps.

In: a file, and values in place of its own. Out: checked settings, errors with their line, the sources it names, what of
it is finished already, and each step of Algorithm 1 for `nst_train.noisy_student`.
"""
