"""Between what people see and what the decoder reads: pictures and latents, text and ids."""
