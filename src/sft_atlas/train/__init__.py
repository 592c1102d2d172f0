"""Train trajectories: one loop for full fine-tuning and LoRA, resumable bit for bit."""
