"""Measuring ourselves beside others, under conditions that are written down with the figures."""
