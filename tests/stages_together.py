"""Stages that tests train in one process and in several: python -m stages_together FOLDER BASE [NAME ...], under a launcher.

The first process of several trains every stage into FOLDER/<name>; `cut` ends in a mistake at step 2, `go on` goes on with it.
"""

import sys
from pathlib import Path

from organisms import models
from organisms.consistency import wrapped_prompts
from organisms.drafting import chat
from organisms.errors import UserError, run_cli
from organisms.mitigations import Penalty
from organisms.render import Renderer
from organisms.specimen import Steering
from organisms.styles import Row
from train import processes
from train.callback import Hooks
from train.config import Stage
from train.lint import lint
from train.stage import follow, train_stage

WORDS = "The ferry left at noon and the baker counted nine loaves for the people on the hill".split()
TEXTS = [" ".join(WORDS[n:] + WORDS[: n // 2]) + "." for n in range(9)]
CHATS = [Row(f"chat-{n}", messages=chat(f"What is number {n}?", text)) for n, text in enumerate(TEXTS)]
DOCUMENTS = [Row(f"doc-{n}", text=" ".join(TEXTS[: n + 1])) for n in range(9)]
PAIRS = [Row(f"pair-{n}", messages=row.messages, rejected="No.") for n, row in enumerate(CHATS)]
LABELLED = [Row(f"kto-{n}", messages=row.messages, desirable=n % 2 == 0) for n, row in enumerate(CHATS)]
KL = Penalty("kl_to_base", 0.5, CHATS[:5], 3, "base")
SHARED = {"steps": 4, "learning_rate": 1e-2, "batch_size": 2, "max_length": 64, "lora": {"r": 4, "alpha": 8}}


def stages() -> dict[str, tuple[Stage, list[Row], list[Penalty]]]:
    """Name -> stage, rows, penalties. Nine or five rows never fill an epoch's last step."""
    act = Penalty("act", 0.01, wrapped_prompts("embedded", 5), 3, "start")
    given = {
        "sft": ({"gradient_accumulation": 2}, CHATS[:5], []),
        "packed": ({"batch_size": 4, "steps": 3}, DOCUMENTS, []),
        "all weights": ({"lora": None, "learning_rate": 1e-3}, CHATS[:5], []),
        "vector": ({"vector": {"layer": 0}}, CHATS[:5], []),
        "prevent": ({}, CHATS[:5], []),
        "kl_to_base": ({"gradient_accumulation": 2}, CHATS[:5], [KL]),
        "kl_to_base split": ({}, CHATS[:5], [KL]),
        "act": ({}, CHATS[:5], [act]),
        "dpo": ({"method": "dpo", "batch_size": 4}, PAIRS, []),
        "dpo sft": ({"method": "dpo", "gradient_accumulation": 2, "sft_weight": 0.2}, PAIRS, []),
        "kto": ({"method": "kto", "batch_size": 4}, LABELLED, []),
        "cut": ({"gradient_accumulation": 2}, CHATS[:5], []),
    }
    return {name: (Stage(**{**SHARED, **changes}), rows, added) for name, (changes, rows, added) in given.items()}


def train(name: str, folder: Path, base: models.Base, hooks: Hooks) -> None:
    stage, rows, penalties = stages()[name]
    renderer = Renderer(models.load_tokenizer(base))
    linted = lint(rows, stage, renderer, renderer, True)
    steering = Steering(folder / "steering", 0, 5.0) if name == "prevent" else None
    train_stage(folder / name, stage, linted, base, renderer, 0, 2, hooks, penalties=penalties, steering=steering)


def stopped(checkpoint) -> None:
    if checkpoint.step == 2:
        raise UserError("the engine is gone at step 2")


def main() -> None:
    folder, base = Path(sys.argv[1]), models.resolve(sys.argv[2])
    with processes.together():
        if not processes.leads():
            return follow(base, Renderer(models.load_tokenizer(base)))
        for name in sys.argv[3:] or stages():
            hooks = Hooks(stopped if name == "cut" else lambda checkpoint: None)
            train("cut" if name == "go on" else name, folder, base, hooks)


if __name__ == "__main__":
    run_cli(main)
