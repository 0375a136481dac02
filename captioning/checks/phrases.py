"""Patterns of phrases that models write instead of a caption: refusals, introductions, chat templates."""

from __future__ import annotations

import re


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


def _one_of(phrases: str) -> str:
    """A pattern from phrases that bars separate. A space in a phrase matches any white space."""
    return "(?:" + "|".join(p.strip().replace(" ", r"\s+") for p in phrases.split("|")) + ")"


# Quoted text: texts of signs and speech. An apostrophe within a word does not end a quotation.
QUOTED = re.compile(
    r"\"[^\"]{0,400}\"|“[^”]{0,400}”|«[^»]{0,400}»|「[^」]{0,400}」|"
    r"(?<!\w)['‘](?:[^'’]|(?<=\w)['’](?=\w)){0,400}['’](?!\w)"
)

# Marks of chat templates, and names of speakers at the start.
FRAME = _any(
    r"<\|?/?(?:im_start|im_end|endoftext|eot_id|start_header_id|end_of_utterance|vision_start|vision_end)\|?>",
    r"<\|?/?(?:image_pad|video_pad|image|video|s)\|?>",
    r"\[/?INST\]",
    r"<(?:start|end)_of_turn>",
    r"^\s*(?:user|assistant|human|system)\s*:",
)

# --- refusals ---

# Where a sentence by the model can start.
_AT = r"(?:^|[.!?]\s*|\b(?:sorry|apologi[sz]e|apologies|unfortunately|however|but|so)\b[,;:.]?\s+(?:but\s+)?)"
_CANNOT = _one_of(
    "cannot | can not | can['’]t | could not | couldn['’]t | am unable to | am not able to |"
    "am not capable of | won['’]t be able to | do not have the ability to | don['’]t have the ability to |"
    "don['’]t have the capability to"
)
_I_AM_UNABLE = r"I['’]m\s+(?:unable to|not able to|not capable of)"
_DO = _one_of(
    "actually | directly | accurately | really | help | assist | provide | see | view | watch | analy[sz]e |"
    "describe | identify | determine | generate | create | fulfil | fulfill | comply | process | access |"
    "caption | interpret | open | display | tell | answer | complete | do | viewing | seeing | describing |"
    "analy[sz]ing | processing | continue | make | give | be | discern | recogni[sz]e"
)
_MEDIA = r"(?:video|image|picture|photo|clip|frame|file|media|content)s?"

REFUSALS = _any(
    rf"{_AT}(?:I\s+{_CANNOT}|{_I_AM_UNABLE})\s+{_DO}\b",
    r"^\W*(?:I['’]m|I am|we['’]re|we are)\s+(?:very |so |really )?(?:sorry|afraid)\b",
    r"^\W*(?:sorry|my apologies|apologies|I apologi[sz]e)\s*[,.!]",
    r"\bas an? (?:AI|artificial intelligence|language|vision|multimodal|text)[\w -]{0,20}?"
    r"(?:model|assistant)\b",
    r"\bas an AI,\s*I\b",
    r"\bI(?:['’]m| am) (?:just |only )?an? (?:AI|language model|text-based)\b",
    rf"^\W*(?:(?:is|am)\s+)?(?:unable to|{_CANNOT})\s+{_DO}\b",
    r"^\W*no (?:caption|description|answer|video|image)s?(?: is| was)? (?:available|possible|found)\b",
    rf"{_AT}I\s+(?:do not|don['’]t)\s+(?:see|receive|know what|have (?:access|enough|any|sufficient))\b",
    rf"{_AT}I\s+(?:need|would need|require)\s+(?:more|the|a|to see)\b",
    rf"{_AT}please\s+(?:provide|upload|share|attach|send|resend)\b",
    rf"\bno\s+{_MEDIA}\s+(?:was|were|is|are|has been|have been)\s+"
    r"(?:provided|attached|uploaded|included|given)",
    rf"\b{_MEDIA}\s+(?:cannot|can not|could not|can['’]t)\s+be\s+(?:loaded|processed|described|analy[sz]ed)",
    r"\b(?:it is|it['’]s) (?:not possible|impossible) (?:for me )?"
    r"to (?:describe|provide|determine|caption|give)\b",
    r"\b(?:against|violates?) (?:my|our|the) (?:guidelines|policy|policies|programming|content policy)",
    r"(?:抱歉|对不起|很遗憾)[，,。 ]*(?:但|但是)?(?:我|无法|不能)",
    r"作为(?:一个|一名)?(?:AI|人工智能)",
)

# --- introductions ---

_ADJECTIVE = _one_of(
    "short | brief | first | second | third | last | final | opening | initial | given | provided | entire |"
    "whole | following | attached | above | uploaded | animated | close-up | black-and-white | colou?r |"
    "time-?lapse | slow-motion | aerial | drone | looping | still | silent | video | image | ai-generated |"
    "static | single | next | same | eight | few | sequence of | series of | set of | collection of"
)
_SHOWN = (
    rf"(?:{_ADJECTIVE}\s+){{0,3}}"
    + _one_of(
        "videos? | clips? | footage | images? | pictures? | photos? | photographs? | frames? | scenes? |"
        "shots? | sequences? | animations? | screenshots? | gifs? | visuals? | descriptions? | captions? |"
        "snippets? | recordings? | films? | excerpts?"
    )
    + r"(?:\s+(?:clip|footage|sequence|frames|snippet))?"
)
_SHOWS = _one_of(
    r"shows? | showcas\w+ | depicts? | captur\w+ | featur\w+ | presents? | displays? | begins? | starts? |"
    r"opens? | illustrates? | portrays? | contains? | consists? | appears? | provides? | focus\w* |"
    r"follows? | seems? | highlights? | demonstrates? | documents? | unfolds? | takes? place | takes us |"
    r"ends? | transitions? | describes? | is of | is set | is shot | is filmed | is about | is an? |"
    r"is from | is titled | are of | are from | was shot | was filmed | was taken"
)
_THE = r"(?:the|this|these|that|our|your)"
_SELF = _one_of(
    "captions? | descriptions? | summary | answers? | outputs? | response | paragraph | title | sentences? |"
    "overview | transcript | breakdown | json"
)

BOILERPLATE = _any(
    # The video shows …, this short clip begins …, a video of …
    rf"(?:{_THE}\s+)?{_SHOWN}(?:\s+(?:that|which|you (?:sent|provided|uploaded)))?"
    rf"\s+(?:\w+ly\s+|also\s+|then\s+)?{_SHOWS}\b",
    rf"(?:an?|some)\s+(?:{_ADJECTIVE}\s+){{0,3}}(?:video clip|video|clip|footage|gif)\s+"
    r"(?:of|showing|that shows|depicting|in which|featuring|capturing)\b",
    # In this video, …
    rf"(?:in|throughout|during|from|across|at the (?:beginning|start) of)\s+(?:each|{_THE})\s+{_SHOWN}"
    r"(?:\s*[,:]|\s+(?:we|you|i|there|one can)\b)",
    rf"in\s+this\s+{_SHOWN}\s+(?:a|an|the|two|three|several|some|people)\b",
    # Here is a description …, Caption: …
    r"(?:here|below|this|the following)(?:['’]s|\s+is|\s+are)\s+(?:(?:an?|the|your|my)\s+)?"
    rf"(?:[\w-]+\s+){{0,4}}?{_SELF}\b",
    rf"(?:(?:short|detailed|long|video|image|brief|clip|scene|visual|one-sentence|rewritten)\s+)*{_SELF}"
    r"\s*[*_\"'”]*\s*[:：]",
    # Sure, …, Based on the frames …, We can see …
    r"(?:sure|certainly|of course|absolutely|okay|ok|alright|gladly|no problem|great|as requested|"
    r"happy to help)(?:\s*[,!.:;…]|\s+[-–—]\s|\s+(?:thing|here|i can|i['’]ll|let me|let['’]s)\b)",
    rf"(?:based on|according to|judging (?:by|from)|looking at)\s+{_THE}\s+"
    rf"(?:(?:provided|given)\s+)?(?:{_SHOWN}|information|context)\b",
    r"(?:we|you|i)\s+(?:(?:can|could|may|will)\s+)?(?:(?:also|clearly)\s+)?"
    r"(?:see|observe|notice|witness|are shown|are looking|am looking|are presented)\b",
    r"frames?\s*\#?\d+\s*[:,(–—-]",
    r"the\s+(?:user|prompt|question)\s+(?:asks|wants|is asking|provided|requests)",
    r"(?:视频|图片|图像|画面)(?:中|展示|显示)|(?:这段|这个|该)视频",
)
