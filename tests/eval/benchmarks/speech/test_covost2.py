"""CoVoST 2: the test split of its translations, joined with Common Voice 4."""

from pathlib import Path

from polyphi_eval.benchmarks.speech import covost2
from polyphi_eval.sources import Data


def test_only_the_test_split_is_loaded(tmp_path: Path) -> None:
    covost2.benchmark.write_fixtures(tmp_path)
    samples = list(covost2.load(Data(tmp_path)))
    assert len(samples) == 10 * 2
    assert {s.id for s in samples if s.meta["to"] == "zh"} == {
        "covost2-common_voice_en_1-en-zh-direct",
        "covost2-common_voice_en_1-en-zh-cot",
    }


def test_backslash_escapes_are_removed(tmp_path: Path) -> None:
    covost2.benchmark.write_fixtures(tmp_path)
    path = tmp_path / "covost2/covost_v2.de_en.tsv"
    path.write_text(
        'path\ttranslation\tsplit\ncommon_voice_de_1.mp3\tHe said \\"yes\\", \\\\o/ "no".\ttest\n'
    )
    direct = next(s for s in covost2.load(Data(tmp_path)) if s.meta["from"] == "de")
    assert direct.answer == 'He said "yes", \\o/ "no".'
