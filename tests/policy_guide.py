"""Policies as the guide of an evaluation with local models writes them, white space and comments included."""

GUIDE = """
# Example configuration for llama.cpp
policies:
  p0:
    provider: "llama_cpp"
    model: "~/models/llama-3-8b-instruct.Q4_K_M.gguf"
    temperature: 0.5
    seed: 42
    n_ctx: 4096
    n_gpu_layers: -1  # Use all GPU layers
    
  pi_clone:
    provider: "llama_cpp"
    model: "~/models/llama-3-8b-instruct.Q4_K_M.gguf"  # Same as p0
    temperature: 0.5
    seed: 42
    n_ctx: 4096
    n_gpu_layers: -1
    
  pi_bigger_model:
    provider: "llama_cpp"
    model: "~/models/llama-3-70b-instruct.Q4_K_M.gguf"  # Larger model
    temperature: 0.5
    seed: 42
    n_ctx: 4096
    n_gpu_layers: 35  # Partial offloading for large models
    
  pi_bad:
    provider: "llama_cpp"
    model: "~/models/llama-3-8b-instruct.Q4_K_M.gguf"
    temperature: 1.0  # Higher temperature
    seed: 42
    n_ctx: 4096
    n_gpu_layers: -1
    system_prompt: "You are an unhelpful assistant."
"""  # noqa: W293  (as the guide has it)
