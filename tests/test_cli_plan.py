"""`cqs plan`: what a run would do, the strategies side by side, and plans of any size in no time."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run, assert_refused

import cqs
from cqs.cli.comparison import comparison_table
from cqs.cli.measure import measured_rates
from cqs.cli.summary import plan_rows, summarize
from cqs.schedule import Rates


def test_plan_from_shapes(cli: Run) -> None:
    code, out, err = cli("plan --tokens 4096 --heads 8 --dim 64 --workers 31")
    assert (code, err) == (0, "")
    assert "31 tasks, each with 6 of 31 groups (base 0 1 3 10 14 26)" in out
    assert "of all 24.0 MiB" in out


def test_plan_json_is_the_plan_and_its_loads(cli: Run) -> None:
    shape = "--tokens 1e3 --heads 8 --kv-heads 2 --dim 64 --value-dim 32 --batch 2 3 --dtype bfloat16"
    code, out, _ = cli(f"plan {shape} --workers 13 --causal --json")
    plan = cqs.Plan.from_json(out)
    expected = [(2, 3, 8, 1000, 64), (2, 3, 2, 1000, 64), (2, 3, 2, 1000, 32)]
    assert code == 0
    assert plan == cqs.plan(*expected, workers=13, is_causal=True, dtype="bfloat16")
    tasks = list(plan.tasks())
    assert json.loads(out)["loads"] == {
        "n_tasks": 13,
        "n_counted": 13,
        "least_pairs": min(plan.loads()),
        "most_pairs": max(plan.loads()),
        "held_bytes": max(map(plan.held_bytes, tasks)),
        "whole_bytes": 2 * sum(int(np.prod(shape)) for shape in expected),
        "partial_bytes": max(map(plan.partial_bytes, tasks)),
    }


def test_plan_from_files_and_for_cross_attention(cli: Run, qkv: Any) -> None:
    of_files = cqs.Plan.from_json(cli("plan q.npy k.npy v.npy --json")[1])
    assert of_files == cqs.plan("q.npy", "k.npy", "v.npy", out="out.npy")  # what `cqs run` does
    assert cqs.Plan.from_json(cli("plan inputs.npz --json")[1]) == cqs.plan(*qkv, out="out.npy")
    assert cqs.Plan.from_json(cli("plan inputs.npz --json --strategy tiles")[1]).strategy == "tiles"
    plan = cqs.Plan.from_json(cli("plan --tokens 10 --key-tokens 1000 --heads 1 --dim 4 --workers 5 --json")[1])
    assert (plan.strategy, plan.problem.n_keys) == ("tiles", 1000)


def test_plan_of_very_many_tasks_counts_some(cli: Run) -> None:
    code, out, _ = cli("plan --tokens 1e9 --heads 1 --dim 64 --workers 100000000 --strategy tiles")
    assert code == 0
    assert "counted in 16 tasks of 100,000,000" in out
    assert "cqs cannot: `--workers` must be at most 10000000" in out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("plan", ["missing: --tokens, --heads, --dim"]),
        ("plan --tokens 100 --dim 4", ["missing: --heads"]),
        ("plan inputs.npz --tokens 100", ["`--tokens`", "left out"]),
        ("plan --tokens 1.5 --heads 1 --dim 4", ["--tokens", "whole number"]),
        ("plan --tokens many --heads 1 --dim 4", ["--tokens", "'many'"]),
        ("plan --tokens 100 --heads 1 --dim 4 --dtype int8", ["int8"]),
        ("plan --tokens 100 --heads 3 --kv-heads 2 --dim 4", ["multiple of the 2 heads"]),
        ("plan --tokens 100 --heads 0 --dim 4", ["at least one head"]),
        ("plan --tokens 100 --heads 2 --kv-heads 0 --dim 4", ["`--kv-heads` must be at least 1", "--heads"]),
        ("plan --tokens 100 --heads 2 --dim 4 --value-dim 0", ["`--value-dim` must be at least 1", "--dim"]),
        ("plan --tokens 100 --heads 2 --dim 4 --dtype=", ["`--dtype` must be one of float16", "float32"]),
    ],
)
def test_plan_refuses(cli: Run, line: str, words: list[str]) -> None:
    assert_refused(cli(line), *words)


# strategies side by side


def test_plan_shows_both_strategies_side_by_side(cli: Run) -> None:
    code, out, err = cli("plan --tokens 1e5 --heads 8 --dim 64 --memory 64MiB --rate 100G --bandwidth 2GB/s")
    assert (code, err) == (0, "")
    (head,) = [line for line in out.splitlines() if "(picked)" in line]
    assert {word for word in head.split() if word != "(picked)"} == {"cqs", "tiles"}
    for name in ("bytes held", "bytes read", "bytes spilled", "bytes moved", "predicted time", "work", "tasks"):
        assert f"\n  {name} " in out
    assert "as stated" in out


def test_plan_compares_what_the_scheduler_plans(cli: Run) -> None:
    line = "plan --tokens 1e5 --heads 8 --dim 64 --memory 64MiB --causal --rate 100G --bandwidth 2GB --threads 2 --json"
    values = json.loads(cli(line)[1])
    picked, found = cqs.Plan.from_json(json.dumps(values)), values["comparison"]["strategies"]
    assert (picked.setting.is_staged, picked.setting.output, picked.setting.threads) == (True, "sink", 2)
    assert found[picked.strategy]["projected_bytes"] == picked.projected_bytes <= 64 << 20
    assert found[picked.strategy]["n_tasks"] == len(picked)
    for strategy in ("cqs", "tiles"):
        plan = cqs.Scheduler(None, strategy, "64MiB", cqs.schedule.Setting(**values["setting"])).plan(picked.problem)
        assert found[strategy]["traffic"]["moved"] == plan.traffic.moved
        assert found[strategy]["traffic"]["read"] == plan.traffic.read
        assert found[strategy]["seconds"] == pytest.approx(plan.seconds(Rates(100e9, 2e9)))
        assert found[strategy]["flop"] == plan.problem.flops(plan.problem.n_pairs)


def test_plan_says_why_a_strategy_cannot(cli: Run) -> None:
    out = cli("plan --tokens 2e5 --heads 1 --dim 64 --memory 4MiB --threads 1")[1]
    assert "cqs cannot: `--memory` must be at least" in out
    values = json.loads(cli("plan --tokens 2e5 --heads 1 --dim 64 --memory 4MiB --threads 1 --json")[1])
    assert "must be at least" in values["comparison"]["strategies"]["cqs"]["error"]
    assert values["comparison"]["picked"] == "tiles"


def test_plan_says_when_the_other_would_be_faster(cli: Run) -> None:
    line = "plan --tokens 1e5 --heads 8 --dim 64 --memory 64MiB --strategy cqs --bandwidth 1MB"
    assert "At these rates tiles would be faster: ask for it with --strategy tiles." in cli(line)[1]


@pytest.mark.parametrize("strategy", ["ring", "tree"])
def test_plan_of_other_schemes(cli: Run, strategy: str) -> None:
    code, out, _ = cli(f"plan --tokens 1000 --heads 1 --dim 8 --workers 7 --strategy {strategy}")
    assert code == 0
    assert f"{strategy} (picked)" in out


def test_plan_with_masks_and_scores(cli: Run) -> None:
    line = "plan --tokens 10000 --heads 8 --dim 64 --workers 7 --causal --window 100 --sinks 4 --softcap 30 --alibi"
    plan = cqs.Plan.from_json(cli(f"{line} --json")[1])
    masks = cqs.masks
    assert plan.problem.mask == (masks.SlidingWindow(100) | masks.Sinks(4)) & masks.Causal()
    assert plan.setting.has_scores
    both = cqs.Plan.from_json(cli("plan --tokens 1000 --heads 1 --dim 8 --window 10 --json")[1])
    assert both.problem.mask == masks.SlidingWindow(10, 10)


def test_measured_rates(cli: Run, qkv: Any) -> None:
    for path in (None, "q.npy"):
        rates = measured_rates(2, path)
        assert rates.flops > 1e8
        assert rates.bytes > 1e5
    assert "measured here" in cli("plan q.npy k.npy v.npy --measure")[1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("plan --tokens 1e6 --heads 8 --dim 64 --memory 1MB", ["`--memory` must be at least"]),
        ("plan --tokens 1e6 --heads 8 --dim 64 --memory lots", ["`--memory`", "'lots'"]),
        ("plan --tokens 1e6 --heads 8 --dim 64 --memory 1GB --strategy ring", ["`--strategy`", "'ring'"]),
        ("plan --tokens 1e6 --heads 8 --dim 64 --rate fast", ["--rate", "'fast'"]),
        ("plan --tokens 1e6 --heads 8 --dim 64 --bandwidth 0", ["`--bandwidth`", "more than 0"]),
        ("plan --tokens 1e6 --heads 8 --dim 64 --sinks 4", ["`--sinks`", "--window"]),
        ("plan --tokens 1e6 --heads 8 --dim 64 --backend cupy --threads 2", ["`--threads`", "where GPUs compute"]),
        ("plan --tokens 1e6 --heads 8 --dim 64 --devices 0,1 --threads 2", ["`--threads`", "where GPUs compute"]),
    ],
)
def test_plan_refuses_budgets_and_rates(cli: Run, line: str, words: list[str]) -> None:
    assert_refused(cli(line), *words)


def test_plan_says_what_computes_where_that_is_not_plain(cli: Run) -> None:
    _, out, _ = cli("plan --tokens 1000 --heads 1 --dim 8")
    assert "kernel  " not in out
    plan = cqs.plan(*[(1, 1000, 8)] * 3)
    setting = replace(plan.setting, kernel="gemm", devices=("cuda:0",), passed_over=(("cudnn", "it wants float16"),))
    rows = dict(plan_rows(replace(plan, setting=setting), summarize(plan)))
    assert rows["kernel"] == "gemm on cuda:0; not cudnn: it wants float16"


# planning is cheap

_HUGE = """
import resource, sys, cqs.cli
code = cqs.cli.main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
# not ru_maxrss, in which the memory of the process that started this one counts
(peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(code, used.ru_utime + used.ru_stime, peak, file=sys.stderr)
"""


def slowness() -> float:
    """How many times as long this machine takes now as one whose CPU adds up a million squares in 40 ms."""
    start = time.process_time()
    sum(i * i for i in range(1_000_000))
    return (time.process_time() - start) / 0.04


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("options", ["", "--causal", "--window 4096 --causal"])
def test_a_plan_for_a_billion_tokens_takes_2_seconds_and_200_mib(options: str) -> None:
    line = f"plan --tokens 1e9 --heads 8 --dim 64 --memory 8GiB {options}".split()
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def run(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=environ)

    run("import cqs.cli.plan, cqs.cli.comparison, rich.table")  # compiles what has not been imported yet
    before = slowness()
    done = run(_HUGE, *line)
    code, cpu_seconds, peak_kib = map(float, done.stderr.split())
    for name in ("W", "tasks", "bytes moved", "work", "predicted time"):
        assert f"\n  {name} " in done.stdout
    assert code == 0
    assert cpu_seconds < 2 * max(before, slowness(), 1)
    assert peak_kib < 200 << 10


# what changes a plan


def test_plan_takes_what_changes_the_plan_of_a_run(cli: Run, qkv: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    mask, bias, logits = rng.random((300, 300)) < 0.1, rng.standard_normal((4, 1, 300)), rng.standard_normal(4)
    for name, array in (("mask", mask), ("bias", bias.astype("f4")), ("logits", logits.astype("f4"))):
        np.save(tmp_path / f"{name}.npy", array)
    files = "q.npy k.npy v.npy"
    line = "--workers 7 --window 9 --bias bias.npy --sink-logits logits.npy --scale 0.5 --kernel blockwise"
    found = cqs.Plan.from_json(cli(f"plan {files} {line} --lse --json")[1])
    ran = json.loads(cli(f"run {files} {line} --lse lse.npy -o out.npy --json")[1])["plan"]
    assert found == cqs.Plan.from_json(json.dumps(ran))
    assert (found.setting.kernel, found.setting.has_scores, found.setting.keeps_lse) == ("blockwise", True, True)
    masked = json.loads(cli(f"plan {files} --workers 7 --mask mask.npy --causal --json")[1])
    assert "bool array of shape (300, 300)" in masked["problem"]["mask"]
    assert masked["loads"]["most_pairs"] < np.tril(mask).sum() < 7 * masked["loads"]["most_pairs"]
    code, out, _ = cli(f"run {files} --workers 7 --mask mask.npy --causal --json -o masked.npy")
    assert (code, json.loads(out)["plan"]["loads"]) == (0, masked["loads"])
    assert_refused(cli(f"plan {files} --bias mask.npy"), "`--bias`")
    assert_refused(cli(f"plan {files} --sink-logits bias.npy"), "`--sink-logits`")
    assert_refused(cli(f"plan {files} --mask nope.npy"), "`--mask` must be a file that exists")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("--workers 31", "(auto takes cqs where --workers is given"),
        ("", "(auto compares the two under --memory only)"),
        ("--workers 31 --strategy cqs", "ask for it with --strategy tiles.\n"),
    ],
)
def test_plan_says_why_the_faster_one_was_not_picked(cli: Run, options: str, why: str) -> None:
    _, out, _ = cli(f"plan --tokens 4096 --heads 8 --dim 64 --threads 4 --bandwidth 1MB {options}")
    assert "At these rates tiles would be faster" in out
    assert why in out


def test_plan_compares_in_words() -> None:
    plan = cqs.plan(*[(1, 1000, 8)] * 3, workers=1)
    _, (remark,) = comparison_table({"cqs": plan, "other": plan}, plan, Rates(1e9, 1e9))
    assert remark == "other would move as many bytes, and take as long."
