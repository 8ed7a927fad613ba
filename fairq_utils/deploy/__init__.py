"""Deployment: quantized models as files for engines, their cards, and predictions from them."""
