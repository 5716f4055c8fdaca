"""Inference: from a request to pictures with their recipes."""
