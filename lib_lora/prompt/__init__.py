"""Tags in prompts: what they say, and which strength that means for each layer at each moment."""

from lib_lora.prompt.grammar import FORMS, KINDS, Tag, extract, find_tags, format_tag, parse_arguments
from lib_lora.prompt.presets import Presets
from lib_lora.prompt.request import NetworkRequest
from lib_lora.prompt.schedule import Moment, Schedule
from lib_lora.prompt.strengths import Strengths

__all__ = [
    "FORMS",
    "KINDS",
    "Moment",
    "NetworkRequest",
    "Presets",
    "Schedule",
    "Strengths",
    "Tag",
    "extract",
    "find_tags",
    "format_tag",
    "parse_arguments",
]
