"""Other toolkits for post-training quantization, one module each."""
