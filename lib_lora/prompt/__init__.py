"""Tags in prompts: what they say, and which strength that means for each layer at each moment."""

from lib_lora.prompt.request import FORMS, KINDS, NetworkRequest, extract, parse_arguments
from lib_lora.prompt.strengths import Moment, Strengths

__all__ = ["FORMS", "KINDS", "Moment", "NetworkRequest", "Strengths", "extract", "parse_arguments"]
