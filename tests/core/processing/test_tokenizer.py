"""Ids of text are never control tokens; files go round; the published vocabulary is rebuilt from its ranks."""

import json
import subprocess
import sys
import threading
import time
import zipfile
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from polyphi.processing import text_slices as module
from polyphi.processing.published_vocabulary import from_ranks
from polyphi.processing.tokenizer import Tokenizer
from polyphi.processing.vocabulary import CONTROLS, DIGIT_SPLIT, O200K_SPLIT, WORD_SPLIT
from polyphi.runtime.rust import panics_are_errors
from polyphi.types.messages import Message
from polyphi.types.parts import Audio
from tests.fixtures.pieces import render
from tests.fixtures.variants import few
from tests.fixtures.wrong_json import WRONG, replaced


def test_every_control_token_typed_by_a_person_is_plain_text(tokenizer: Tokenizer) -> None:
    controls = set(tokenizer.controls.values())
    assert set(tokenizer.controls) == set(CONTROLS) and len(controls) == 14
    for token in [
        *CONTROLS,
        "".join(CONTROLS),
        "<|image_1|>",
        "<|image|>",
        "a<|tool_call|>b",
        "<|end|>\n<|system|>x",
    ]:
        ids = tokenizer.encode(token)
        assert not controls & set(ids), token
        assert tokenizer.decode(ids) == token


def test_half_a_surrogate_pair_is_no_text(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="surrogate"):
        tokenizer.encode("a\ud800b")


def respelt(tokenizer: Tokenizer, **changes: object) -> Tokenizer:
    """The same vocabulary with other values in its `tokenizer.json`."""
    return Tokenizer({**json.loads(json.dumps(tokenizer._spec)), **changes})


def splitting(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict:
    """A pre-tokenizer as published files write it."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return {"type": "Sequence", "pretokenizers": [split, level]}


SPLITS = {
    "digits": splitting(DIGIT_SPLIT),
    "words": splitting(WORD_SPLIT),
    "o200k": splitting(O200K_SPLIT),
    "o200k, removed": splitting(O200K_SPLIT, "Removed", True),
}
PIECES = st.one_of(
    st.text(max_size=6),
    st.text("aZé1٣ \n\r\t/'.,!-_，。、\u0301\u3000😀한日あア\x1c\xa0", max_size=10),
    st.sampled_from(
        ["it's", "we'LL ", "  x", " \n ", "12345", "a1b2", "//\n", "Ａ ", "ǅ\n", "x\u0301 "]
    ),
)


@pytest.mark.parametrize("split", SPLITS)
def test_slices_encode_to_what_the_whole_encodes_to(tokenizer: Tokenizer, split: str) -> None:
    """With slices of one character and more, so that every boundary is a cut."""
    one = respelt(tokenizer, pre_tokenizer=SPLITS[split])
    splitter = one._plain.pre_tokenizer
    cuts = 0

    @settings(max_examples=400, deadline=None)
    @given(st.lists(PIECES, max_size=12).map("".join), st.integers(1, 5))
    def check(text: str, size: int) -> None:
        nonlocal cuts
        module.SLICE_CHARACTERS, before = size, module.SLICE_CHARACTERS
        try:
            slices = list(one.slices.of(text))
            ids = [list(some) for some in one.encode_slices(text)]
        finally:
            module.SLICE_CHARACTERS = before
        cuts += len(slices) - 1
        assert "".join(slices) == text and len(ids) == len(slices)
        assert list(chain(*ids)) == one._plain.encode(text, add_special_tokens=False).ids
        assert [word for s in slices for word, _ in splitter.pre_tokenize_str(s)] == [
            word for word, _ in splitter.pre_tokenize_str(text)
        ]

    check()
    assert cuts > 150


@cache
def with_tokens_of_signs(tokenizer: Tokenizer, split: str) -> list[Tokenizer]:
    """The tokenizer with a split, as it is, with a token of bytes of two signs, and with a token of one whole sign."""
    model = json.loads(json.dumps(tokenizer._spec["model"]))
    characters = [module.byte_characters()[byte] for byte in "😀".encode()]
    one, two = "".join(characters), characters[-1] + characters[0]
    tokenizers = []
    for more, merges in ({}, []), ({two: 900}, [[characters[-1], characters[0]]]), ({one: 900}, []):
        spelt = {**model, "vocab": {**model["vocab"], **more}, "merges": model["merges"] + merges}
        tokenizers.append(respelt(tokenizer, pre_tokenizer=SPLITS[split], model=spelt))
    return tokenizers


@pytest.mark.parametrize("split", SPLITS)
@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(["a", " ", "\n", "/", "'s", "é", "1", "\ufe0f", "\u200d", "!", "한"]),
            st.tuples(st.sampled_from("😀🔥🜁🫠"), st.sampled_from([1, 2, 60, 90])).map(
                lambda p: p[0] * p[1]
            ),
        ),
        max_size=12,
    ).map("".join)
)
def test_runs_of_signs_are_cut_where_no_token_reaches(
    tokenizer: Tokenizer, split: str, text: str
) -> None:
    """Also where a token holds bytes of two signs, and where only a sign that is alone is a token of its own."""
    for changed in with_tokens_of_signs(tokenizer, split):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "SLICE_CHARACTERS", 3)
            ids = list(chain(*changed.encode_slices(text)))
        assert ids == changed._plain.encode(text, add_special_tokens=False).ids


def test_a_flood_of_emoji_is_cut(tokenizer: Tokenizer) -> None:
    text = "😀" * 5 * module.SLICE_CHARACTERS
    slices = list(tokenizer.slices.of(text))
    assert 3 < len(slices) < 7 and max(map(len, slices)) < 2 * module.SLICE_CHARACTERS
    assert len(tokenizer.encode(text, 1000)) < 5 * module.SLICE_CHARACTERS
    assert tokenizer.count(text) == len(tokenizer._plain.encode(text, add_special_tokens=False))


def test_a_text_of_an_unknown_split_is_one_slice(tokenizer: Tokenizer) -> None:
    text = "a b " * module.SLICE_CHARACTERS
    assert len(list(tokenizer.slices.of(text))) > 1
    for changes in (
        {"pre_tokenizer": splitting(r"\w+|\W+")},
        {"pre_tokenizer": splitting(O200K_SPLIT, "Removed")},
        {"pre_tokenizer": splitting(O200K_SPLIT, "MergedWithNext")},
        {"normalizer": {"type": "Lowercase"}},
    ):
        other = respelt(tokenizer, **changes)
        assert list(other.slices.of(text)) == [text] and other.min_tokens(text) == 0


REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 1_000_000}


@pytest.mark.parametrize(
    ("part", "value", "fault"),
    [
        ("normalizer", REPLACE, "Replace"),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}, REPLACE]}, "Replace"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "Precompiled"),
        ("pre_tokenizer", {"type": "FixedLength", "length": 0}, "FixedLength"),
        ("decoder", {"type": "Strip", "content": "a", "start": 9, "stop": 9}, "Strip"),
        ("model", {"continuing_subword_prefix": "éé"}, "éé"),
    ],
)
def test_steps_that_grow_texts_or_panic_are_refused(
    tokenizer: Tokenizer, part: str, value: dict, fault: str
) -> None:
    """A million tokens for each `a`, and panics of the library in loading, encoding and decoding."""
    if part == "model":
        value = {**tokenizer.specification["model"], **value}
    with pytest.raises(ValueError, match=f"found .*{fault}"):
        respelt(tokenizer, **{part: value})


def test_further_ends_are_those_of_the_last_call(tokenizer: Tokenizer) -> None:
    """`load` may get a tokenizer that another model has."""
    end, end_of_text = tokenizer.eos_ids
    once = tokenizer.with_ends([end_of_text, 7, tokenizer.vocab_size])
    assert once.eos_ids == once.with_ends([7]).eos_ids == (end, 7, end_of_text)
    assert once.with_ends([8, end]).eos_ids == (end, 8, end_of_text)


def test_a_panic_of_the_library_is_an_error() -> None:
    with (
        pytest.raises(ValueError, match=r"index out of bounds"),
        panics_are_errors("can't decode"),
    ):
        decoders.Strip("a", 0, 9).decode(["a"])
    with pytest.raises(KeyboardInterrupt), panics_are_errors("no"):
        raise KeyboardInterrupt


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES, max_size=20).map("".join))
def test_a_text_has_at_least_min_tokens(tokenizer: Tokenizer, text: str) -> None:
    least = tokenizer.min_tokens(text)
    assert least <= len(tokenizer.encode(text)) == tokenizer.count(text)
    assert (least > 0) == (text != "")


def test_min_tokens_of_much_text(tokenizer: Tokenizer, sentences: list[str]) -> None:
    longest = max(filter(None, tokenizer.spelled()), key=len).decode()
    assert tokenizer.encode(longest * 300) and tokenizer.min_tokens(longest * 300) <= 300
    assert 150_000 < tokenizer.min_tokens("😀" * 50_000) <= 200_000
    text = " ".join(sentences) * 200
    ids = tokenizer.encode(text)
    assert len(ids) / 10 < tokenizer.min_tokens(text) <= len(ids)


def test_encoding_stops_above_a_limit(tokenizer: Tokenizer) -> None:
    text = "the quick brown fox " * 20_000
    whole = tokenizer.encode(text)
    assert tokenizer.encode(text, len(whole)) == whole
    for limit in (0, 100, len(whole) // 2):
        some = tokenizer.encode(text, limit)
        assert limit < len(some) <= limit + module.SLICE_CHARACTERS and some == whole[: len(some)]


@pytest.mark.parametrize(
    "text", ["😀" * 300_000, "the quick brown fox " * 40_000], ids=["one run", "words"]
)
def test_other_threads_run_while_a_text_is_encoded(tokenizer: Tokenizer, text: str) -> None:
    turns, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            turns[0] += 1
            time.sleep(0.0005)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        while not turns[0]:
            time.sleep(0.001)
        before = turns[0]
        tokenizer.encode(text)
        assert turns[0] > before + 20
    finally:
        stop.set()
        thread.join()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=12),
            st.sampled_from([*CONTROLS, "<|", "|>", "<|image_1|>", "  \n", "0451"]),
        ),
        max_size=8,
    )
)
def test_text_goes_round_and_never_yields_control_ids(
    tokenizer: Tokenizer, parts: list[str]
) -> None:
    text = "".join(parts)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text == tokenizer.decode(ids, skip_special=True)
    assert not set(tokenizer.controls.values()) & set(ids)


def test_every_id_is_spelt(tokenizer: Tokenizer, sentences: list[str]) -> None:
    words = tokenizer.spelled()
    assert len(words) == tokenizer.vocab_size
    for sentence in [*sentences, "\x00 😀"]:
        spelt = [words[id] or b"?" for id in tokenizer.encode(sentence)]
        assert b"".join(spelt) == sentence.encode()
    assert all(words[id] is None for id in tokenizer.controls.values())
    assert sum(word is None for word in words) < len(tokenizer.controls) + 64


def test_digits_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert [tokenizer.decode([i]) for i in tokenizer.encode("1984")] == list("1984")


def test_control_tokens_by_name(tokenizer: Tokenizer) -> None:
    assert tokenizer.image_id == tokenizer.control("<|endoftext10|>")
    assert tokenizer.audio_id == tokenizer.control("<|endoftext11|>")
    assert tokenizer.eos_ids == (tokenizer.control("<|end|>"), tokenizer.control("<|endoftext|>"))
    with pytest.raises(ValueError, match=r"'<\|nobody\|>'; .*<\|endoftext\|>, "):
        tokenizer.control("<|nobody|>")
    assert tokenizer.strips_following_whitespace("<|user|>")
    assert not tokenizer.strips_following_whitespace("<|endoftext10|>")


def test_decoding_leaves_the_tool_marks(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.control(t) for t in ("<|tool_call|>", "<|/tool_call|>", "<|end|>")]
    assert tokenizer.decode(ids, skip_special=True) == "<|tool_call|><|/tool_call|>"
    assert tokenizer.decode(ids) == "<|tool_call|><|/tool_call|><|end|>"


def test_a_trained_vocabulary_has_the_size_asked_for_and_is_deterministic(
    sentences: list[str],
) -> None:
    first, second = (Tokenizer.train(sentences, 384) for _ in range(2))
    assert first.vocab_size == 384 and max(first.controls.values()) == 383
    assert all(first.encode(s) == second.encode(s) for s in sentences)
    assert Tokenizer.train(sentences, 300).vocab_size == 320  # a multiple of 64
    with pytest.raises(ValueError, match="256 bytes"):
        Tokenizer.train(sentences, 200)


def test_saved_files_load_again(tokenizer: Tokenizer, sentences: list[str], tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "a")
    for path in (tmp_path / "a", tmp_path / "a" / "tokenizer.json"):
        again = Tokenizer.load(path)
        assert again.controls == tokenizer.controls and again.vocab_size == tokenizer.vocab_size
        assert all(again.encode(s) == tokenizer.encode(s) for s in sentences)
    again.save(tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_other_layouts_and_other_files(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    renamed = (
        json.dumps(spec)
        .replace("<|endoftext10|>", "<|image|>")
        .replace("<|endoftext11|>", "<|audio|>")
    )
    assert Tokenizer(json.loads(renamed)).image_id == tokenizer.image_id
    for name in ("<|endoftext10|>", "<|endoftext11|>"):  # as Phi-4-mini's
        del spec["model"]["vocab"][name]
    spec["added_tokens"] = [
        t for t in spec["added_tokens"] if not t["content"].startswith("<|endoftext1")
    ]
    mini = Tokenizer(spec)
    assert mini.image_id is None and mini.audio_id is None
    spec["added_tokens"] = spec["added_tokens"][:1]
    with pytest.raises(ValueError, match=r"Phi-4 lacks <\|system\|>, "):
        Tokenizer(spec)
    with pytest.raises(ValueError, match="nothing"):
        Tokenizer.load(tmp_path / "nowhere")
    (tmp_path / "bad.json").write_text("not json")
    with pytest.raises(ValueError, match="expected JSON"):
        Tokenizer.load(tmp_path / "bad.json")
    with pytest.raises(ValueError, match="SHA-256"):
        from_ranks(tmp_path / "bad.json")


@pytest.mark.parametrize("seed", few(range(len(WRONG)), 1))
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_wrong_value_in_its_files_is_an_error_for_the_user(
    tmp_path: Path, name: str, seed: int
) -> None:
    Tokenizer.train(["the quick brown fox"], vocab_size=320).save(tmp_path)
    outcomes = set()
    for text in replaced((tmp_path / name).read_text(), seed):
        (tmp_path / name).write_text(text)
        try:
            tokenizer = Tokenizer.load(tmp_path).within(1000)
            tokenizer.spelled()
            assert tokenizer.count("the fox") >= tokenizer.min_tokens("the fox") >= 0
            outcomes.add("read")
        except ValueError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"added_tokens": 3}, "added_tokens to be a list, found int"),
        ({"model": {"type": "BPE", "vocab": [1]}}, r"model\.vocab to be an object of ids"),
        ({"model": {"type": "BPE", "vocab": {"a": -1}}}, "id of 'a' .* found -1"),
    ],
)
def test_the_error_names_the_key(
    tokenizer: Tokenizer, tmp_path: Path, change: dict, message: str
) -> None:
    tokenizer.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=rf"tokenizer\.json: expected .*{message}"):
        Tokenizer.load(tmp_path)


def test_transformers_reads_what_we_save(
    tokenizer: Tokenizer, sentences: list[str], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for sentence in sentences:
        assert peer(sentence)["input_ids"] == tokenizer.encode(sentence)
        assert peer.decode(tokenizer.encode(sentence)) == sentence
    for token, id in tokenizer.controls.items():
        assert peer.convert_tokens_to_ids(token) == id and peer(token)["input_ids"] == [id]
    assert peer.eos_token == "<|endoftext|>"


def test_the_split_is_that_of_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    public = pytest.importorskip("tiktoken_ext.openai_public")
    monkeypatch.setattr(
        public, "load_tiktoken_bpe", lambda *_, **__: {}
    )  # the pattern, without the file of ranks
    assert public.o200k_base()["pat_str"] == O200K_SPLIT


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of o200k_base ranks, out of a package that carries it under the name of tiktoken's cache."""
    folder = tmp_path_factory.mktemp("o200k")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "-d",
        str(folder),
        "litellm",
    ]
    got = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("litellm-*.whl"))
    if got.returncode or not wheels:
        pytest.skip(
            f"no file of o200k_base ranks: pip download litellm said {got.stderr.strip()[-200:]!r}"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        names = [
            n for n in wheel.namelist() if n.endswith("fb374d419588a4632f3f557e76b4b70aebbca790")
        ]
        if not names:
            pytest.skip("no file of o200k_base ranks: this version of litellm does not carry it")
        return Path(wheel.extract(names[0], folder))


@pytest.mark.long
def test_the_published_vocabulary(
    ranks: Path, sentences: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    monkeypatch.setenv(
        "TIKTOKEN_CACHE_DIR", str(ranks.parent)
    )  # where it finds the file under the name it looks for
    peer = tiktoken.get_encoding("o200k_base")
    ours = from_ranks(ranks)
    assert ours.vocab_size == 200064
    assert ours.controls == {token: facts[0] for token, facts in CONTROLS.items()}
    texts = [
        *sentences,
        "x = 12345 + 0.5\n\n\tif  y:\r\n  return",
        "I'LL we've",
        "🙂👩‍👩‍👧",
        " \n ",
        "a" * 300,
    ]
    texts += [Path(__file__).read_text(), *CONTROLS]
    for text in texts:
        assert ours.encode(text) == peer.encode(text, disallowed_special=()), text[:40]
        assert ours.decode(ours.encode(text)) == text
    for token in CONTROLS:
        assert not set(ours.encode(token)) & set(ours.controls.values())
    # Golden ids of the published tokenizer.
    chat = [Message.user(Audio(b""), "Transcribe the audio exactly.")]
    ids = [i for piece in render(chat, ours, generation_prompt=True) for i in piece.ids]
    assert ids == [200021, 200011, 3248, 4981, 290, 11065, 9707, 13, 200020, 200019]
    ours.save(tmp_path)
    assert all(Tokenizer.load(tmp_path).encode(t) == ours.encode(t) for t in texts[:3])
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("<|user|>\n" + texts[0] + "<|end|>")["input_ids"] == [
        200021,
        *ours.encode(texts[0]),
        200020,
    ]


def test_a_word_can_be_one_token_wherever_it_stands() -> None:
    text = 'red "red" (red) red'
    apart, together = (
        Tokenizer.train([text] * 9, 512, split) for split in (WORD_SPLIT, DIGIT_SPLIT)
    )
    (red,) = apart.encode("red")
    assert apart.encode(text).count(red) == 4 and apart.decode(apart.encode(text)) == text
    assert together.encode(text).count(together.encode("red")[0]) < 4
