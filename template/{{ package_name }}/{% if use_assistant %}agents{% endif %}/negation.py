"""Telling "it is risk-free" from "it is not risk-free".

Only what can be decided from the words next to the phrase counts. Everything else is taken for a
promise: a false alarm costs a second look, a promise that slips through breaks the law.
All texts are folded (see `text_matching`).
"""

import re

from .text_matching import Span

_NEAR = 120
_SENTENCE_END = re.compile(r"[.!?;](?= |$|\n)|\n")

_NOT = r"(?:not|never|neither|nor|cannot|hardly|[a-z]{2,6}n't|(?:is|are|was|were|ca|do|does)nt)"
# Words that may stand between the negation and the phrase. "only", "just" and "merely" are missing
# on purpose: "not only risk-free but …" is a promise.
_SMALL_WORD = (
    r"an?|the|any|as|be|been|being|entirely|completely|totally|fully|wholly|truly|really|actually"
    r"|ever|always|necessarily|100%|considered|described|regarded|seen|sold|in fact|of course"
    r"|however|at all|such"
)
_FILLER = (
    rf"(?:{_SMALL_WORD}|all|is|are|was|were|called|so-called|you|it|this|that|these|they|them"
    r"|products?|investments?)"
)
_FILLERS = rf"(?:[ ,\"']{{1,3}}{_FILLER}){{0,5}}[ ,\"'(]{{1,3}}$"

_BEFORE = [
    # "is not (entirely) risk-free", "isn't a risk-free …", "far from risk-free"
    re.compile(
        rf"\b(?:{_NOT}|far from|no longer)(?:[ ,\"']{{1,3}}(?:{_SMALL_WORD})){{0,4}}[ ,\"'(]{{1,3}}$"
    ),
    # "no such thing as a risk-free …", "there are no guaranteed returns"
    re.compile(r"\bno(?: such thing as)?(?: an?| any)?[ \"'(]{1,2}$"),
    # "we do not offer guaranteed returns", "nobody can promise that it is risk-free"
    re.compile(
        rf"\b(?:{_NOT}|unable to|not able to|nobody can|no one can|refuse to)(?: ever| be)?"
        r" (?:offer|promise|provide|give|claim|say|state|suggest|imply|advertise|sell|guarantee"
        r"|believe|expect|assume|use the words?|call|describe|offering|promising|claiming|saying)"
        rf"{_FILLERS}"
    ),
    # "by no means risk-free", "in no way", "rather than risk-free"
    re.compile(r"\b(?:by no means|in no way|rather than|instead of|anything but)(?: an?| any)? $"),
    # "it isn't possible to guarantee returns"
    re.compile(rf"\b(?:{_NOT} possible|impossible|{_NOT} able|unable) to $"),
    # "it would be wrong to call it risk-free", "it isn't true that our bond is risk-free"
    re.compile(
        r"\b(?:wrong|incorrect|misleading|false|untrue|dishonest"
        r"|(?:not|never|isn't) (?:true|correct|right|accurate|fair))"
        r" (?:to (?:call|say|describe|claim|suggest|think|believe|promise|assume)|that)"
        rf"(?: (?!(?:but|and|because|so|{_NOT})\b)[\w'-]{{1,20}}){{0,5}} $"
    ),
    # "be wary of anyone promising guaranteed returns", "scammers promise guaranteed returns"
    re.compile(
        r"\b(?:beware|wary|avoid|careful|suspicious|watch out|scammers?|fraudsters?|criminals?"
        r"|(?:don't|do not|never) (?:believe|trust))\b"
        r"(?:(?!\b(?:we|our|us|but|and)\b)[^.!?;:,\n]){0,60}"
        rf" (?:promis|offer|claim|guarantee|advertis)(?:e|es|s|ing)?{_FILLERS}"
    ),
    # "you asked whether our bond is risk-free"
    re.compile(r"\byou asked (?:me |us )?(?:whether|if) (?:[\w']{1,20} ){0,6}$"),
]
# "no investment is risk-free", "nothing is guaranteed to return …"
_BEFORE_UNLESS_EXCEPTED = re.compile(
    r"\b(?:no(?! other| better| doubt| wonder| matter| bank| account like)(?: [\w-]{1,20}){1,3}"
    r"|none(?: of [\w ]{1,30})?|nothing(?: [\w-]{1,20}){0,3}|nobody|no one)"
    r" (?:is|are|was|can be|could be|will be|comes with|come with|carries|offers|offer|promises"
    rf"|promise|has|have|gives|give){_FILLERS}"
)
_EXCEPTED = re.compile(
    r"\b(?:but|except|unless|like|apart from|other than|besides|until|than|without us|elsewhere)\b"
)
_AFTER = re.compile(
    # "guaranteed returns do not exist", "risk-free investments are a myth"
    r"^[\"')]?(?: [\w-]{1,20}){0,2} (?:(?:do not|don't|does not|doesn't|never) (?:exist|happen)"
    r"|(?:is|are) (?:an? |always an? )?(?:myth|lie|scam|warning sign|red flag|fraud)"
    r"|(?:is|are|would be) (?:wrong|incorrect|misleading|false|untrue|dishonest)"
    r"|(?:is|are) (?:not|never) (?:possible|available|offered|on offer|real|true|permitted|allowed)"
    r"|(?:isn't|aren't) (?:possible|available|offered|on offer|real|true|permitted|allowed))\b"
)
_CLAUSE_END = re.compile(r"[,;:]| and | or | but ")
_TAKES_BACK = re.compile(
    r"\b(?:not|never|cannot|hardly|no|nobody|nothing|wrong|[a-z]{2,6}n't"
    r"|(?:is|are|was|were|ca|do|does)nt)\b"
)
_TAKEN_BACK = re.compile(
    r"\b(?:elsewhere|anywhere else|from (?:other|another|any other)|like ours|lightly|for nothing)\b"
)

_QUOTED = [
    re.compile(r'"[^"\n]{1,300}"'),
    re.compile(r"(?<![\w'])'(?=[\w\"])[^\"\n]{1,300}?(?<=[\w.,!?\"])'(?![\w'])"),
]
_ATTRIBUTED_BEFORE = [
    # you said: "…", your message mentions "…"; not "you asked, we deliver: …"
    re.compile(
        r"\b(?:you|your (?:message|email|letter|question))(?: [\w']{1,12}){0,2}"
        r" (?:said|say|says|asked|ask|asks|wrote|write|writes|mentioned|mention|mentions|quoted"
        r"|saw|read|heard|used|received)(?! (?:for|to) )\b(?! and )[^.!?:;,\n\"]{0,40}:? ?$"
    ),
    # the words "…", any claim of "…"
    re.compile(
        r"(?<!in )\b(?:the|any|no|that|those|these|says|like) (?:words?|phrases?|terms?"
        r"|expressions?|claims?|promises?)(?: of| like| such as)?[ ,:]{1,2}$"
    ),
]
_JUDGED_AFTER = re.compile(
    r"^[^.!?\n\"]{0,40}\b(?:misleading|false|untrue|not true|isn't true|scam|scams|fraud"
    r"|fraudulent|red flag|warning sign|not allowed|prohibited|banned|beware)\b"
)


def _sentence_around(text: str, span: Span) -> tuple[str, str]:
    """What stands before and after a span in its own sentence, as far as it is near."""
    before = text[max(0, span.start - _NEAR) : span.start]
    ends = [match.end() for match in _SENTENCE_END.finditer(before)]
    after = text[span.end : span.end + _NEAR]
    stop = _SENTENCE_END.search(after)
    return before[ends[-1] if ends else 0 :], after[: stop.start() if stop else None]


def is_negated(text: str, span: Span) -> bool:
    """Whether the sentence says the opposite of the phrase at `span`."""
    before, after = _sentence_around(text, span)
    if _TAKEN_BACK.search(after):
        return False
    if any(_denies(pattern, before) for pattern in _BEFORE) or _AFTER.search(after):
        return True
    return _denies(_BEFORE_UNLESS_EXCEPTED, before) and not _EXCEPTED.search(after)


def _denies(pattern: re.Pattern[str], before: str) -> bool:
    """Whether there is a negation, and not one more before it that takes it back."""
    found = pattern.search(before)
    if found is None:
        return False
    clause = _CLAUSE_END.split(before[: found.start()])[-1]
    return not _TAKES_BACK.search(clause)


def is_quotation(text: str, span: Span) -> bool:
    """Whether the phrase at `span` is inside quotation marks *and* somebody else's words.

    Quotation marks alone excuse nothing: 'our "risk-free" bond' is a promise, and a satisfied
    customer's words in an advertisement are the advertiser's.
    """
    window = max(0, span.start - 400)
    for pattern in _QUOTED:
        for quote in pattern.finditer(text, window, span.end + 400):
            if quote.start() < span.start and span.end < quote.end():
                before, _ = _sentence_around(text, Span(quote.start(), quote.start()))
                _, after = _sentence_around(text, Span(quote.end(), quote.end()))
                if any(p.search(before) for p in _ATTRIBUTED_BEFORE) or _JUDGED_AFTER.search(after):
                    return True
    return False
