"""Textual inversion: nothing but the vectors of new words is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora.files.metadata import EMBEDDING as KIND
from lib_lora.files.metadata import modelspec
from lib_lora.ports import DiffusionModel
from lib_lora.train.captions import Dataset
from lib_lora.train.config import JobConfig
from lib_lora.train.learners import Learner
from lib_lora.train.methods.base import EMBEDDING, Method, Product
from lib_lora.train.tokens import (
    TokenLearner,
    file_stem,
    new_tokens,
    refuse_unread,
    refuse_unsaid,
    words_of,
    write_embedding,
)

if TYPE_CHECKING:
    from lib_lora.train.session import Session


class TextualInversion(Method):
    """One embedding file for each new word (Gal et al. 2022, https://arxiv.org/abs/2208.01618)."""

    name = "textual_inversion"

    def products(self, job: JobConfig, stem: str) -> tuple[Product, ...]:
        return embedding_products(job, stem)

    def dataset(self, job: JobConfig) -> Dataset:
        """Pictures whose captions say the new words."""
        return refuse_unsaid(job, super().dataset(job))

    def check(self, session: Session) -> None:
        refuse_unread(session)

    def learners(self, job: JobConfig, model: DiffusionModel) -> tuple[Learner, ...]:
        return (new_tokens(job, model),)

    def write(self, session: Session, folder: Path, products: Sequence[Product], step: int) -> None:
        write_embeddings(session, folder, products, step)


def embedding_products(job: JobConfig, stem: str) -> tuple[Product, ...]:
    """The embedding files of a job, in the order of its words.

    The webui calls an embedding by its file's name. Trained alone, one word takes the job's name; several words, and
    those of a network, which its captions have taught it, keep their own.
    """
    words = words_of(job)
    alone = len(words) == 1 and job.method.name == TextualInversion.name
    ending = stem.removeprefix(job.output.name)  # "" or the step
    names = [stem] if alone else [file_stem(word) + ending for word in words]
    return tuple(Product(EMBEDDING, f"{name}.{job.method.embedding_format}") for name in names)


def write_embeddings(session: Session, folder: Path, products: Sequence[Product], step: int) -> None:
    """Write each word's file."""
    from lib_lora.train.metadata import record_of

    learner = tokens_of(session)
    legacy, _ = session.base_hashes()
    spec = modelspec(record_of(session, step, KIND))
    for word, product in zip(words_of(session.job), products, strict=True):
        facts: dict[str, Any] = {
            "name": Path(product.name).stem,
            "step": step,
            "sd_checkpoint": legacy or None,
            "sd_checkpoint_name": session.model.name,
        }
        write_embedding(folder / product.name, learner.by_encoder(word), facts, spec)


def tokens_of(session: Session) -> TokenLearner:
    """The new words that a session trains."""
    return next(learner for learner in session.learners if isinstance(learner, TokenLearner))
