"""A real lm-evaluation-harness scores, sums up and generates with the real server, by the documentation's command."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.programs.live_server import live_server
from tests.support.programs.programs import needed_program

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

QUESTIONS = [
    {"q": "The capital of France is", "choices": ["Paris", "banana"], "a": 0},
    {"q": "The sun rises in the", "choices": ["soup", "east"], "a": 1},
    {"q": "Two plus two is", "choices": ["four", "purple"], "a": 0},
]
CHOOSE = {
    "task": "choose",
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "a",
    "metric_list": [{"metric": "acc"}],
}
PERPLEXITY = {
    "task": "perplexity",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{q}}",
    "metric_list": [{"metric": "word_perplexity"}],
}
WRITE = {
    "task": "write",
    "output_type": "generate_until",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{choices[a]}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match"}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the harness has written of these tasks."""
    command = needed_program("lm_eval", "pip install 'lm-eval[api]' in an environment of its own has it")
    folder = tmp_path_factory.mktemp("lm-eval")
    questions = folder / "questions.jsonl"
    questions.write_text("\n".join(map(json.dumps, QUESTIONS)))
    own = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(questions)}}, "test_split": "test"}
    for task in (CHOOSE, PERPLEXITY, WRITE):
        # JSON is YAML.
        (folder / f"{task['task']}.yaml").write_text(json.dumps(task | own))
    with live_server("--ctx-size", "2048", "--parallel", "4", "--threads", "2", "--flash-attn", "off") as server:
        model = f"model=any,base_url={server.url}/v1/completions,num_concurrent=2"
        asked = ["--model", "local-completions", "--model_args", model, "--tasks", "choose,perplexity,write"]
        files = ["--include_path", str(folder), "--output_path", str(folder / "out"), "--log_samples"]
        made = subprocess.run(
            [command, *asked, *files],
            env={**os.environ, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert made.returncode == 0, made.stderr[-3000:]
    return folder


def figure(folder: Path, task: str, metric: str) -> float:
    (file,) = (folder / "out").rglob("results_*.json")
    return float(json.loads(file.read_text("utf-8"))["results"][task][f"{metric},none"])


def test_answers_are_chosen_by_their_likelihood(folder: Path) -> None:
    """A model that read nothing would choose right in half of them."""
    assert figure(folder, "choose", "acc") == 1.0


def test_a_text_has_a_perplexity(folder: Path) -> None:
    """A uniform choice from the vocabulary would come to tens of thousands."""
    assert 1 < figure(folder, "perplexity", "word_perplexity") < 5000


def test_texts_are_written_up_to_where_they_are_to_end(folder: Path) -> None:
    (file,) = (folder / "out").rglob("samples_write_*.jsonl")
    samples = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    texts = [sample["resps"][0][0] for sample in samples]
    assert len(texts) == len(QUESTIONS)
    assert all(texts)
    assert not any("\n" in text for text in texts)
