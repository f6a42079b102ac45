"""The vLLM engine: one engine in a process of its own for a whole run, adapters swapped in and out by LoRARequest."""

import importlib.metadata
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from organisms.engines import Completion, Divergence, Divergences, Engine, Generate, NextToken, Score
from organisms.engines.agreement import check_agreement
from organisms.engines.load import EnginePlan
from organisms.engines.vllm_process import Worker
from organisms.errors import UserError
from organisms.models import Base, default_device, default_dtype, fetched, model_config
from organisms.render import Renderer
from organisms.specimen import Specimen

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM can be started for
# Starting anew for a larger rank takes minutes on a GPU, where unused rank costs little; on a CPU it is the other way round.
FIRST_RANK = {"cuda": 64, "cpu": 8}


MOST_IDS = 128  # ids that vLLM gathers for one request


class Vanished(UserError):
    """vLLM's process has ended while it was asked."""


class VLLMEngine:
    """Runs specimens of one base with vLLM; started by the first question and ended with this object or this process.

    All requests of a call belong to one specimen: on CPUs a batch that mixes base and adapter gives the base wrong numbers.
    Every adapter is served under an id and a name of its own, and answers only after it was seen to do in vLLM what it does
    in transformers (agreement.py). Exact divergences need both full distributions, which vLLM does not hand out at a
    bearable cost: they are read by `reference`, transformers in this process, on the ids that vLLM has generated.
    """

    def __init__(self, base: Base, renderer: Renderer, plan: EnginePlan):
        self.base, self.renderer, self.plan = base, renderer, plan
        self.device = default_device()
        self.dtype = default_dtype(self.device)
        self.max_length = min(plan.max_length, model_config(base).get("max_position_embeddings", plan.max_length))
        self.identity = {
            "engine": "vllm",
            "version": 1,
            "dtype": self.dtype,
            "device": self.device,
            "max_length": self.max_length,
            "tensor_parallel": plan.tensor_parallel,
            "data_parallel": plan.data_parallel,
            "divergence": "hf",
            "vllm": importlib.metadata.version(importlib.metadata.packages_distributions()["vllm"][0]),
            "torch": importlib.metadata.version("torch").split("+")[0],
            "transformers": importlib.metadata.version("transformers"),
        }
        self._workers: list[Worker] = []
        self._rank = FIRST_RANK[self.device]
        self._served: tuple | None = None
        self._adapter: list | None = None
        self._count = 0
        self._scaled: tempfile.TemporaryDirectory | None = None

    @cached_property
    def reference(self) -> Engine:
        """transformers over the same base, in this process."""
        from organisms.engines.hf import HFEngine

        return HFEngine(self.base, self.renderer, self.device, self.dtype)

    def generate(self, specimen: Specimen, requests: list[Generate]) -> list[Completion]:
        """Replies. vLLM draws each request from a generator of its own seed, so that batches do not matter."""
        stops = self.renderer.stop_ids
        parameters = [
            {"max_tokens": r.max_new_tokens, "stop_token_ids": stops, "temperature": r.temperature, "seed": r.seed}
            for r in requests
        ]
        completions = []
        for answer in self._ask(specimen, [r.prompt_ids for r in requests], parameters):
            ids = answer["ids"]
            finished = bool(ids) and ids[-1] in stops
            kept = ids[:-1] if finished else ids
            completions.append(Completion(kept, self.renderer.decode(kept), finished))
        return completions

    def logprobs(self, specimen: Specimen, requests: list[Score]) -> list[list[float]]:
        """Log-probabilities (nats) of each continuation token, over the full vocabulary."""
        prompts = [(*r.prompt_ids, *r.continuation_ids) for r in requests]
        answers = self._ask(specimen, prompts, [{"max_tokens": 1, "prompt_logprobs": 0}] * len(requests))
        return [a["prompt"][len(r.prompt_ids) - 1 :] for a, r in zip(answers, requests, strict=True)]

    def next_token(self, specimen: Specimen, requests: list[NextToken]) -> list[list[float]]:
        """Full-vocabulary log-probabilities (nats) of the chosen ids at the position after each prompt."""
        pieces = [
            (i, r.choice_ids[at : at + MOST_IDS])
            for i, r in enumerate(requests)
            for at in range(0, len(r.choice_ids), MOST_IDS)
        ]
        prompts = [requests[i].prompt_ids for i, _ in pieces]
        answers = self._ask(specimen, prompts, [{"max_tokens": 1, "logprob_token_ids": ids} for _, ids in pieces])
        found: list[list[float]] = [[] for _ in requests]
        for (i, _), answer in zip(pieces, answers, strict=True):
            found[i] += answer["chosen"]
        return found

    def divergence(self, specimen: Specimen, requests: list[Divergence]) -> list[Divergences]:
        """Exact KL both ways, read by transformers."""
        return self.reference.divergence(specimen, requests)

    def _ask(self, specimen: Specimen, prompts: list[tuple[int, ...]], parameters: list[dict]) -> list[dict]:
        """One answer a prompt, the prompts shared out over the copies of the base."""
        longest = max((len(ids) + one["max_tokens"] for ids, one in zip(prompts, parameters, strict=True)), default=0)
        if longest > self.max_length:
            raise UserError(
                f"a request of {longest} tokens does not fit into the {self.max_length} that vLLM is started for; raise "
                "audit.engine.max_length as far as the base allows, or state audit.engine.name=hf"
            )
        if specimen.steering is not None:
            raise UserError(f"{specimen.name}: vLLM adds no steering vector; state audit.engine.name=hf")
        self._attach(specimen)
        adapter = self._adapter if specimen.adapter else None
        try:
            return self._answers(specimen.name, prompts, parameters, adapter)
        except Vanished as gone:  # killed from outside, for one; if it goes again, this request is to blame
            print(f"{gone}\nit is started once more", flush=True)
            return self._answers(specimen.name, prompts, parameters, adapter)

    def _answers(self, whom: str, prompts: list[tuple[int, ...]], parameters: list[dict], adapter: list | None) -> list[dict]:
        workers = self._started()
        for i, worker in enumerate(workers):
            part = slice(len(prompts) * i // len(workers), len(prompts) * (i + 1) // len(workers))
            worker.send({"prompts": prompts[part], "parameters": parameters[part], "adapter": adapter})
        return self._received(whom)

    def _received(self, whom: str) -> list[dict]:
        messages = [worker.receive() for worker in self._workers]
        failed = next((message for message in messages if "error" in message), None)
        if failed:
            self._stop()
            kind = Vanished if "ended" in failed else UserError
            raise kind(f"{whom}: vLLM cannot run this ({failed['error'][:400]}); mend that, or state audit.engine.name=hf")
        return [answer for message in messages for answer in message["answers"]]

    def _started(self) -> list[Worker]:
        if not self._workers:
            print(f"starting vLLM on {self.base.name} (a minute or two)", flush=True)
            for settings, environment in self._copies():
                self._workers.append(Worker(settings, environment))
            self._received(self.base.name)
        return self._workers

    def _copies(self) -> Iterator[tuple[dict, dict]]:
        """Arguments of vllm.LLM and environment of each copy of the base."""
        devices = _gpus() if self.device == "cuda" else []
        wanted = self.plan.tensor_parallel * self.plan.data_parallel
        if wanted > len(devices) and (devices or self.plan.tensor_parallel > 1):
            raise UserError(f"audit.engine: tensor_parallel x data_parallel asks for {wanted} GPUs; there are {len(devices)}")
        settings = {
            "model": fetched(self.base),
            "dtype": self.dtype,
            "seed": 0,
            "max_model_len": self.max_length,
            "tensor_parallel_size": self.plan.tensor_parallel,
            "gpu_memory_utilization": self.plan.gpu_memory,
            "enable_prefix_caching": True,
            "enable_lora": True,
            "max_loras": 1,
            "max_lora_rank": self._rank,
            "lora_target_modules": _block_linears(Path(fetched(self.base))),
            "skip_tokenizer_init": True,  # ids in, ids out
            "generation_config": "vllm",  # no sampling defaults and no end tokens but the renderer's
            "load_format": "safetensors",
            "disable_log_stats": True,
        }
        if self.device == "cpu":
            # Nothing is compiled there, which would take minutes; LoRA copies an adapter's weights for every token of a step.
            settings |= {"enforce_eager": True, "max_num_batched_tokens": 1024}
        for i in range(self.plan.data_parallel):
            own = devices[i * self.plan.tensor_parallel : (i + 1) * self.plan.tensor_parallel]
            yield settings, {"CUDA_VISIBLE_DEVICES": ",".join(own)} if own else {"TORCH_COMPILE_DISABLE": "1"}

    def _stop(self) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers = []

    def _attach(self, specimen: Specimen) -> None:
        """Have the specimen's adapter served under a fresh id and name, and see that it is."""
        if specimen != Specimen(specimen.name, specimen.adapter, specimen.scale, specimen.system, specimen.prefill):
            raise UserError(f"{specimen.name}: vLLM runs bases and adapters, nothing else; state audit.engine.name=hf")
        if specimen.adapter is None:
            return
        wanted = (specimen.adapter, specimen.scale)
        if wanted == self._served:
            return
        self._fit(json.loads((specimen.adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"])
        directory = specimen.adapter.resolve()
        if specimen.scale != 1.0:
            self._scaled = tempfile.TemporaryDirectory(prefix="scaled-")
            directory = _scaled(directory, specimen.scale, Path(self._scaled.name))
        self._count += 1
        self._adapter = [f"specimen{self._count}", self._count, str(directory)]
        self._served = wanted
        try:
            check_agreement(self, self.reference, specimen, self.renderer)
        except UserError:
            self._served = None
            raise

    def _fit(self, rank: int) -> None:
        """Start anew for adapters of a larger rank than vLLM was started for."""
        if rank > RANKS[-1]:
            raise UserError(f"vLLM serves adapters up to rank {RANKS[-1]} and this one has {rank}; state audit.engine.name=hf")
        if rank > self._rank:
            self._stop()
            self._rank = next(one for one in RANKS if one >= rank)


def _block_linears(directory: Path) -> list[str]:
    """Names of the linear layers inside the blocks, which are all that adapters may touch.

    vLLM would wrap the output head as well, and with that in place it cannot read a prompt's log-probabilities on a CPU.
    """
    from safetensors import safe_open

    found = set()
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            inside = [name for name in weights.keys() if re.search(r"\.\d+\..*\.weight$", name)]
            found |= {name.split(".")[-2] for name in inside if len(weights.get_slice(name).get_shape()) == 2}
    return sorted(found)


def _gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]


def _scaled(directory: Path, scale: float, target: Path) -> Path:
    """A copy of an adapter whose delta is `scale` times the original's."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "adapter_model.safetensors")
    changed = {name: (x.float() * scale if "lora_B" in name else x) for name, x in tensors.items()}
    save_file(changed, target / "adapter_model.safetensors", metadata={"format": "pt"})
    shutil.copy(directory / "adapter_config.json", target)
    return target
