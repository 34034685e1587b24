"""SQL is judged by its result, and has no side effects."""

from pathlib import Path

import pytest

from polyphi.data.shards import Sample
from polyphi_eval import sql_results
from polyphi_eval.benchmarks.text import spider
from polyphi_eval.services import sandbox
from polyphi_eval.sources import Data

isolated = pytest.mark.skipif(sandbox.unavailable() is not None, reason="no namespaces")


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    spider.benchmark.write_fixtures(tmp_path)
    return list(spider.load(Data(tmp_path)))


def test_prompts_start_with_four_solved_questions(samples: list[Sample]) -> None:
    text = samples[0].prompt[0].text
    assert text.count("CREATE TABLE") == 5 and text.count("-- Question:") == 5
    assert text.count("SELECT count(*)") == 4 and text.endswith("-- Query:")


@isolated
def test_queries_are_judged_by_their_results(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spider, "SECONDS", 0.5)
    hills, by_size, _ = samples
    expected = {
        "SELECT name FROM towns WHERE place='hills' ORDER BY name DESC;": (hills, 1),
        "```sql\nSELECT t.name FROM towns AS t\nWHERE t.place LIKE 'hills'\n```": (hills, 1),
        "SELECT name FROM towns": (hills, 0),
        "SELECT size, name FROM towns ORDER BY size": (by_size, 1),
        "SELECT name, size FROM towns ORDER BY size DESC": (by_size, 0),
        "SELECT name FROM nowhere": (hills, 0),
        "The answer is SELECT name FROM towns WHERE place = 'hills'": (hills, 0),
        "DROP TABLE towns": (hills, 0),
        "ATTACH DATABASE '/box/other' AS other": (hills, 0),
        "SELECT load_extension('/box/x')": (hills, 0),
        "SELECT zeroblob(2000000000)": (hills, 0),
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n": (
            hills,
            0,
        ),
    }
    scores = spider.score_many([([sql], sample) for sql, (sample, _) in expected.items()])
    assert [s.value for s in scores] == [right for _, right in expected.values()]
    assert scores[6].parts["lenient"] == 1


def test_large_databases_are_not_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spider, "MAX_EMBEDDED_BYTES", 10)
    spider._embedded_database.cache_clear()
    spider.benchmark.write_fixtures(tmp_path)
    (first, *_) = spider.load(Data(tmp_path))
    assert "database" not in first.meta
    path = Path(first.meta["path"])
    if sandbox.unavailable() is None:
        assert spider.score_many([([first.answer], first)])[0].value == 1
        path.unlink()
        with pytest.raises(ValueError, match="can't be scored again without it"):
            spider.score_many([([first.answer], first)])
    spider._embedded_database.cache_clear()


def test_rows_and_columns_may_come_in_any_order() -> None:
    assert sql_results.rows_equal([(1, "a"), (2, "b")], [("b", 2), ("a", 1)], ordered=False)
    assert not sql_results.rows_equal([(1, "a"), (2, "b")], [("b", 2), ("a", 1)], ordered=True)
    assert not sql_results.rows_equal([(1,), (1,)], [(1,)], ordered=False)
    assert not sql_results.rows_equal([(1, 2)], [(1,)], ordered=False)
