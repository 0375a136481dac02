"""Checks that a text is in the wanted language, by its script and, for Latin script, by common words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from captioning.checks.phrases import QUOTED

# The Unicode name of a letter starts with the name of its script.
_SCRIPTS = {
    "zh": ("CJK",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA"),
    "ko": ("HANGUL", "CJK"),
    "ru": ("CYRILLIC",),
    "uk": ("CYRILLIC",),
    "el": ("GREEK",),
    "ar": ("ARABIC",),
    "fa": ("ARABIC",),
    "he": ("HEBREW",),
    "hi": ("DEVANAGARI",),
    "th": ("THAI",),
}
_OWN = {"ja": ("HIRAGANA", "KATAKANA"), "ko": ("HANGUL",)}  # scripts that a text in the language must have

_COMMON = {
    "en": "the a an and of in on with is are to at his her it its their as by from while that this for into "
    "over one two who there he she they has which behind",
    "de": "der die das und ein eine einer einem einen in im mit auf ist sind von zu zum zur den dem des sich "
    "aus während vor hinter neben nicht er sie es wird trägt",
    "fr": "le la les un une des du de et est sont dans avec sur qui à au aux en son sa ses il elle pour par "
    "se devant derrière que l d tandis",
    "es": "el la los las un una unos unas de del y en con es son está están que por para su sus se al "
    "mientras lleva sobre a",
    "it": "il lo la i gli le un una uno di del della dei e è sono in con su che per da al alla nel nella si "
    "mentre suo sua sta",
    "pt": "o a os as um uma de do da dos das e é são em no na nos nas com que por para seu sua se ao "
    "enquanto está estão",
    "nl": "de het een en van in op met is zijn die dat te aan voor door naar er hij zij ze terwijl achter "
    "uit wordt om bij",
    "pl": "i w na z do się jest są że o po za przy nad pod przez który która ubrany stoi jego jej oraz a od",
    "sv": "och en ett den det de i på med är som av till han hon sig står medan för från vid bakom har",
    "ro": "și un o în cu pe de la este sunt care din o se ce unei unui lui ei pentru spre",
    "tr": "bir ve ile bu da de için olan üzerinde önünde içinde var gibi arka yanında",
    "id": "yang dan di dengan sebuah seorang ke dari pada untuk ini itu sedang adalah",
    "vi": "một và của đang trong trên với là có người được các những cho",
}
_WORDS = {language: frozenset(words.split()) for language, words in _COMMON.items()}
LANGUAGES = (*_WORDS, *_SCRIPTS)

_JUDGED = 12  # words: a text of this length must contain common words of the wanted language
_LEAST = 0.15  # the share of common words among the words of a usual text


def language(text: str, wanted: str = "en") -> float:
    """0 to 1: the degree to which a text is in the wanted language. Raises `ValueError` for other languages
    than `LANGUAGES`.

    The number is the share of letters in the language's script. For Latin script the share is multiplied by
    the count of the language's common words over the largest such count of any language. For texts of 12 or
    more words it is also multiplied by the share of common words over their share in usual texts, at most 1.
    A text without letters scores 0. Text in quotation marks is ignored.
    """
    if wanted not in LANGUAGES:
        raise ValueError(f"unknown language {wanted!r}: use one of {', '.join(LANGUAGES)}")
    spoken = _unquoted(text)
    scripts = Counter(unicodedata.name(c, "?").split()[0] for c in spoken if c.isalpha())
    letters = scripts.total()
    if not letters:
        return 0.0
    expected = _SCRIPTS.get(wanted, ("LATIN",))
    share = sum(scripts[script] for script in expected) / letters
    if wanted in _OWN:
        own = sum(scripts[script] for script in _OWN[wanted]) / letters
        return share * min(1.0, own / 0.1)
    if wanted == "zh":  # Japanese texts mix kana with Chinese characters
        return share * (0.0 if scripts["HIRAGANA"] + scripts["KATAKANA"] > 0.1 * letters else 1.0)
    if wanted in _SCRIPTS:
        return share
    return share * _by_words(re.findall(r"[^\W\d_]+", spoken.lower()), wanted)


def _by_words(words: list[str], wanted: str) -> float:
    counts = {name: sum(word in common for word in words) for name, common in _WORDS.items()}
    most = max(counts.values())
    if not most:
        return 1.0 if len(words) < _JUDGED else 0.0
    ratio = counts[wanted] / most
    if len(words) >= _JUDGED:
        ratio *= min(1.0, counts[wanted] / len(words) / _LEAST)
    return ratio


def _unquoted(text: str) -> str:
    """The text without quotations, such as the texts of signs, if at least 10 letters remain."""
    rest = QUOTED.sub(" ", text)
    return rest if sum(c.isalpha() for c in rest) >= 10 else text
