"""Pipelines: the variants, Modular Diffusers, distilled models and HiDiffusion."""
