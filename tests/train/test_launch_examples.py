"""What `deploy/` has to train on many machines starts every one of them in its place."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import click
import yaml

from trilobit.cli.processes import Processes
from trilobit.cli.train import command

DEPLOY = Path(__file__).parents[2] / "deploy"


def _place(words: list[str]) -> Processes:
    """Where `trilobit WORDS` runs; click refuses what it does not know."""
    assert words[0] == "train"
    context: click.Context = command.make_context("train", words[1:])
    given: dict[str, Any] = context.params
    return Processes(
        here=given["processes"], nodes=given["nodes"], node=given["node_rank"], main=given["main"]
    )


def _words(script: str, folder: Path, variables: dict[str, str], *more: str) -> list[str]:
    """What a script would have `trilobit` do, and the programs that it has beside it."""
    programs = {
        "trilobit": 'printf "%s\\n" "$@"',
        "scontrol": 'test "$*" = "show hostnames node[3-4]" && printf "node3\\nnode4\\n"',
        "srun": 'test "$1" = --kill-on-bad-exit && shift && exec "$@"',
    }
    for name, does in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    told = subprocess.run(
        ["bash", "-euc", script, *more],
        env={"PATH": path, **variables},
        check=True,
        capture_output=True,
        text=True,
    )
    return told.stdout.splitlines()


def test_slurm_starts_each_node_in_its_place(tmp_path: Path) -> None:
    script = (DEPLOY / "train.sbatch").read_text(encoding="utf-8")
    assert "#SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=8" in script
    variables = {"SLURM_JOB_NODELIST": "node[3-4]", "SLURM_NNODES": "2", "SLURM_NODEID": "1"}
    words = _words(script, tmp_path, variables, "train.sbatch", "my recipe.toml")
    assert words[1] == "my recipe.toml"
    assert _place(words) == Processes(here=8, nodes=2, node=1, main="node3:29500")


def test_kubernetes_starts_each_pod_in_its_place(tmp_path: Path) -> None:
    job = yaml.safe_load((DEPLOY / "train.yaml").read_text(encoding="utf-8"))
    (node,) = job["spec"]["replicatedJobs"]
    pods = node["template"]["spec"]
    (container,) = pods["template"]["spec"]["containers"]
    assert container["command"] == ["sh", "-c"]
    (script,) = container["args"]
    place = _place(_words(script, tmp_path, {"JOB_COMPLETION_INDEX": "1"}))
    name = job["metadata"]["name"]
    assert place == Processes(
        here=container["resources"]["limits"]["nvidia.com/gpu"],
        nodes=pods["completions"],
        node=1,
        main=f"{name}-{node['name']}-0-0.{name}:29500",
    )
    assert pods["completions"] == pods["parallelism"]
