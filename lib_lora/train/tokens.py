"""New words and their vectors: textual inversion (Gal et al. 2022, https://arxiv.org/abs/2208.01618)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lib_lora.errors import BadConfig, BadDataset
from lib_lora.files.tensors import write_tensors
from lib_lora.keys.layer_key import TE1, TE2
from lib_lora.keys.versions import SDXL
from lib_lora.ports import DiffusionModel
from lib_lora.train.caption_ops import says
from lib_lora.train.captions import Dataset
from lib_lora.train.concepts import subjects_of
from lib_lora.train.config import JobConfig
from lib_lora.train.learners import Groups, Learner
from lib_lora.train.pickled import write_pickled
from lib_lora.train.sections import OptimizerSection

if TYPE_CHECKING:
    from lib_lora.train.session import Session

Vectors = Mapping[str, Mapping[str, Tensor]]  # {word: {part: (n, width)}}
ENCODERS = {TE1: "clip_l", TE2: "clip_g"}  # as files call the text encoders
ANY_TOKEN = 265  # what the webui writes for the token of "*"


class TokenLearner(Learner):
    """The vectors of new words; the text encoders that read them stand still unless something else trains them."""

    kind = "tokens"

    def __init__(self, vectors: Vectors, rate: float) -> None:
        self.rate = rate
        self.vectors = {
            word: {part: nn.Parameter(tensor.float()) for part, tensor in sorted(by_part.items())}
            for word, by_part in sorted(vectors.items())
        }

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return {f"{word}.{part}": p for word, by_part in self.vectors.items() for part, p in by_part.items()}

    def groups(self, section: OptimizerSection) -> Groups:
        """One group; without weight decay, which would draw words towards no meaning at all."""
        chosen = list(self.parameters().values())
        return [{"params": chosen, "lr": self.rate, "base_lr": self.rate, "weight_decay": 0.0, "words": True}]

    def attached(self, model: DiffusionModel, strength: float = 1.0) -> AbstractContextManager[None]:
        return model.extra_tokens(self.vectors)

    def by_encoder(self, word: str) -> dict[str, Tensor]:
        """The word's vectors by the text encoder's name in files, on the CPU."""
        return {ENCODERS[part]: p.detach().cpu().clone() for part, p in self.vectors[word].items()}


def new_tokens(job: JobConfig, model: DiffusionModel) -> TokenLearner:
    """A learner for every trigger of the job, begun at the meaning of the initial word. Raises BadConfig."""
    method = job.method
    if method.embedding_format == "pt" and model.version == SDXL:
        raise BadConfig("method.embedding_format = 'pt' has no form for SDXL; use safetensors")
    classes = [subject.data.class_word for subject in subjects_of(job)]
    vectors: dict[str, dict[str, Tensor]] = {}
    for word, class_word in zip(words_of(job), classes, strict=True):
        if not file_stem(word):
            raise BadConfig(
                f"the trigger {word!r} names no new word, and method.name = {method.name!r} trains one; "
                "give a word that means nothing yet, e.g. <mine>"
            )
        if word.lower() in (known.lower() for known in vectors):
            raise BadConfig(f"the trigger {word!r} is given twice; each concept needs a word of its own")
        begin = method.initial_word.strip() or class_word.strip() or "a"
        vectors[word] = {part: _rows(given, method.tokens) for part, given in model.token_vectors(begin).items()}
    return TokenLearner(vectors, method.token_lr)


def words_of(job: JobConfig) -> list[str]:
    """The triggers of a job's concepts, in order."""
    return [subject.data.trigger.strip() for subject in subjects_of(job)]


def refuse_unsaid(job: JobConfig, dataset: Dataset) -> Dataset:
    """The dataset, if every new word is in some caption. Raises BadDataset: what is never read is never learned."""
    for word in words_of(job):
        said = any(
            says(text, word)
            for item in dataset.items
            if not item.prior
            for text in (item.caption, *item.variants, item.trigger if job.data.prepend_trigger else "")
        )
        if word and not said:
            raise BadDataset(
                f"no caption says {word!r}, so method.name = {job.method.name!r} cannot learn it; set "
                "data.prepend_trigger = true, or write the word into the captions"
            )
    return dataset


def refuse_unread(session: Session) -> None:
    """Raises BadConfig if a new word lies beyond what is read of every caption that says it."""
    learner = next(one for one in session.learners if isinstance(one, TokenLearner))
    captions = dict.fromkeys(item.caption for item in session.dataset.items if not item.prior)
    with torch.enable_grad(), session.attached():
        for word, by_part in learner.vectors.items():
            saying = [caption for caption in captions if says(caption, word)]
            if saying and not any(_reads(session, caption, by_part) for caption in saying):
                raise BadConfig(
                    f"of no caption so much is read that {word!r} is in it; lower method.tokens (now "
                    f"{session.job.method.tokens}), raise training.max_tokens (now {session.job.training.max_tokens}), "
                    "or let captions begin with the word"
                )


def _reads(session: Session, caption: str, vectors: Mapping[str, Tensor]) -> bool:
    states = session.model.encode_text([caption], session.text_options).states
    if not states.requires_grad:
        return False
    return any(g is not None for g in torch.autograd.grad(states.sum(), list(vectors.values()), allow_unused=True))


def file_stem(word: str) -> str:
    """A word as a file may be called, without what no system takes in a name: <cat> becomes cat."""
    return "".join(sign for sign in word if sign not in '/\\:*?"<>|' and sign >= " ").strip(". ")


def _rows(given: Tensor, count: int) -> Tensor:
    """`count` rows of the initial word's vectors, again from the first where there are fewer."""
    return given[torch.arange(count) % len(given)].clone()


def write_embedding(
    path: Path, vectors: Mapping[str, Tensor], facts: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Write one word's vectors {encoder: (n, width)} as the webui's embedding file, .pt or .safetensors by the suffix.

    `facts`: name, step, sd_checkpoint, sd_checkpoint_name. Only SD1 and SD2 have a .pt form. `metadata` is
    further metadata of a .safetensors. Raises BadFile.
    """
    alone = vectors[ENCODERS[TE1]] if len(vectors) == 1 else None
    if path.suffix != ".pt":
        tensors = {"emb_params": alone} if alone is not None else dict(vectors)
        write_tensors(path, tensors, {**{name: str(value) for name, value in facts.items()}, **(metadata or {})})
        return
    assert alone is not None
    record = {"string_to_token": {"*": ANY_TOKEN}, "string_to_param": {"*": alone}, **facts}
    write_pickled(path, record)
