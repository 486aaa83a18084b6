"""Measuring: engines side by side, the core's peak, layers one by one, and what this machine has."""
