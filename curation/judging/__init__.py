"""Compares a dataset with a curator's labels, and proposes other cut-offs. It writes one page, and no table.

In: a dataset, and a file of labels. Out: a `Judged` or an `Advice`, which say their result as lines.

    labels.py      reads a file of labels: frame numbers of films, or rows of paths and times
    places.py      finds the labelled sources in the dataset; labels become presentation times
    shots.py       what became of each labelled shot
    changes.py     labelled cuts and gradual transitions beside the boundaries of clips
    agreement.py   four counts, and what follows from them: agreement, kappa, precision, recall
    judged.py      `reelmill judge`: all of these together
    result.py      what was found, as counts and lists
    lines.py       the result of `reelmill judge` as lines
    advice.py      `reelmill advise`: what rules cost, other cut-offs, and a contact sheet
    findings.py    what was found, as counts and cut-offs
    proposals.py   the findings as lines
    costs.py       what each rule rejects alone, and what no other rule rejects
    share.py       cut-offs for a wanted share of the clips or seconds
    fitted.py      the cut-off of one column that agrees best with labels, and how sure it is

May import report, verdicts, captions, sources, config and store.
"""
