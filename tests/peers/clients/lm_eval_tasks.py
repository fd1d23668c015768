"""lm-evaluation-harness on a server: three tiny tasks of local data, one request at a time and several.

LLAMAFU_TASKS is a folder for the tasks' files, LLAMAFU_DOCS has the documents of each task as JSON, LLAMAFU_MODELS the models.
"""

import json
import os
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager

FOLDER = Path(os.environ["LLAMAFU_TASKS"])
TASKS = {
    "tiny_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "tiny_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}]
""",
    "tiny_answer": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false, temperature: 0.0}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


def write_tasks():
    for name, documents in json.loads(os.environ["LLAMAFU_DOCS"]).items():
        data = FOLDER / f"{name}.json"
        data.write_text("\n".join(map(json.dumps, documents)), encoding="utf-8")
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        (FOLDER / f"{name}.yaml").write_text(head + TASKS[name], encoding="utf-8")


def evaluate(model, concurrent):
    """Return the responses of every task's samples, by document."""
    arguments = {
        "model": model,
        "base_url": f"{os.environ['LLAMAFU_URL']}/v1/completions",
        "tokenizer_backend": "remote",
        "auth_token": os.environ["LLAMAFU_API_KEY"],
        "num_concurrent": concurrent,
        "max_length": 256,
    }
    found = lm_eval.simple_evaluate(
        model="local-completions",
        model_args=arguments,
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(FOLDER), include_defaults=False),
        batch_size=3,
        bootstrap_iters=0,
        log_samples=True,
    )
    return {
        name: [sample["resps"] for sample in sorted(samples, key=lambda one: one["doc_id"])]
        for name, samples in found["samples"].items()
    }


def main():
    os.environ["OPENAI_API_KEY"] = os.environ["LLAMAFU_API_KEY"]
    write_tasks()
    models = json.loads(os.environ["LLAMAFU_MODELS"])
    results = {f"{model}/{concurrent}": evaluate(model, concurrent) for model in models for concurrent in (1, 4)}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
