"""Which tags the trigger should absorb."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lib_lora.train.caption_edit import tag_counts, tags_of
from lib_lora.train.caption_ops import says, tag_name

SHARE = 0.6
# What is told of the picture, not of what it shows: number, framing, pose, light, place, medium, quality
_OF_THE_PICTURE = re.compile(
    r"background|viewer|\bview\b|\bshot\b|close-?up|portrait|upper body|full body|cowboy|from (above|below|side|behind)"
    r"|\b(solo|\d+(girl|boy|other)s?|multiple|no humans|standing|sitting|lying|walking|looking|facing|smile|smiling)\b"
    r"|\b((in|out)doors?|day|night|light(ing)?|shadow|blurry|bokeh|depth of field|sky|grass|tree|floor|wall|table)\b"
    r"|\b(photo\w*|realistic|drawing|painting|illustration|sketch|render|3d|monochrome|greyscale|black and white)\b"
    r"|\b(quality|masterpiece|highres|absurdres|resolution|signature|watermark|text|username|censored)\b"
)


@dataclass(frozen=True)
class Absorbed:
    """A tag in many captions: in `share` of them (0 to 1). `of_subject`: nothing speaks against its being its own."""

    tag: str
    count: int
    share: float
    of_subject: bool


def absorbed(captions: Sequence[str], trigger: str, class_word: str, share: float = SHARE) -> list[Absorbed]:
    """The tags that stand in at least this share of the captions, those of the subject first, the most frequent first.

    Why: a network learns of a picture what its caption does not account for. A trait that every picture shows, such as
    a red collar, and that every caption names goes to the words "red collar": the trigger alone will draw the subject
    without it. Left out of the captions it goes to the only word left that all of them share, the trigger. So the
    subject's own lasting traits are to be taken out, and everything that shall stay changeable is to stay in: places,
    poses, clothes worn in a few pictures. That is why only frequent tags are proposed; those that tell of the picture
    and not of the subject are marked, because what is the same in all pictures is absorbed as well, wanted or not.
    Trigger and class word are never proposed.
    """
    said = [caption for caption in captions if caption.strip()]
    found = [
        Absorbed(tag, count, count / len(said), not _OF_THE_PICTURE.search(tag_name(tag)))
        for tag, count in tag_counts(said).items()
        if len(said) > 1 and count >= share * len(said) and not _ours(tag, trigger, class_word)
    ]
    return sorted(found, key=lambda one: (not one.of_subject, -one.count, one.tag))


def _ours(tag: str, trigger: str, class_word: str) -> bool:
    """Whether a tag says the trigger, or is the class word."""
    if any(says(tag, word) for word in tags_of(trigger)):
        return True
    return tag_name(tag) in {tag_name(word) for word in tags_of(class_word)}
