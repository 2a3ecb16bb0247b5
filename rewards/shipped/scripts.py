"""Which script a text is written in, and what that says of its language."""

import unicodedata
from collections import Counter
from functools import lru_cache

SCRIPTS_OF_LANGUAGE: dict[str, frozenset[str]] = {
    language: frozenset(scripts.split("+"))
    for language, scripts in {
        "ar": "ARABIC", "arabic": "ARABIC", "fa": "ARABIC", "persian": "ARABIC",
        "ur": "ARABIC", "urdu": "ARABIC",
        "zh": "CJK", "chinese": "CJK",
        "ja": "CJK+HIRAGANA+KATAKANA", "japanese": "CJK+HIRAGANA+KATAKANA",
        "ko": "HANGUL", "korean": "HANGUL",
        "ru": "CYRILLIC", "russian": "CYRILLIC", "uk": "CYRILLIC", "ukrainian": "CYRILLIC",
        "bg": "CYRILLIC", "bulgarian": "CYRILLIC",
        "el": "GREEK", "greek": "GREEK", "he": "HEBREW", "hebrew": "HEBREW",
        "th": "THAI", "thai": "THAI",
        "hi": "DEVANAGARI", "hindi": "DEVANAGARI", "mr": "DEVANAGARI", "marathi": "DEVANAGARI",
        "ne": "DEVANAGARI", "nepali": "DEVANAGARI",
        "bn": "BENGALI", "bengali": "BENGALI", "pa": "GURMUKHI", "punjabi": "GURMUKHI",
        "gu": "GUJARATI", "gujarati": "GUJARATI", "ta": "TAMIL", "tamil": "TAMIL",
        "te": "TELUGU", "telugu": "TELUGU", "kn": "KANNADA", "kannada": "KANNADA",
        "ml": "MALAYALAM", "malayalam": "MALAYALAM", "ka": "GEORGIAN", "georgian": "GEORGIAN",
        "hy": "ARMENIAN", "armenian": "ARMENIAN", "am": "ETHIOPIC", "amharic": "ETHIOPIC",
        "km": "KHMER", "khmer": "KHMER", "lo": "LAO", "lao": "LAO",
        "my": "MYANMAR", "burmese": "MYANMAR", "si": "SINHALA", "sinhala": "SINHALA",
        "bo": "TIBETAN", "tibetan": "TIBETAN",
    }.items()
}  # fmt: skip
"""Languages, by code and name, whose script sets them apart from those in Latin letters."""

_LATIN = (
    "en english de german fr french es spanish pt portuguese it italian nl dutch sv swedish "
    "no norwegian da danish fi finnish pl polish cs czech hu hungarian ro romanian tr turkish "
    "vi vietnamese id indonesian sw swahili"
)
LATIN_LANGUAGES = frozenset(_LATIN.split())
"""Languages that share the Latin script: by script alone one cannot be told from another."""


def scripts_of(language: str) -> frozenset[str] | None:
    """The scripts a language, or a script given by its own name, is written in; None if unknown."""
    name = language.strip().casefold().partition("-")[0]
    if name in LATIN_LANGUAGES or name == "latin":
        return frozenset({"LATIN"})
    if name in SCRIPTS_OF_LANGUAGE:
        return SCRIPTS_OF_LANGUAGE[name]
    known = frozenset().union(*SCRIPTS_OF_LANGUAGE.values())
    return frozenset({name.upper()}) if name.upper() in known else None


def letters_by_script(text: str) -> Counter[str]:
    """How many letters of each Unicode script the text has, e.g. LATIN, CJK."""
    counts: Counter[str] = Counter()
    for character, count in Counter(text).items():
        script = _script(character)
        if script is not None:
            counts[script] += count
    return counts


@lru_cache(maxsize=4096)
def _script(character: str) -> str | None:
    # Marks belong to the letters of the scripts that write vowels above and below.
    if unicodedata.category(character)[0] not in "LM":
        return None
    # The first word of a letter's Unicode name is its script; width variants come before it.
    words = [
        word
        for word in unicodedata.name(character, "UNKNOWN").split()
        if word not in ("FULLWIDTH", "HALFWIDTH", "IDEOGRAPHIC")
    ]
    if words[0] == "COMBINING":
        return None
    return words[0].split("-")[0]
