"""Recursive language models: questions over texts that a model never sees whole."""
