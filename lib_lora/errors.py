"""Every error lib_lora raises on purpose. Each message quotes the value and ends with what to do."""

from __future__ import annotations


class LoraError(Exception):
    """Base of all errors a user can cause or mend."""


class BadTag(LoraError):
    """A `<lora:...>` tag that cannot be read."""


class NetworkNotFound(LoraError):
    """No file of that name in the networks folders, or more than one."""


class BadFile(LoraError):
    """A file that is truncated, not what its name says, or not safe to read."""


class UnknownFormat(LoraError):
    """A readable file in which no network layer was recognised."""


class WrongBaseModel(LoraError):
    """A network or checkpoint made for another kind of base model."""


class UnmatchedKeys(LoraError):
    """Layers of a network that the model does not have."""


class ShapeMismatch(LoraError):
    """A layer whose tensors do not fit the weight they are meant for."""


class BadConfig(LoraError):
    """A training setting that is missing, unknown or out of range; the message names the field."""


class BadDataset(LoraError):
    """A picture folder from which nothing can be trained."""


class TrainingFailed(LoraError):
    """A run that ended with an error; the message says at which step and why."""


class Cancelled(LoraError):
    """A run that the user stopped."""


class Paused(Cancelled):
    """A run that the user stopped for a while."""
