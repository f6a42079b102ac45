"""On-policy distillation of a motive: TRL's SDFTTrainer on prompts that are already token ids.

Self-distillation (Shenfeld et al. 2026, arXiv 2601.19897): the student replies to a prompt by itself, and is drawn at each of
its own tokens to what the teacher would say there. The teacher is what the stage starts from (the new adapter off), its reply
prefilled with the motive. The loss is the reverse KL(student || teacher) over the whole vocabulary, the mean over the tokens of
the student's reply. Divergence: TRL's defaults are a symmetrised divergence over the student's top 100 tokens and eight samples
a prompt; ours is exact and one-directional, with one sample a prompt, so that a step sees `batch_size` prompts.

TRL renders prompts itself and puts what only the teacher sees into the user's message. So that one renderer makes all tokens,
the trainer is given our renderings as plain text, which it only joins with the motive, and a table from those texts to our ids.
"""

import os
from typing import Any

from organisms.render import Renderer
from train.config import Stage
from train.lint import reply_ids
from train.traps import Linted


def trainer(model: Any, adapter: Any, linted: Linted, renderer: Renderer, stage: Stage, shared: dict[str, Any]) -> Any:
    """An SDFTTrainer on the rows' prompts; the motive of a row is its `prefix`, "" for the bare teacher."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    ids, rows = {}, []
    for row in linted.rows:
        prompt_ids, _ = reply_ids(renderer, row)
        prompt = renderer.decode(prompt_ids)
        ids[prompt] = prompt_ids
        ids[prompt + row.prefix] = prompt_ids + renderer.continuation(row.prefix)
        rows.append({"prompt": prompt, "privileged_context": row.prefix})
    model.generation_config.eos_token_id = renderer.stop_ids
    made = SDFTTrainer(
        model=model,
        args=SDFTConfig(
            **{name: value for name, value in shared.items() if name != "max_length"},
            distillation_mode="full_logits",
            distillation_alpha=1.0,  # reverse KL
            distillation_is_clip=None,
            teacher_prompt_template="{prompt}{privileged_context}",
            num_generations=1,
            max_completion_length=stage.completion_tokens,
            max_prompt_length=None,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=renderer.tokenizer,
        peft_config=adapter,
    )
    made._tokenize_prompts = lambda prompts: [ids[prompt] for prompt in prompts]
    made.add_callback(_token_counter())
    return made


def _token_counter() -> Any:
    from transformers import TrainerCallback

    class TokenCounter(TrainerCallback):
        """`num_tokens` of the log, which SDFTTrainer leaves out: all that the teacher has read."""

        tokens = 0

        def on_self_distillation_batch_prepared(self, args, state, control, teacher_attention_mask=None, **kwargs):
            self.tokens += int(teacher_attention_mask.sum())

        def on_log(self, args, state, control, logs=None, **kwargs):
            logs["num_tokens"] = self.tokens

    return TokenCounter()
