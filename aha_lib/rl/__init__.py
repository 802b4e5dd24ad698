"""Sampling, and reinforcement learning on what was sampled: arrays in, arrays out."""
