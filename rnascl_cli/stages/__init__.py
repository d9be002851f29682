"""The verbs as plain functions: recipe and typed artifacts in, typed artifact out.

Each module reads as the paper's section on it does.
"""
