"""The distillation losses that Figure 11 compares with, one published loss a file.

Tensors in, a scalar out. Where the published code departs from the paper's formula, the code's form is taken: the
weights that are published for these losses were found with it.
"""
