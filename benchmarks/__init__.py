"""Measurements that the documents quote: ratios taken side by side in one run. They gate nothing."""
