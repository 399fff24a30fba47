"""Inference: folded models, exported programs, and the runners of both."""
