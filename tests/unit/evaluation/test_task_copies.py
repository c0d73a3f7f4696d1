"""Copies of tasks' data give what the harness gives when it reads them itself; a bad one gives one message."""

import dataclasses
import gzip
import json
import lzma

import datasets
import lm_eval
import pyarrow as pa
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from pyarrow import parquet

from prune_lab.errors import BadInput, RunFailed
from prune_lab.evaluation import harness_context
from prune_lab.evaluation.harness import ZeroShot

GOALS = ["Dry wet boots", "Cool hot soup", "Open a tight jar", "Keep bread soft"]
ANSWERS = ["Fill them with paper", "Wait and stir", "Warm the lid", "Wrap it in a cloth", "Cut it with a comb"]


def rows(task, count=20):
    """Questions in the fields of the harness' data sets, made by rule."""
    found = []
    for number in range(count):
        goal, right = f"{GOALS[number % 4]} no {number}", number * 7 % 2
        answers = [f"{ANSWERS[(number + place) % 5]}{', twice' * (place % 2)}" for place in range(4)]
        letters = list("ABCD" if number % 3 else "1234")
        found.append(
            {
                "piqa": {"goal": goal, "sol1": answers[0], "sol2": answers[1], "label": right},
                "arc_easy": {
                    "id": str(number),
                    "question": f"{goal}?",
                    "choices": {"text": answers, "label": letters},
                    "answerKey": letters[number % 4],
                },
                "hellaswag": {
                    "ind": number,
                    "activity_label": "Home [header] care",
                    "ctx_a": f"{goal}.  [title] A man sits.",
                    "ctx_b": "" if number % 2 else "then He",
                    "endings": [f"{each} [step] now." for each in answers],
                    "label": str(number % 4),
                },
                "lambada_openai": {"text": f"{goal}, then {answers[0]} and then wait"},
                "winogrande": {
                    "sentence": f"Ann met Eve and _ had to {answers[1].lower()}.",
                    "option1": "Ann",
                    "option2": "Eve",
                    "answer": str(right + 1),
                },
                "boolq": {"question": f"is it {goal}", "passage": ". ".join(answers), "label": right},
            }[task]
        )
    return found


TASKS = ("piqa", "arc_easy", "hellaswag", "lambada_openai", "winogrande", "boolq")
SPLITS = {"arc_easy": "test", "lambada_openai": "test"}


def simpler(task, row):
    """A row of `rows` in the form that others pass it on in."""
    if task == "piqa":
        return {"query": row["goal"], "choices": [row["sol1"], row["sol2"]], "gold": row["label"]}
    if task == "arc_easy":
        gold = row["choices"]["label"].index(row["answerKey"])
        return {"query": row["question"], "choices": row["choices"]["text"], "gold": gold}
    if task == "hellaswag":
        from lm_eval.tasks.hellaswag.utils import process_docs

        done = process_docs(datasets.Dataset.from_list([row]))[0]
        return {name: done[name] for name in ("ind", "query", "choices", "gold")}
    if task == "lambada_openai":
        context, _, target = row["text"].rpartition(" ")
        return {"context": context, "target": target}
    if task == "winogrande":
        return {**{name: row[name] for name in ("sentence", "option1", "option2")}, "gold": int(row["answer"]) - 1}
    return {"question": row["question"], "passage": row["passage"], "answer": bool(row["label"])}


def lines(values):
    return "".join(json.dumps(value) + "\n" for value in values)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder for copies; nothing may ask the hub."""

    def never(address):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(harness_context, "_answers", never)
    (tmp_path / "copies").mkdir()
    return tmp_path / "copies"


@pytest.fixture
def theirs(subject, tmp_path):
    """The results of the harness' own run, on the same files."""

    def run(task, values, **settings):
        (tmp_path / "theirs.jsonl").write_text(lines(values))
        data = {"data_files": {SPLITS.get(task, "validation"): str(tmp_path / "theirs.jsonl")}}
        own = {"dataset_path": "json", "dataset_name": None, "training_split": None, "dataset_kwargs": data}
        if task == "arc_easy":
            own["validation_split"] = None
        data["cache_dir"] = str(tmp_path / "cache")
        subject.model.hf.save_pretrained(tmp_path / "model")
        subject.model.tokenizer.save_pretrained(tmp_path / "model")
        folder = {"arc_easy": "arc", "lambada_openai": "lambada", "boolq": "super_glue/boolq"}.get(task, task)
        tasks = TaskManager(include_path=f"{lm_eval.tasks.__path__[0]}/{folder}", include_defaults=False)
        return lm_eval.simple_evaluate(
            model=HFLM(pretrained=str(tmp_path / "model"), device="cpu", dtype="float32"),
            tasks=[{"group": "own", "task": [{"task": task, **own}]}],  # in a group it is the definition of the harness
            task_manager=tasks,
            bootstrap_iters=0,
            **settings,
        )

    return run


@pytest.mark.parametrize("task", TASKS)
def test_scores_are_those_of_the_harness_own_run(root, subject, theirs, task):
    (root / f"{task}.jsonl").write_text(lines(rows(task)))
    found = ZeroShot(tasks=[task], data_root=str(root))(subject)
    expected = {
        f"{task}/{name.removesuffix(',none')}": value
        for name, value in theirs(task, rows(task))["results"][task].items()
        if isinstance(value, float)
    }
    assert {name: found.metrics[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert found.protocol["tasks"][task]["samples"] == 20


@pytest.mark.parametrize("task", TASKS)
def test_other_forms_ask_the_same(root, task, monkeypatch):
    asked = []
    for made in (lambda task, row: row, simpler):
        (root / f"{task}.jsonl").write_text(lines(made(task, row) for row in rows(task)))
        loaded = ZeroShot(tasks=[task], data_root=str(root))._load()["tasks"][task]
        loaded.build_all_requests(rank=0, world_size=1)
        asked.append([(request.args, request.request_type) for request in loaded.instances])
        asked[-1].append([loaded.doc_to_target(document) for document in loaded.eval_docs])
    if task == "hellaswag":  # its process_docs has been applied to one of them
        asked = [json.loads(json.dumps(each)) for each in asked]
    assert asked[0] == asked[1]


def test_pronouns_stand_where_two_beginnings_part(root):
    row = {"context_options": ["Tom hit Bob because Tom", "Tom hit Bob because Bob"], "continuation": "was mad."}
    (root / "wsc273.jsonl").write_text(lines([{**row, "gold": 0}]))
    task = ZeroShot(tasks=["wsc273"], data_root=str(root))._load()["tasks"]["wsc273"]
    document = task.eval_docs[0]
    assert task.doc_to_choice(document) == row["context_options"]
    assert (task.doc_to_target(document), task.doc_to_text(document)) == (" was mad.", 0)


def jsonl(root, values):
    (root / "piqa.jsonl").write_text(lines(values))


def packed(root, values):
    (root / "piqa_valid.jsonl.gz").write_bytes(gzip.compress(lines(values).encode()))


def packed_with_more_of_a_name(root, values):
    (root / "piqa_val_200_mine.jsonl.xz").write_bytes(lzma.compress(lines(values).encode()))


def in_a_folder(root, values):
    (root / "piqa").mkdir()
    (root / "piqa" / "validation.jsonl").write_text(lines(values))


def in_parts(root, values):
    (root / "piqa").mkdir()
    for number in range(2):
        part = pa.Table.from_pylist(values[10 * number : 10 * number + 10])
        parquet.write_table(part, root / "piqa" / f"validation-0000{number}-of-00002.parquet")


def saved_to_disk(root, values):
    datasets.DatasetDict({"validation": datasets.Dataset.from_list(values)}).save_to_disk(root / "piqa")


def one_split_saved_to_disk(root, values):
    datasets.Dataset.from_list(values).save_to_disk(root / "piqa")


WRITERS = (
    jsonl, packed, packed_with_more_of_a_name, in_a_folder, in_parts, saved_to_disk, one_split_saved_to_disk,
)  # fmt: skip


@pytest.mark.parametrize("write", WRITERS)
def test_a_copy_may_be_kept_in_many_ways(root, write):
    write(root, rows("piqa"))
    (root / "piqa_de.jsonl").write_text("of another task")
    task = ZeroShot(tasks=["piqa"], data_root=str(root))._load()["tasks"]["piqa"]
    assert [document["goal"] for document in task.eval_docs] == [row["goal"] for row in rows("piqa")]


def test_examples_come_from_the_copys_own_split(root, subject):
    (root / "piqa.jsonl").write_text(lines(rows("piqa")[:4]))
    with pytest.raises(BadInput, match=r"2 few-shot examples were asked for.*there are 0.*has only validation"):
        ZeroShot(tasks=["piqa"], data_root=str(root), num_fewshot=2).prepare()
    (root / "piqa_train.jsonl").write_text(lines(rows("piqa")[10:]))
    task = ZeroShot(tasks=["piqa"], data_root=str(root), num_fewshot=2)._load()["tasks"]["piqa"]
    assert {each["goal"] for each in task.fewshot_docs()} == {each["goal"] for each in rows("piqa")[10:]}


def test_groups_and_tags_read_copies_too(root, task_folder):
    for name in ("one", "two"):
        (root / f"{name}.jsonl").write_text(lines([{"q": "Time", "choices": ["flies", "is"], "gold": 0}] * 3))
        folder = task_folder(name, [], dataset_path="nobody/nothing", dataset_kwargs=None, tag="both")
    (folder / "group.yaml").write_text('{"group": "all", "task": ["two"]}')
    for names in (["both"], ["one", "all"]):
        evaluation = ZeroShot(tasks=names, data_root=str(root), include_path=str(folder))
        assert {name: len(task.eval_docs) for name, task in evaluation._load()["tasks"].items()} == {"one": 3, "two": 3}


def test_the_protocol_and_the_key_know_the_copy(root, subject):
    (root / "piqa.jsonl").write_text(lines(rows("piqa")))
    evaluation = ZeroShot(tasks=["piqa"], data_root=str(root), limit=3)
    about = evaluation(subject).protocol["tasks"]["piqa"]
    [file] = about["files"]["validation"]
    assert (about["data"], about["copy_of"], file["file"]) == (str(root), "baber/piqa", "piqa.jsonl")
    assert (about["samples"], about["samples_in_all"]) == (3, 20)
    before = evaluation.key(subject)
    assert evaluation.key(subject) == before
    (root / "piqa.jsonl").write_text(lines(rows("piqa")).replace("boots", "shoes"))
    after = evaluation.key(subject)
    assert after["tasks_sha256"] != before["tasks_sha256"]
    assert file["sha256"] != evaluation(subject).protocol["tasks"]["piqa"]["files"]["validation"][0]["sha256"]


def test_a_task_without_a_copy_is_looked_for_on_the_hub(root, monkeypatch):
    monkeypatch.setattr(harness_context, "_answers", lambda address: False)
    (root / "piqa.jsonl").write_text(lines(rows("piqa")))
    with pytest.raises(RunFailed, match=r"task boolq: cannot be loaded from aps/super_glue.*no copy.*boolq\.jsonl"):
        ZeroShot(tasks=["piqa", "boolq"], data_root=str(root)).prepare()


def changed(task, number, **fields):
    values = rows(task)
    values[number] = {name: value for name, value in {**values[number], **fields}.items() if value != "gone"}
    return lines(values)


BAD = {
    "a field of all rows": ("piqa", lines([{"goal": "a", "label": 0}]), r"piqa\.jsonl, line 1 lacks sol1, sol2; rows"),
    "a field of one row": ("piqa", changed("piqa", 6, sol2="gone"), r"line 7 lacks sol2; .*goal sol1 sol2 label, or"),
    "a number for text": ("piqa", changed("piqa", 2, goal=5), r"line 3 goal holds 5, not text"),
    "no answer is right": ("piqa", changed("piqa", 0, label=-1), r"line 1 label holds -1, not one of 0, 1"),
    "labels as text": ("boolq", changed("boolq", 1, label="1"), r"line 2 label holds '1', not one of 0, 1"),
    "a letter too many": ("arc_easy", changed("arc_easy", 1, answerKey="E"), r"line 2 answerKey holds 'E', not one of"),
    "answers alone": ("arc_easy", changed("arc_easy", 1, choices=["a"]), r"choices holds \['a'\], not the two lists"),
    "an ending too few": ("hellaswag", changed("hellaswag", 3, label="4"), r"line 4 label holds 4, and endings has 4"),
    "no ending": ("hellaswag", changed("hellaswag", 3, label="x"), r"line 4 label holds 'x', not the number"),
    "one word": ("lambada_openai", changed("lambada_openai", 3, text="word"), r"line 4 text has a single word"),
    "no gap": ("winogrande", changed("winogrande", 3, sentence="Ann."), r"line 4 sentence has no _"),
    "not JSON": ("piqa", "{", r"line 1: not valid JSON"),
    "nothing": ("piqa", "", r"piqa\.jsonl.*has no rows"),
    "half a letter": ("piqa", changed("piqa", 3, goal="\ud800"), r"piqa\.jsonl: goal cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_copy_that_cannot_be_used_is_one_message(root, name):
    task, text, message = BAD[name]
    (root / f"{task}.jsonl").write_text(text)
    with pytest.raises(BadInput, match=message) as raised:
        ZeroShot(tasks=[task], data_root=str(root)).prepare()
    assert "ZeroShot.data_root" in str(raised.value) or "piqa.jsonl" in str(raised.value)


def test_a_task_of_no_known_form_needs_the_same_fields_in_all_rows(root):
    row = {"premise": "It rains.", "choice1": "a", "choice2": "b", "question": "cause", "label": 0}
    (root / "copa.jsonl").write_text(lines([row] * 3))
    assert len(ZeroShot(tasks=["copa"], data_root=str(root))._load()["tasks"]["copa"].eval_docs) == 3
    (root / "copa.jsonl").write_text(lines([row, {**row, "label": 1}, {"premise": "x"}]))
    with pytest.raises(BadInput, match="row 3 lacks choice1"):
        ZeroShot(tasks=["copa"], data_root=str(root)).prepare()
    (root / "copa.jsonl").write_text(lines([{"premise": "x"}]))
    with pytest.raises(RunFailed, match=r"task copa: its copy in ZeroShot\.data_root=.* does not fit.*'question'"):
        ZeroShot(tasks=["copa"], data_root=str(root)).prepare()


def test_two_files_for_one_split_are_refused(root):
    for name in ("piqa.jsonl", "piqa_valid.jsonl"):
        (root / name).write_text(lines(rows("piqa")))
    with pytest.raises(BadInput, match=r"piqa\.jsonl, piqa_valid\.jsonl could each be the split validation"):
        ZeroShot(tasks=["piqa"], data_root=str(root)).prepare()


def test_another_split_than_the_scored_one_is_scored_on_request_alone(root):
    (root / "arc_easy_valid.jsonl").write_text(lines(rows("arc_easy")))
    with pytest.raises(BadInput, match=r"arc_easy is scored on its split test.*arc_easy_valid\.jsonl.*test_split"):
        ZeroShot(tasks=["arc_easy"], data_root=str(root)).prepare()
    asked = ZeroShot(tasks=["arc_easy"], data_root=str(root), task_options={"arc_easy": {"test_split": "validation"}})
    assert len(asked._load()["tasks"]["arc_easy"].eval_docs) == 20


def test_settings_name_a_folder():
    with pytest.raises(BadInput, match=r"ZeroShot\.data_root='nowhere/at/all': there is no such folder"):
        ZeroShot(data_root="nowhere/at/all")
    assert "data_root" in {each.name for each in dataclasses.fields(ZeroShot)}
