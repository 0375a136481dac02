"""The page of a dataset: report.html, self-contained and without scripts.

In: a dataset. Out: one HTML file. It changes nothing else.

    page.py      the page: funnel, cut-offs, thumbnails, failures, slowest files
    read.py      clips and sources, read as columns
    charts.py    histograms with their cut-offs
    words.py     numbers, times and texts as the page writes them
    report.html  the template

May import audit, verdicts, captions, config and store.
"""
