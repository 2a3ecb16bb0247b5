"""Short runs of every command that trains, and the digests of the weights that they end with.

    python tools/weight_digests.py --output before.json          # then change the code
    python tools/weight_digests.py --output after.json --compare before.json

A change that is meant to change no result leaves every digest as it was. Digests hold on one
machine with the same libraries and number of cores; on another the last bits may differ.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

TASK = (
    "{type: reasoning_gym, task: chain_sum, size: %d, seed: %d, "
    "params: {min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1}}"
)
REWARD = '''
from rewards.registry import register
from rlstack.types import RewardRequest


@register("early_letters")
def early_letters(request: RewardRequest) -> float:
    """The share of characters of the first half of the alphabet, so that random text differs."""
    early = sum("a" <= character <= "m" for character in request.response)
    return early / max(1, len(request.response))
'''
COMMON = ["placement.trainer_ranks=2", "placement.device=cpu", "trainer.learning_rate=0.001"]
SAMPLED = [
    f"data.train=[{TASK % (100, 1)}]",
    "data.max_prompt_tokens=128",
    "rollout.num_samples=4",
    "rollout.max_response_tokens=12",
    "rollout.kv_cache_gib=1",
    "reward.plugins=[early_letters.py]",
    "reward.components=[{name: early_letters}]",
    "reward.num_workers=1",
]
RL = [
    *COMMON,
    *SAMPLED,
    f"data.eval=[{TASK % (6, 2)}]",
    "data.prompts_per_step=8",
    "algorithm.updates_per_epoch=2",
    "checkpoint.every=2",
    "evaluation.every=2",
    "total_steps=3",
]
PAIRS = [
    "data.train=[{type: file, path: pairs.jsonl}]",
    "data.eval=[{type: file, path: pairs.jsonl, limit: 4}]",
    "data.prompts_per_step=4",
    "data.max_prompt_tokens=64",
    "max_response_tokens=16",
    "epochs=1",
    "evaluation.every=3",
]
ROUNDS = [
    *COMMON,
    *SAMPLED,
    f"data.eval=[{TASK % (6, 2)}]",
    "data.prompts_per_step=4",
    "prompts_per_round=8",
    "max_response_tokens=12",
    "rounds=2",
    "evaluation.every=2",
    "data.shuffle=true",
]

RUNS: dict[str, list[str]] = {
    "reward_model": ["reward_model", *COMMON, *PAIRS, "loss.margin_scale=0.5"],
    "rl_grpo": ["rl", *RL, "algorithm.dynamic_sampling.enabled=true", "algorithm.kl.coef=0.01"],
    "rl_ppo": [
        "rl",
        *RL,
        "algorithm=pf_ppo",
        "algorithm.updates_per_epoch=2",
        "critic.warmup_steps=1",
        "critic.trainer.learning_rate=0.001",
        "critic.trainer.zero_stage=2",
        "reward=model",
        "reward.plugins=[]",
        "reward.components=[{name: reward_model}]",
        "reward.model.checkpoints=[reward_model/export]",
        "critic.path=reward_model/export",
    ],
    "rl_remax_lora": ["rl", *RL, "algorithm=remax", "trainer=lora", "trainer.zero_stage=3"],
    "rl_episodes": [
        "rl",
        *RL,
        "environment=reasoning_gym_retry",
        "environment.max_observation_tokens=16",
        # Turns come in any order, and what is computed beside what changes its rounding.
        "rollout.max_concurrent=1",
        "rollout.prefix_caching=false",
        "environment.num_workers=1",
        "rollout.max_response_tokens=64",
        f"rollout.stop=[{','.join('abcdefgh')}]",
    ],
    "sft": [
        "sft",
        *COMMON,
        "data.train=[{type: file, path: demonstrations.jsonl}]",
        "data.eval=[{type: file, path: demonstrations.jsonl, limit: 4}]",
        "data.prompts_per_step=4",
        "data.max_prompt_tokens=128",
        "max_response_tokens=12",
        "epochs=2",
        "evaluation.every=3",
        "trainer.max_tokens_per_microbatch=150",
    ],
    "dpo_pairs": ["dpo", *COMMON, *PAIRS, "objective=dpo"],
    "kto_labels": [
        "dpo",
        *COMMON,
        *PAIRS,
        "objective=kto",
        "data.train=[{type: file, path: judged.jsonl}]",
        "data.eval=[]",
    ],
    "dpo_rounds": ["dpo", *ROUNDS, "objective=ipo"],
    "rejection_sampling": [
        "rejection_sampling",
        *ROUNDS,
        "keep.min_reward=0.2",
        f"rollout.stop=[{','.join('nopqrstuvwxyz')}]",
    ],
}


def main() -> None:
    """Run what is asked for, print a digest a run, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", help=f"of {', '.join(RUNS)}; all where none is named")
    parser.add_argument("--output", type=Path, help="JSON file for the digests")
    parser.add_argument("--compare", type=Path, help="JSON file of earlier digests")
    arguments = parser.parse_args()
    before = json.loads(arguments.compare.read_text()) if arguments.compare else {}
    digests: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for run in arguments.runs or RUNS:
            digests[run] = digest_of(run, folder)
            same = {None: "", digests[run]: "as before"}.get(before.get(run), "DIFFERS")
            print(f"{run:20} {digests[run]} {same}", flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(digests, indent=2) + "\n")
    if any(before.get(run, digest) != digest for run, digest in digests.items()):
        sys.exit(1)


def prepare(folder: Path) -> None:
    """The model, the reward and the rows that the runs share."""
    sys.path.insert(0, str(ROOT))
    from tests.tiny_model import write_tiny_model

    write_tiny_model(folder / "model")
    (folder / "early_letters.py").write_text(REWARD)
    pairs = [
        {
            "prompt": f"How many for {number}?\n",
            "chosen": "7" * (number % 9 + 4),
            "rejected": "7" * (number % 3 + 1),
            "margin": 1.0,
        }
        for number in range(16)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    judged = [
        {"prompt": pair["prompt"], "response": pair[name], "label": name == "chosen"}
        for pair in pairs
        for name in ("chosen", "rejected")
    ]
    (folder / "judged.jsonl").write_text("\n".join(map(json.dumps, judged)))
    conversations = [
        [
            {"role": "user", "content": f"What is {number} and 1?"},
            {"role": "assistant", "content": f"It is {number + 1}."},
            {"role": "user", "content": "Are you sure?"},
            {"role": "assistant", "content": "Yes."},
        ]
        for number in range(12)
    ]
    lines = [json.dumps({"messages": turns}) for turns in conversations]
    (folder / "demonstrations.jsonl").write_text("\n".join(lines))


def digest_of(run: str, folder: Path) -> str:
    """`exported` of a run that is carried out now."""
    needs = folder / "reward_model" / "export"
    if run == "rl_ppo" and not needs.exists():
        digest_of("reward_model", folder)
    line = command_line(run)
    done = subprocess.run(
        line, cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{run} failed:\n{done.stdout}\n{done.stderr}")
    return exported(folder / run)


def command_line(run: str, *more: str, run_dir: str | None = None) -> list[str]:
    """Of a run in the folder that was prepared."""
    command, *overrides = RUNS[run]
    program = [sys.executable, "-m", "rlstack.cli", command]
    return [*program, *overrides, "model.path=model", f"run_dir={run_dir or run}", *more]


def environment() -> dict[str, str]:
    """Of a run."""
    return os.environ | {"PYTHONPATH": str(ROOT)}


def exported(run_dir: Path) -> str:
    """SHA-256 of all weights that a run has exported (policy and critic), 16 digits."""
    exports = sorted(run_dir.glob("export*/*.safetensors"))
    if not exports:
        sys.exit(f"{run_dir}: nothing was exported")
    digest = hashlib.sha256()
    for file in exports:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    main()
