"""Tasks, tokenizer and model that do not fit each other are refused before anything is done to the model."""

import pytest

from prune_lab.errors import BadInput, RunFailed
from prune_lab.evaluation.harness import ZeroShot

QUESTIONS = [("Time", ["flies", "stands still"], 0), ("Still waters", ["run deep", "run"], 0)]
NO_CONTEXT = {"doc_to_text": ""}
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_choice": None,
    "doc_to_target": "q",
    "metric_list": [{"metric": "byte_perplexity"}],
}
WRITTEN = {
    "output_type": "generate_until",
    "doc_to_choice": None,
    "doc_to_target": "q",
    "generation_kwargs": {"until": ["."], "max_gen_toks": 2},
    "metric_list": [{"metric": "exact_match"}],
}


@pytest.fixture
def subject(tiny_model, make_subject, letters):
    model = tiny_model("llama")
    model.tokenizer = letters
    return make_subject(model)


@pytest.fixture
def evaluation(task_folder):
    def make(config=None, questions=QUESTIONS, **settings):
        return ZeroShot(tasks=["a"], include_path=str(task_folder("a", questions, **(config or {}))), **settings)

    return make


def without(tokenizer, *tokens):
    for token in tokens:
        setattr(tokenizer, token, None)


def test_a_tokenizer_without_bos_and_eos_is_enough_for_questions_with_a_context(subject, evaluation):
    expected = evaluation()(subject).metrics
    without(subject.model.tokenizer, "bos_token", "eos_token")
    evaluation().check(subject)
    assert evaluation()(subject).metrics == expected


@pytest.mark.parametrize("config", [NO_CONTEXT, ROLLING, WRITTEN])
def test_either_token_stands_before_a_text_and_only_eos_ends_one(subject, evaluation, config):
    evaluation(config).check(subject)
    assert evaluation(config)(subject).metrics
    without(subject.model.tokenizer, "bos_token")
    evaluation(config).check(subject)
    assert evaluation(config)(subject).metrics


@pytest.mark.parametrize(
    ("config", "missing", "message"),
    [
        (NO_CONTEXT, ("bos_token", "eos_token"), r"task a: it scores texts without a context.*\(bos_token\)"),
        (ROLLING, ("bos_token", "eos_token"), r"task a: it scores texts without a context.*ZeroShot\.tasks"),
        (WRITTEN, ("eos_token",), r"task a: it has texts written.*\(eos_token\)"),
    ],
)
def test_a_task_that_needs_a_token_which_the_tokenizer_lacks_is_refused(subject, evaluation, config, missing, message):
    without(subject.model.tokenizer, *missing)
    with pytest.raises(BadInput, match=message):
        evaluation(config).check(subject)


@pytest.mark.parametrize("config", [{}, WRITTEN, ROLLING])
def test_a_tokenizer_may_know_more_tokens_than_the_model_but_tasks_may_not_have_them(subject, evaluation, config):
    tokenizer = subject.model.tokenizer
    tokenizer.add_tokens([f"[{number}]" for number in range(20)])
    assert len(tokenizer) > subject.model.vocab_size
    evaluation(config).check(subject)
    questions = [*QUESTIONS, ("the token [19]", ["is", "is not"], 0)]
    with pytest.raises(BadInput, match=r"task a: .* token '\[19\]', which is number 77 .* embeddings for 64"):
        evaluation(config, questions).check(subject)
    with pytest.raises(BadInput, match="embeddings for 64"):
        evaluation(config, questions)(subject)
    evaluation(config, questions, limit=2).check(subject)


def test_padding_that_the_model_does_not_know_is_replaced(subject, evaluation):
    expected = evaluation(WRITTEN)(subject).metrics
    subject.model.tokenizer.add_special_tokens({"pad_token": "[pad]"})
    subject.model.tokenizer.add_tokens([f"[{number}]" for number in range(20)])
    subject.model.tokenizer.pad_token = "[19]"
    assert evaluation(WRITTEN)(subject).metrics == expected


def test_a_question_without_tokens_has_no_score(subject, evaluation):
    with pytest.raises(RunFailed, match="the context of a question has no token"):
        evaluation({"doc_to_text": "  ", "target_delimiter": ""})(subject)


def test_a_chat_template_that_is_not_there_is_missed_before_the_weights_are_read(letters):
    with pytest.raises(BadInput, match=r"ZeroShot\.apply_chat_template=true needs a chat template.*of tiny has not"):
        ZeroShot(apply_chat_template=True).check_tokenizer(letters, "tiny")
    letters.chat_template = {"tools": "{{ messages }}"}  # several, of which none is the default
    with pytest.raises(BadInput, match="needs a chat template"):
        ZeroShot(apply_chat_template=True).check_tokenizer(letters, "tiny")


def test_a_chat_template_that_refuses_the_prompts_is_found_before_anything_is_done(subject, evaluation):
    subject.model.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(BadInput, match=r"task a: .*roles must alternate.*ZeroShot\.apply_chat_template"):
        evaluation(apply_chat_template=True).check(subject)


def test_bos_that_is_not_there_cannot_be_added(letters):
    without(letters, "bos_token")
    with pytest.raises(BadInput, match=r"add_bos_token=true needs a BOS token"):
        ZeroShot(add_bos_token=True).check_tokenizer(letters, "tiny")


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "max_length"])
def test_what_the_harness_sets_is_no_argument_of_a_chat_template(name):
    with pytest.raises(BadInput, match=rf"ZeroShot\.chat_template_args=.*names {name}"):
        ZeroShot(chat_template_args={name: "x"})


@pytest.mark.parametrize(("shots", "there"), [(2, 1), (10**12, 1)])
def test_more_examples_than_there_are_are_refused(evaluation, shots, there):
    with pytest.raises(BadInput, match=rf"task a: {shots} few-shot examples.* there are {there} beside"):
        evaluation({"fewshot_split": "test"}, num_fewshot=shots).prepare()


@pytest.mark.parametrize(("flag", "what"), [("UNSAFE_CODE", "code"), ("MULTIMODAL", "images")])
def test_tasks_that_this_adapter_does_not_do_are_refused(evaluation, monkeypatch, flag, what):
    from lm_eval.api.task import ConfigurableTask

    monkeypatch.setattr(ConfigurableTask, flag, True, raising=False)
    with pytest.raises(BadInput, match=rf"task a .*{what}"):
        evaluation().prepare()
