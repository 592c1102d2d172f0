"""Read safetensors one tensor at a time, and say what each weight matrix is for."""
