"""Putting scenario data where HELM looks for it, so that it downloads nothing."""
