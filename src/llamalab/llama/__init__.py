"""The JAX Llama."""
