"""Intervals and verdicts of the claims, and the parts of their experiments."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments.claims import mixture_of_loras, multi_crop, runner
from experiments.claims.claim import Effect, contrast, find, finding, paired
from experiments.claims.mixture_of_loras import Control, CrossAttended, extended
from polyphi.api import Phi
from polyphi.data.shards import Shards
from polyphi.model.multimodal import PhiModel
from polyphi.processing import image
from polyphi.processing.processor import Processor
from polyphi.train.loss import owners
from polyphi.train.options import TrainOptions
from polyphi.types.batch import Batch, pack
from polyphi_recipe import stages
from polyphi_recipe.graph.from_file import stages_of_run
from polyphi_recipe.report import page
from tests.core.train.small import EVERYTHING, make_model, make_processor, write_corpora
from tests.fixtures.variants import few


def shares(by_arm: tuple[float, float], seeds: int, items: int, noise: float = 0.0) -> np.ndarray:
    """Correct answers of two arms: [seeds items 2 2]; `noise` shifts the second arm's share from seed to seed."""
    random, vectors = np.random.default_rng(1), np.ones((seeds, items, 2, 2))
    for seed in range(seeds):
        for arm, share in enumerate(by_arm):
            shifted = share + arm * noise * random.standard_normal()
            vectors[seed, :, arm, 0] = random.random(items) < shifted
    return vectors


def test_a_clear_lead_holds_and_a_clear_deficit_doesnt() -> None:
    lead = contrast("lead", ("accuracy", shares((0.2, 0.5), 3, 300)))
    assert lead.verdict == "holds" and lead.low < 30 < lead.high and abs(lead.value - 30) < 5
    assert contrast("lead", ("accuracy", shares((0.5, 0.2), 3, 300))).verdict == "doesn't"
    assert contrast("lead", ("accuracy", shares((0.3, 0.32), 3, 100))).verdict == "undecided"


def test_an_error_rate_is_better_when_lower() -> None:
    errors = np.zeros((1, 50, 2, 2))
    errors[..., 1], errors[:, ::2, 0, 0] = 2.0, 1.0
    assert contrast("fewer errors", ("wer", errors)).value == pytest.approx(25)


@pytest.mark.parametrize("trials", few([50, 150], 1))
def test_the_interval_covers_the_true_value(trials: int) -> None:
    """About 5 % of experiments with equal arms give a difference: with variance of items alone, and with seeds whose
    shares differ by 10 points (measured: 3 and 9 % of 300, as three seeds are few to estimate their variance)."""
    false_rates = {}
    for noise in (0.0, 0.1):
        wrong = 0
        for trial in range(trials):
            random = np.random.default_rng(trial)
            vectors, items = np.ones((3, 100, 2, 2)), random.beta(1, 1.5, 100)
            for seed in range(3):
                shift = noise * random.standard_normal()
                for arm in range(2):
                    vectors[seed, :, arm, 0] = random.random(100) < items + arm * shift
            wrong += contrast("none", ("accuracy", vectors)).verdict != "undecided"
        false_rates[noise] = wrong / trials
    assert false_rates[0.0] <= 0.08, false_rates
    assert false_rates[0.1] <= 0.14, false_rates


def test_seeds_that_differ_widen_the_interval() -> None:
    def width(effect: Effect) -> float:
        return effect.high - effect.low

    alike = contrast("lead", ("accuracy", shares((0.3, 0.5), 3, 2000)))
    apart = contrast("lead", ("accuracy", shares((0.3, 0.5), 3, 2000, noise=0.1)))
    assert width(apart) > 2 * width(alike)


def test_equal_answers_are_no_proof_beyond_their_number() -> None:
    same = paired(
        [{str(i): [0.0, 1.0] for i in range(30)}], [{str(i): [0.0, 1.0] for i in range(30)}]
    )
    effect = contrast("none right in either arm", ("accuracy", same))
    assert (effect.low, effect.high, effect.verdict) == (-10.0, 10.0, "undecided")
    assert contrast("not worse by 11 points", ("accuracy", same), above=-11).verdict == "holds"


def test_a_claim_is_as_good_as_its_worst_effect() -> None:
    claim = find("C4")[0]
    yes, no, unsure = (
        Effect("", v, v - 1, v + 1, "points", smallest=3.0) for v in (2.0, -2.0, 0.0)
    )
    for effects, verdict in (
        ([yes, yes], "holds"),
        ([yes, unsure], "undecided"),
        ([yes, unsure, no], "doesn't"),
    ):
        assert finding(claim, effects)["verdict"] == verdict


def test_samples_are_paired_by_id() -> None:
    first, second = {"a": [1.0, 1.0], "b": [0.0, 1.0]}, {"b": [1.0, 1.0], "c": [1.0, 1.0]}
    assert paired([first], [second, second]).tolist() == [[[[0.0, 1.0], [1.0, 1.0]]]] * 2


def test_there_are_ten_claims_and_an_unknown_name_is_refused() -> None:
    assert [c.name for c in find()] == [f"C{i}" for i in range(1, 11)]
    assert set(runner.ORDER) == {c.name for c in find()}
    assert [c.name for c in find("c7")] == ["C7"]
    with pytest.raises(ValueError, match="C11; the claims are C1, C2"):
        find("C11")


# ------------------------------------------------------------------ parts of experiments


@pytest.fixture(scope="module")
def processor() -> Processor:
    return make_processor()


def test_the_aspect_rule_enlarges_small_images() -> None:
    """InternVL2 at 448: 28 x 448 is nearest to 1 x 12; a square of one crop and a photo keep their size."""
    assert image.nearest(28, 448, 448, multi_crop.MAX_CROPS) == (1, 12)
    assert image.nearest(448, 28, 448, multi_crop.MAX_CROPS) == (12, 1)
    assert image.nearest(448, 448, 448, multi_crop.MAX_CROPS) == (1, 1)
    assert image.nearest(1344, 896, 448, multi_crop.MAX_CROPS) == (3, 2)
    effects = list(multi_crop.sizes())
    assert [e.verdict for e in effects] == ["holds"] * 3


def rows_of(folder: Path, processor: Processor, *places: tuple[str, int]) -> list[Batch]:
    """Rows of samples (corpus, number)."""
    data = write_corpora(folder)
    samples = [Shards(data / corpus / "train")[number] for corpus, number in places]
    return [EVERYTHING.objective.rows(sample, processor, 200)[0] for sample in samples]


def test_cross_attention_keeps_text_and_attends_to_its_own_images(
    processor: Processor, tmp_path: Path
) -> None:
    model = make_model(processor)
    model.initialise(0)
    crossed = extended(CrossAttended)(model, 1).eval()
    text, picture, other = rows_of(
        tmp_path, processor, ("questions", 0), ("pictures", 0), ("pictures", 1)
    )
    with torch.inference_mode():
        plain = replace(text, adapters=(None,))
        assert torch.equal(crossed(text), PhiModel.forward(crossed, plain))
        packed = crossed(pack([text, picture, other]))
        alone = torch.cat([crossed(row) for row in (text, picture, other)])
        assert torch.allclose(packed, alone, atol=1e-5)  # as packs equal rows elsewhere
        images, others = (b.inputs["image"] for b in (picture, other))
        swapped = picture.with_inputs(replace(images, crops=others.crops, views=others.views))
        assert not torch.allclose(crossed(swapped), crossed(picture), atol=1e-5)
    unused = images.slots[1:]
    assert not crossed(picture)[unused].any() and crossed(picture)[images.slots[0]].any()
    assert not set(unused.tolist()) & set(picture.supervised.tolist())


@pytest.mark.parametrize("make", [CrossAttended, Control])
def test_designs_train_as_many_parameters_as_the_adapter(
    make: type[PhiModel], processor: Processor
) -> None:
    """Up to the parameters of a unit of width, and norms and gates."""
    model = make_model(processor)
    fresh = {name for name, _ in model.named_parameters()}
    sizes = {n: p.numel() for n, p in extended(make)(model, 1).named_parameters()}
    adapter = sum(size for name, size in sizes.items() if ".lora.vision." in name)
    own = sum(size for name, size in sizes.items() if name not in fresh)
    assert own == pytest.approx(adapter, rel=0.1)


def test_a_control_starts_as_the_model_without_its_adapter(
    processor: Processor, tmp_path: Path
) -> None:
    model = make_model(processor)
    control = extended(Control)(model, 1)
    (picture,) = rows_of(tmp_path, processor, ("pictures", 0))
    with torch.inference_mode():
        torch.testing.assert_close(control(picture), model(picture))


def test_a_sweep_goes_on_beyond_its_best_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture_of_loras, "train", lambda runner, design, factor, number: factor)
    report = SimpleNamespace(report=lambda text: None)
    design = mixture_of_loras.Design("some", EVERYTHING, "")

    def best(optimum: float) -> tuple[float, list[float]]:
        tried: list[float] = []

        def choose(factor: float) -> float:
            tried.append(factor)
            return abs(np.log(factor / optimum))

        return mixture_of_loras.best_rate(report, design, choose), tried

    assert best(1.0) == (1.0, [0.3, 1.0, 3.0])
    assert best(9.0) == (9.0, [0.3, 1.0, 3.0, 9.0, 27.0])
    assert best(0.1) == (
        pytest.approx(0.1),
        [0.3, 1.0, 3.0, pytest.approx(0.1), pytest.approx(1 / 30)],
    )
    assert len(best(1e6)[1]) == mixture_of_loras.MOST_RATES


def test_an_exact_answer_is_that_of_greedy_decoding(processor: Processor) -> None:
    """With the model's greedy answer as labels, every token is the most probable one; with other labels it isn't."""
    model = make_model(processor)
    model.initialise(0)
    phi = Phi(model.eval(), processor)
    messages = [{"role": "user", "content": "red blue"}]
    row = processor.row(messages, generation_prompt=True)
    ids = row.ids.tolist()
    with torch.inference_mode():
        for _ in range(4):
            grown = processor.ids_row(ids)
            ids.append(int(model.logits(model(grown))[-1].argmax()))
    labels = torch.full((len(ids),), -100)
    start = len(row) - 1
    labels[start:-1] = torch.tensor(ids[start + 1 :])
    batch = replace(
        processor.ids_row(ids), labels=labels, supervised=(labels >= 0).nonzero().flatten()
    )
    wrong = labels.clone()
    wrong[start] = (wrong[start] + 1) % processor.tokenizer.vocab_size
    both = pack([batch, replace(batch, labels=wrong)])
    assert owners(both, both.supervised).tolist() == [0] * 4 + [1] * 4
    (hit, _, tokens), (miss, *_) = runner._exact_and_loss(phi.model, both)
    assert (hit, miss, tokens) == (1.0, 0.0, 4.0)


# ------------------------------------------------------------------ on a run


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    from polyphi_recipe.graph.graph import Run

    with pytest.raises(
        ValueError, match=r"lacks text_1_pretrain, .*`polyphi reproduce micro --out"
    ):
        runner.run_claims(Run("micro", tmp_path / "run"))


def test_the_page_shows_results(tmp_path: Path) -> None:
    effects = [Effect("right <more>", 4.0, -1.0, 9.0, "points", 0.0, 7.0)]
    (tmp_path / "claims").mkdir()
    for name in ("C10", "C2"):
        result = finding(find(name)[0], effects, identity={"seeds": 3}, seconds=61.0)
        (tmp_path / "claims" / f"{name}.json").write_text(json.dumps(result))
    page.write(tmp_path, stages_of_run(tmp_path))
    report = json.loads((tmp_path / "report.json").read_text())
    assert [c["name"] for c in report["claims"]] == ["C2", "C10"]
    html, markdown = ((tmp_path / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "right &lt;more&gt;" in html and "4 points" in html and "-1 to 9" in html
    assert "**C2** A mixture of LoRAs: **undecided**" in markdown


@pytest.mark.long
def test_ten_claims_on_a_micro_run(tmp_path: Path) -> None:
    """Every experiment at micro size: two steps are too few to learn, but each arm is trained and evaluated once."""
    from polyphi_recipe.graph.graph import Run

    run = Run("micro", tmp_path / "run", options=TrainOptions(precision="fp32"))
    run.reproduce()
    runner.run_all_claims(run, seeds=2)
    folder = run.folder.path / "claims"
    results = {p.stem: json.loads(p.read_text()) for p in folder.glob("C*.json")}
    assert set(results) == {c.name for c in find()}
    assert results["C1"]["effects"][0]["value"] == 1.0
    assert (
        results["C2"]["effects"][-1]["value"] == 1.0
    )  # LoRA's text losses are bit-identical to those before
    assert results["C3"]["verdict"] in ("holds", "undecided")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("manifest.json")}
    (folder / "C2.json").unlink()
    runner.run_claims(run, ["C2"], seeds=2)  # existing arms aren't trained again
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("manifest.json")} == before
    again = json.loads((folder / "C2.json").read_text())
    assert again["effects"] == results["C2"]["effects"]
    shutil.rmtree(run.folder.path)


def test_every_stage_of_a_chain_comes_before_what_it_needs() -> None:
    """`ClaimRunner.retrained` links the stages before a chain's first one in the order."""
    for name in stages.ORDER:
        earlier = stages.ORDER[: stages.ORDER.index(name)]
        parents = itertools.chain.from_iterable(stages.load(s).parents for s in (*earlier, name))
        assert set(parents) <= set(earlier)
