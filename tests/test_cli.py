"""The command line from end to end on a tiny model, and help that answers at once."""

from __future__ import annotations

import io
import json
import re
import resource
import shutil
import statistics
import subprocess
import sys
from typing import Any

import pytest

from trimtab.errors import UsageError
from trimtab.testing import tiny

COMMANDS = (
    "demo",
    "learn",
    "learn dso",
    "eval",
    "fetch",
    "frontier",
    "lm-eval",
    "generate",
    "chat",
    "report",
    "show",
    "tasks",
)
KEYS = ["model", "steering", "strength", "task", "split", "metric", "value", "low", "high", "n", "clusters", "seed"]
WITHOUT_TORCH = """
import sys, contextlib, io
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    from trimtab.cli import main
    main(sys.argv[1:])
print(sorted({"torch", "numpy", "transformers", "safetensors"} & set(sys.modules)))
"""


def test_help_answers_within_three_tenths_of_a_second():
    """Median of five processes, in processor time: what a clock shows on a machine that does nothing else."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "trimtab.cli", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    taken = [once() for _ in range(5)]
    assert statistics.median(taken) < 0.3, taken


@pytest.mark.parametrize(
    "args", [[], ["--help"], ["--version"], ["learn", "dso", "--help"], ["eval", "--help"], ["tasks"]]
)
def test_help_imports_no_torch(args):
    """Nor anything else that takes long."""
    found = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *args], capture_output=True, text=True, check=True)
    assert found.stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(trimtab_cli, command):
    """With code 0 and its own usage."""
    ran = trimtab_cli(*command.split(), "--help")
    assert ran.code == 0
    assert ran.out.startswith(f"usage: trimtab {command}")


def test_the_help_lists_commands_and_exit_codes_and_nothing_is_a_usage_error(trimtab_cli):
    """The one page that a newcomer sees."""
    ran = trimtab_cli("--help")
    assert all(f" {c.split()[-1]} " in ran.out for c in COMMANDS if c != "learn dso")
    assert "exit codes: 0 done" in ran.out
    assert trimtab_cli().code == 2


def test_version(trimtab_cli):
    """The package's own."""
    import trimtab

    assert trimtab_cli("--version").out.strip() == f"trimtab {trimtab.__version__}"


def test_tasks_are_listed(trimtab_cli):
    """With a line about each."""
    ran = trimtab_cli("tasks")
    assert ran.code == 0
    assert all(name in ran.out for name in ("pronoun", "coreference", "jsonl"))


# -- from a task file to a report


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, learned, task_file, neutral_file):
    """An eval folder of the learned steering."""
    from trimtab.cli import main

    out = tmp_path_factory.mktemp("run")
    code = main([
        "eval", "--steering", str(learned), "--task", f"jsonl:{task_file}", "--seed", "0", "--strength", "0,1",
        "--neutral", str(neutral_file), "--out", str(out), "--json", str(out / "figures.json"),
    ])  # fmt: skip
    assert code == 0
    return out


def test_show_tells_a_person_what_a_steering_is(trimtab_cli, learned, chat_folder):
    """Model, range, data, settings, results with intervals, limits; --json gives the card itself."""
    ran = trimtab_cli("show", learned)
    assert ran.code == 0
    for part in (
        "h' = h + w (A h + c)",
        str(chat_folder),
        "trained 0 to 1",
        "safe",
        "steps=30",
        "per_concept_bias",
        "limits:",
    ):
        assert part in ran.out
    card = json.loads(trimtab_cli("show", learned, "--json").out)
    assert card == json.loads((learned / "card.json").read_text())


def test_eval_writes_the_agreed_json_to_a_file_and_to_standard_output(
    trimtab_cli, run_folder, learned, task_file, neutral_file
):
    """Exactly the agreed keys; `-` puts nothing else on standard output; both say the same."""
    ran = trimtab_cli(
        "eval", "--steering", learned, "--task", f"jsonl:{task_file}", "--seed", 0, "--strength", "0,1",
        "--neutral", neutral_file, "--json", "-",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert all(list(r) == KEYS for r in found)
    assert found == json.loads((run_folder / "figures.json").read_text())
    assert {r["steering"] for r in found} == {str(learned), "instruction", "random"}
    assert {r["split"] for r in found} == {"test"}
    assert "per_concept_bias" in ran.err


def test_eval_of_the_base_alone_needs_no_steering(trimtab_cli, chat_folder, task_file, neutral_file):
    """Its rows are named base, at strength 0, beside the instruction."""
    ran = trimtab_cli(
        "eval", "--model", chat_folder, "--task", f"jsonl:{task_file}", "--seed", 0, "--neutral", neutral_file,
        "--limit", 6, "--json", "-",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert {(r["steering"], r["strength"]) for r in json.loads(ran.out)} == {("base", 0.0), ("instruction", 1.0)}


def test_eval_of_all_items_of_an_undivided_file(trimtab_cli, chat_folder, task_file, neutral_file):
    """--split all measures every item."""
    ran = trimtab_cli(
        "eval", "--model", chat_folder, "--task", f"jsonl:{task_file}", "--seed", 0, "--neutral", neutral_file,
        "--split", "all", "--no-controls", "--json", "-",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert {r["n"] for r in json.loads(ran.out) if r["metric"] == "neither_rate"} == {48}


def test_report_is_one_file_that_loads_nothing(trimtab_cli, run_folder, tmp_path):
    """Its path is printed; it has the figures' names in it and no address to fetch from."""
    ran = trimtab_cli("report", run_folder, "--out", tmp_path / "page.html")
    assert ran.code == 0, ran.err
    assert ran.out.strip() == str(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<html" in page
    assert not re.search(r'(src|href)="(https?:)?//', page)


def test_report_of_a_folder_without_a_run_is_refused(trimtab_cli, tmp_path):
    """One line, no page."""
    ran = trimtab_cli("report", tmp_path)
    assert ran.code in (3, 7)
    assert str(tmp_path) in ran.error
    assert not (tmp_path / "report.html").exists()


def test_generate_continues_prompts_and_reads_standard_input(trimtab_cli, learned, monkeypatch):
    """Prompts as arguments, or one on standard input; strength 0 is the base's text."""
    ran = trimtab_cli("generate", "--steering", learned, "--strength", 0, "--max-new-tokens", 5, "Hello", "Good day")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("Hello")
    assert "\nGood day" in ran.out
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    alone = trimtab_cli("generate", "--steering", learned, "--strength", 0, "--max-new-tokens", 5)
    assert ran.out.startswith(alone.out.rstrip("\n"))


def test_a_prompt_that_is_no_utf8_is_refused(trimtab_cli, learned):
    ran = trimtab_cli("generate", "--steering", learned, b"caf\xe9".decode("utf-8", "surrogateescape"))
    assert ran.code == 2 and "not UTF-8" in ran.error


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_what_is_generated_ends_with_the_context(family):
    """Also where positions are learned and there is none beyond it; a prompt that leaves no room is refused."""
    model = tiny(family)
    rows = [(5,) * (model.context - 3), (5, 6)]
    assert all(len(new) <= 3 for new in model.generate_ids(rows, max_new_tokens=9))
    with pytest.raises(UsageError, match=f"takes {model.context}, its answer included"):
        model.generate_ids([(5,) * model.context], max_new_tokens=9)


def test_generate_compares_side_by_side(trimtab_cli, learned):
    """Base left, steered right, both labelled."""
    ran = trimtab_cli(
        "generate", "--steering", learned, "--compare", "--strength", "1", "--max-new-tokens", 8, "Hello there"
    )
    assert ran.code == 0, ran.err
    head, columns, *rest = ran.out.splitlines()
    assert head == "Hello there ..."
    assert re.fullmatch(r"  base +\| strength 1", columns)
    assert all(" | " in line for line in rest)


def test_chat_turns_its_dial_inside(trimtab_cli, learned, monkeypatch):
    """A dial that turns, refusals that do not end the chat, answers, a reset, an unknown command, and the end."""
    said = [
        "/strength 0.3",
        "Good morning",
        "/strength nan",
        "/strength 7",
        "/strength",
        "/dance",
        "a" * 999,
        "Again",
        "/reset",
        "Hello",
        "/quit",
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(said) + "\n"))
    ran = trimtab_cli("chat", "--steering", learned, "--strength", "0.7", "--max-new-tokens", 4)
    assert ran.code == 0, ran.err
    assert "strength 0.7" in ran.err
    assert "strength 0.3\n" in ran.out
    assert "finite" in ran.out
    assert "trained range" in ran.out
    assert "no strength" in ran.out
    assert "commands: /strength" in ran.out
    assert "takes 256, its answer included; /reset begins anew" in ran.out
    assert ran.out.count("model>") == 3, "what was too long is forgotten"
    assert "did nothing" not in ran.out


def test_chat_ends_with_its_input_and_refuses_a_bad_strength_at_once(trimtab_cli, learned, chat_folder, monkeypatch):
    """Ctrl-D is a way to leave; without a steering only strength 0 is possible."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    assert trimtab_cli("chat", "--model", chat_folder, "--max-new-tokens", 2).code == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    ran = trimtab_cli("chat", "--steering", learned, "--strength", "3")
    assert ran.code == 2
    assert "model>" not in ran.out
    monkeypatch.setattr(sys, "stdin", io.StringIO("/strength 0.5\n/quit\n"))
    ran = trimtab_cli("chat", "--model", chat_folder)
    assert ran.code == 0
    assert "no steering" in ran.out


def test_a_reader_that_leaves_is_no_error(learned):
    """`trimtab show ... | head -1` ends quietly."""
    command = f"{sys.executable} -m trimtab.cli show {learned} | head -c 10"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert found.returncode == 0
    assert "Broken" not in found.stderr
    assert "Traceback" not in found.stderr


def test_the_same_learn_command_writes_the_same_bytes(trimtab_cli, chat_folder, task_file, neutral_file, tmp_path):
    """Card and tensors, results included."""

    def learn(out: Any) -> dict[str, bytes]:
        ran = trimtab_cli(
            "learn", "dso", "--model", chat_folder, "--task", f"jsonl:{task_file}", "--seed", 3, "--out", out,
            "--neutral", neutral_file, "--steps", 3,
        )  # fmt: skip
        assert ran.code == 0, ran.err
        return {p.name: p.read_bytes() for p in out.iterdir()}

    assert learn(tmp_path / "one") == learn(tmp_path / "other")


def test_a_floor_chooses_the_strength_and_the_card_keeps_it(trimtab_cli, learned, task_file, neutral_file, tmp_path):
    """A floor that nothing can break leaves the least biased strength; one that nothing can keep leaves the base. The
    card's default is what generate uses."""
    folder = tmp_path / "steering"
    shutil.copytree(learned, folder)
    task = f"jsonl:{task_file}"
    spec = ("--task", task, "--seed", 0, "--strength", "0,0.5,1", "--neutral", neutral_file, "--no-controls")
    for points, wanted in ((100, {0.5, 1.0}), (0, {0.0})):
        ran = trimtab_cli("eval", "--steering", folder, *spec, "--floor", f"{task}={points}")
        assert ran.code == 0, ran.err
        card = json.loads((folder / "card.json").read_text())
        assert card["strength"]["default"] in wanted
        assert card["operating_point"]["strength"] == card["strength"]["default"]
        assert card["operating_point"]["split"] == "test"
    assert "strength to use: 0 (safe: 0 to 0)" in ran.err
    assert trimtab_cli("generate", "--steering", folder, "Who is it").code == 0
    for more, words in (
        (("--floor", "mmlu=1"), "'mmlu' is not measured here"),
        (("--floor", "mmlu"), "a floor is TASK=POINTS"),
        (("--floor", f"{task}=1", "--bias", "x"), "TASK.FIGURE"),
    ):
        refused = trimtab_cli("eval", "--steering", folder, *spec, *more)
        assert refused.code == 2 and words in refused.error


def test_frontier_of_a_run(trimtab_cli, run_folder):
    """A row a method and strength, an area a method, and the strength to use under a floor; from records alone."""
    task = json.loads((run_folder / "summary.json").read_text())["tasks"][0]["name"]
    ran = trimtab_cli("frontier", run_folder, "--seed", 0, "--floor", f"{task}=100")
    assert ran.code == 0, ran.err
    rows = [line.split()[:2] for line in ran.out.splitlines()]
    assert {("base", "0"), ("steering", "1"), ("random", "1"), ("instruction", "1")} <= {tuple(r) for r in rows}
    assert "area, loss up to 3 points: steering" in ran.out and "strength to use:" in ran.out
    assert trimtab_cli("frontier", run_folder, "--seed", 0, "--floor", "mmlu=1").code == 2


def test_lm_eval_that_is_not_installed_says_which_extra(trimtab_cli, learned, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.registry", None)
    monkeypatch.delitem(sys.modules, "trimtab.harness.lm_eval", raising=False)
    ran = trimtab_cli("lm-eval", "--tasks", "any", "--steering", learned)
    assert ran.code == 8 and "pip install 'trimtab[lm-eval]'" in ran.error


def test_arguments_that_no_command_knows_are_refused(trimtab_cli, learned):
    ran = trimtab_cli("show", learned, "--bogus")
    assert ran.code == 2 and "unrecognized arguments: --bogus" in ran.err
