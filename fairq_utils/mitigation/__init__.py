"""Fairness-aware quantization: group-aware ranges, allocation, training, and a certificate."""
