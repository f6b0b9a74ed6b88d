"""Off-policy evaluation from log ratios, judge scores and labels. NumPy and SciPy; knows no model."""
