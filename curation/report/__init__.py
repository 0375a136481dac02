"""Writes the page of a dataset: report.html is self-contained and has no scripts.

In: a dataset. Out: one HTML file. This room changes nothing else.

    page.py      the page: funnel, cut-offs, thumbnails, failures, slowest files
    read.py      reads clips and sources as columns
    charts.py    histograms with their cut-offs
    cameras.py   clips by how their camera moves
    words.py     formats numbers, times and texts for the page
    report.html  the template

May import audit, verdicts, captions, config and store.
"""
