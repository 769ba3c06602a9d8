"""What a job says beyond the defaults."""

from __future__ import annotations

from lib_lora.train.config import make_job
from lib_lora.train.differences import differences, written


def test_only_what_differs_with_its_default() -> None:
    assert differences(make_job({})) == []
    concepts = [{"trigger": "sks"}, {"trigger": "ohwx"}]
    job = make_job({"network.rank": 64, "data.delete_tags": ("a", "b"), "concept": concepts})
    found = {one.key: (one.value, one.default) for one in differences(job)}
    assert found["network.rank"][0] == 64 and found["network.rank"][1] == make_job({}).network.rank
    assert found["data.delete_tags"] == (("a", "b"), ())
    assert found["concept 2: trigger"] == ("ohwx", "")
    assert len(found) == 4 and all(one.help for one in differences(job))


def test_written_as_people_write() -> None:
    values = (True, False, 1e-4, 3, ("a", "b"), (), None, "", "x")
    assert [written(value) for value in values] == ["true", "false", "0.0001", "3", "a, b", "-", "-", "-", "x"]
