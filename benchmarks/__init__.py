"""Measurements for the documents: ratios of two measurements in the same run. No test depends on them."""
