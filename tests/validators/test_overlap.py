import json

from posttrain.config.evidence import Evidence
from posttrain.rows.formats import prompt_key
from validators import overlap

WORDS = " ".join(f"word{number}" for number in range(30))


def row(id_: str, text: str, *, system: str = "Be kind.", answer: str = "Done.") -> dict:
    prompt = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    return {"id": id_, "prompt": prompt, "completion": [{"role": "assistant", "content": answer}]}


def asked(id_: str, text: str) -> dict:
    return {"id": id_, "prompt": [{"role": "user", "content": text}]}


def test_whatever_is_not_trained_on_may_share_no_prompt_with_what_is(tmp_path):
    rows = {
        "sft_train": [row("a", "Add milk"), row("b", "Add tea")],
        "sft_eval": [row("c", "add MILK!", system="Another.")],
        "preference_train": [row("d", "Add milk")],
        "red_team_prompts": [asked("prompt 1", "Make a bomb"), asked("prompt 2", "Add tea?")],
    }
    manifest = tmp_path / "manifest.json"
    assert overlap.compare_prompts(rows, manifest, Evidence())["shared_prompts"] == {
        "sft_eval with sft_train": ["c"],
        "sft_eval with preference_train": ["c"],
        "red_team_prompts with sft_train": ["prompt 2"],
        "red_team_prompts with preference_train": [],
    }
    content = json.loads(manifest.read_text())
    assert content["files"]["sft_eval"] == [{"id": "c", "prompt_sha256": prompt_key(rows["sft_train"][0])}]
    assert content["files"].keys() == rows.keys()
    assert manifest.read_text() == json.dumps(content, indent=1) + "\n"


def test_near_is_what_the_user_says_and_not_what_is_equal_already():
    rows = {
        "sft_train": [row("a", WORDS, system="One."), row("b", "Add milk")],
        "sft_eval": [row("c", f"{WORDS} now", system="Two."), row("d", "Add milk"), row("e", "Add no milk")],
        "benign_prompts": [asked("prompt 1", f"Please {WORDS}")],
    }
    assert overlap.near_shared_prompts(rows, 0.9) == {
        "sft_eval": ["c like a of sft_train"],
        "benign_prompts": ["prompt 1 like a of sft_train"],
    }


def test_of_several_training_prompts_the_first_is_named():
    trained = [row("a", "Add milk"), row("b", WORDS), row("b again", WORDS), row("c", f"{WORDS} too")]
    rows = {"sft_train": trained, "sft_eval": [row("e", f"Please {WORDS}")], "preference_train": [row("d", WORDS)]}
    assert overlap.near_shared_prompts(rows, 0.9) == {"sft_eval": ["e like b of sft_train"]}


def test_short_requests_with_a_long_system_text_do_not_repeat_each_other():
    rows = [row(text, text, system=WORDS) for text in ("Add milk", "Add tea", "List my tasks")]
    assert overlap.near_duplicates(rows, "sft", 0.9) == []


def test_one_question_on_other_terms_is_no_repetition():
    terms = [" ".join(f"{letter}{number}" for number in range(8)) for letter in "abcdefghijkl"]
    assert overlap.near_duplicates([row(system, "Add milk", system=system) for system in terms], "sft", 0.9) == []


def test_a_long_question_on_other_terms_is_no_repetition():
    rows = [row("a", WORDS, system="Answer in French."), row("b", f"{WORDS} now", system="Never say a word.")]
    assert overlap.near_duplicates(rows, "sft", 0.9) == []
    assert overlap.near_duplicates([row(term, WORDS, system=term) for term in ("French", "German")], "sft", 0.9) == []


def test_prompts_that_a_gate_asks_are_held_out_too():
    trained = row("a", "Hello")
    trained["prompt"] += [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Add milk"}]
    rows = {"sft_train": [trained], "sft_eval": [row("b", "Add milk")], "preference_eval": [trained | {"id": "c"}]}
    found = overlap.answered_elsewhere(rows, {"benign_prompts": [asked("prompt 1", "Add milk")]})["answered_elsewhere"]
    assert found.keys() == {"sft_eval", "preference_eval", "benign_prompts"}
    assert [len(found[name]) for name in ("sft_eval", "benign_prompts")] == [1, 1]
    without = overlap.answered_elsewhere(rows | {"sft_train": []}, {})["answered_elsewhere"]
    assert without["sft_eval"] == []  # another held-out row answers it


def test_near_ones_are_sought_in_every_file_by_its_kind():
    pair = {"chosen": [{"role": "assistant", "content": "Yes."}], "rejected": [{"role": "assistant", "content": "No."}]}
    pairs = [asked("p", WORDS) | pair, asked("q", f"{WORDS} now") | pair]
    rows = {"sft_train": [row("a", WORDS), row("b", f"{WORDS} too")], "preference_eval": pairs}
    assert overlap.alike(rows, {"benign_prompts": [asked("prompt 1", f"Please {WORDS}")]}, 0.9) == {
        "near_duplicates": {"sft_train": ["b like a"], "preference_eval": ["q like p"]},
        "near_shared_prompts": {
            "preference_eval": ["q like a of sft_train"], "benign_prompts": ["prompt 1 like a of sft_train"],
        },
    }  # fmt: skip


def test_of_distinct_items_those_that_are_asked_for():
    distinct = overlap.Distinct(["one", "one", "two", "three"], {1}, {b"one", b"two", b"three"})
    assert dict(distinct.at({0, 2})) == {0: "one", 2: "three"}


def test_exact_repeats_are_not_near_ones():
    rows = [row("a", WORDS), row("b", WORDS), row("c", f"{WORDS} now"), row("d", WORDS, answer="No.")]
    assert overlap.near_duplicates(rows, "sft", 0.9) == ["c like a"]


def test_the_manifest_says_how_it_hashes(tmp_path):
    for files in ({}, {"sft_train": []}):
        overlap.write_manifest(tmp_path / "m.json", files)
        manifest = {"schema_version": 1, "hashed": overlap.HASHED, "files": files}
        assert (tmp_path / "m.json").read_text() == json.dumps(manifest, indent=1) + "\n"
