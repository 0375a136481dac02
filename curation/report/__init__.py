"""Writes the pages of a dataset, which are self-contained and have no scripts.

In: a dataset. Out: HTML files. This room changes nothing else.

    page.py      report.html: funnel, cut-offs, thumbnails, failures, slowest files
    sheet.py     advice.html: clips on both sides of cut-offs of now, and of others
    tiles.py     thumbnails of clips on both sides of a cut-off
    columns.py   what the columns mean, and the templates
    read.py      reads clips and sources as columns
    charts.py    histograms with their cut-offs
    cameras.py   clips by how their camera moves
    words.py     formats numbers, times and texts for the page
    report.html  the template; parts.html has what pages share

May import audit, verdicts, captions, config and store.
"""
