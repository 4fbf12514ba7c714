import json

from affect_jax.config import classification_config
from affect_jax.runs import workdir
from affect_jax.runs.workdir import Workdir, claim, load_environment, record_start
from affect_jax.tasks.interface import DataFacts


def test_the_record_names_the_commits_and_devices_of_all_starts(tmp_path, monkeypatch):
    run = Workdir(tmp_path)
    starts = [
        {"command": "train a", "commit": "aaaa", "devices": "1 x cpu"},
        {"command": "train b", "commit": "aaaa", "devices": "1 x cpu"},  # only the command differs
        {"command": "train a", "commit": "bbbb", "devices": "1 x cpu"},
        {"command": "train a", "commit": "bbbb", "devices": "8 x tpu"},
    ]
    for number, start in enumerate(starts):
        monkeypatch.setattr(workdir, "environment", lambda start=start: start)
        if number == 0:
            claim(run, classification_config(), DataFacts(("happy", "sad"), (48, 48, 1)), {})
        record_start(run, step=10 * number)
    assert json.loads(run.config.read_text())["resumed"] == starts[2:]
    assert load_environment(run) == {
        "command": "train a",
        "commit": "aaaa, then bbbb",
        "devices": "1 x cpu, then 8 x tpu",
    }
    record_start(run, step=0)  # no checkpoint was found: nothing of the earlier attempts is left
    assert load_environment(run) == starts[-1]
