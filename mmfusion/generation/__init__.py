"""From prompts to pictures and sentences over one KV cache."""
