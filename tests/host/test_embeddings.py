"""Embeddings that come inside network files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from lib_lora.host.tag import LoraTag
from tests.host.fakes import words, write_loud


class TestEmbeddings:
    def test_they_are_known_while_the_tag_is_there(
        self, webui: Any, tag: LoraTag, picture: Any, tmp_path: Path
    ) -> None:
        database = webui.sd_hijack.model_hijack.embedding_db
        write_loud(tmp_path / "Lora" / "with.safetensors", **{"bundle_emb.sks.clip_l": torch.ones(3, 768)})
        tag.activate(picture, [words("with")])
        made = database.word_embeddings["sks"]
        assert made.vec.shape == (3, 768) and made.vectors == 3 and made.shape == 768 and made.shorthash == "with"
        assert [pair[1] for pair in database.ids_lookup[3]] == [made]
        tag.activate(picture, [words("with")])
        assert database.word_embeddings["sks"] is made
        tag.activate(picture, [])
        assert database.word_embeddings == {} and database.ids_lookup == {}

    def test_the_infotext_option_and_the_users_own_word_are_respected(
        self, webui: Any, tag: LoraTag, picture: Any, tmp_path: Path
    ) -> None:
        database = webui.sd_hijack.model_hijack.embedding_db
        own = SimpleNamespace(name="own")
        database.register_embedding(own, webui.shared.sd_model)
        webui.shared.opts.lora_bundled_ti_to_infotext = False
        vectors = {f"bundle_emb.{word}.clip_l": torch.ones(1, 768) for word in ("own", "sks")}
        write_loud(tmp_path / "Lora" / "with.safetensors", **vectors)
        tag.activate(picture, [words("with")])
        assert database.word_embeddings["own"] is own and database.word_embeddings["sks"].shorthash is None
        assert any("'own'" in comment for comment in picture.comments)
        tag.restore()
        assert list(database.word_embeddings) == ["own"] and len(database.ids_lookup[3]) == 1

    def test_one_for_another_model_is_left_out_and_told(
        self, webui: Any, tag: LoraTag, picture: Any, tmp_path: Path
    ) -> None:
        webui.sd_hijack.model_hijack.embedding_db.expected_shape = 1024
        write_loud(tmp_path / "Lora" / "with.safetensors", **{"bundle_emb.sks.clip_l": torch.ones(3, 768)})
        tag.activate(picture, [words("with")])
        assert webui.sd_hijack.model_hijack.embedding_db.word_embeddings == {}
        assert any("'sks'" in comment and "another base model" in comment for comment in picture.comments)
