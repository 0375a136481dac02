"""Writes the page of a dataset: report.html is self-contained and has no scripts.

In: a dataset. Out: one HTML file. This room changes nothing else.

    page.py      report.html: funnel, cut-offs, thumbnails, failures, slowest files
    tiles.py     thumbnails of clips on both sides of a cut-off
    columns.py   what the columns mean, and the templates
    read.py      reads clips and sources as columns
    charts.py    histograms with their cut-offs
    words.py     formats numbers, times and texts for the page
    report.html  the template; parts.html has what pages share

May import audit, verdicts, captions, config and store.
"""
