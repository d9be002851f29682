"""The mathematics of the paper: attention (eq. 1), Gumbel-Softmax, expected cost, objectives (eqs. 2, 3).

Nothing here knows a model or a recipe: tensors in, tensors out.
"""
