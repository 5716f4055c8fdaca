# Copyright 2026 The InstantStyle for diffusers authors
# SPDX-License-Identifier: Apache-2.0
"""Speed and memory at real SDXL dimensions, side by side with stock diffusers: `python -m benchmarks`."""
