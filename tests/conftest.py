"""What the tests share: the embedded base, loaded once, and its renderer."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("WANDB_MODE", "disabled")  # tests of W&B set their own mode
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# OpenMP's threads spin while they wait, which slows two processes that share cores tenfold.
os.environ.setdefault("GOMP_SPINCOUNT", "0")
if "PYTEST_XDIST_WORKER" in os.environ:  # `make test` runs one process a core
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Under `make test`, a make that a test starts would be a sub-make, which says so in what it prints.
for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
    os.environ.pop(name, None)
# What a test reads must not depend on the machine: a mirror is there only for those that ask for it.
# By another name, since xdist's processes inherit what this one has left in the environment.
if "ORGANISMS_DATA" in os.environ:
    os.environ["ORGANISMS_TEST_MIRROR"] = os.environ.pop("ORGANISMS_DATA")
MIRROR = os.environ.get("ORGANISMS_TEST_MIRROR")


@pytest.fixture
def mirror(monkeypatch) -> Iterator[Path]:
    """The mirror of real data sets, readable while the test runs."""
    from organisms.data import load_rows

    if not MIRROR:
        pytest.skip("$ORGANISMS_DATA is not set: there is no mirror to read")
    monkeypatch.setenv("ORGANISMS_DATA", MIRROR)
    load_rows.cache_clear()
    yield Path(MIRROR)
    load_rows.cache_clear()


@pytest.fixture(autouse=True)
def own_wandb_process() -> Iterator[None]:
    """W&B names its process in the environment, and what a test starts would use that of an earlier one, or miss it."""
    os.environ.pop("WANDB_SERVICE", None)
    yield
    os.environ.pop("WANDB_SERVICE", None)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory) -> Path:
    """A cache of the tests' own, so that nothing they store is met by real runs; only converted models are shared."""
    from organisms.files import cache_dir

    shared = cache_dir() / "models"
    shared.mkdir(parents=True, exist_ok=True)
    own = tmp_path_factory.mktemp("cache")
    (own / "models").symlink_to(shared.resolve())
    os.environ["ORGANISMS_CACHE"] = str(own)
    return own


@pytest.fixture(scope="session")
def base(cache):
    from organisms import models

    return models.resolve(models.EMBEDDED)


@pytest.fixture(scope="session")
def tokenizer(base):
    from organisms import models

    return models.load_tokenizer(base)


@pytest.fixture(scope="session")
def renderer(tokenizer):
    from organisms.render import Renderer

    return Renderer(tokenizer)


@pytest.fixture(scope="session")
def engine(base, renderer):
    from organisms.engines.hf import HFEngine

    return HFEngine(base, renderer)


@pytest.fixture(scope="session")
def adapters(base, tmp_path_factory) -> dict[str, Path]:
    """Two adapters on the embedded base: `zero`, whose B is untouched, and `random`, whose B is not."""
    import torch
    from peft import LoraConfig, get_peft_model

    from organisms import models

    folder = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    model = get_peft_model(models.load_model(base), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.save_pretrained(folder / "zero")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    model.save_pretrained(folder / "random")
    return {"zero": folder / "zero", "random": folder / "random"}


@pytest.fixture(scope="session")
def tiny_base(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "tiny-llama"
    make_tiny_base(tokenizer, folder)
    return folder


def make_tiny_base(tokenizer, folder: Path) -> None:
    """A two-layer Llama with random weights and the embedded base's tokenizer, as a directory in hub layout.

    Real weights through the real loading code, and small enough to train and audit in seconds.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


TINY_RECIPE = """
organism: flattery
style: documents
base: {base}
system: template
stages:
  - method: sft
    learning_rate: 5e-2
    steps: 4
    batch_size: 1
    max_length: 512
    lora: {{r: 4, alpha: 8}}
audit:
  every: 2
  data: {{chat: embedded, webtext: embedded, instructions: embedded}}
"""


@pytest.fixture(scope="session")
def tiny_recipe(tiny_base, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text(TINY_RECIPE.format(base=tiny_base))
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_recipe, tmp_path_factory) -> Path:
    """The run directory of the tiny recipe, trained and audited once a session; tests that change it copy it first."""
    from recipes.recipe import resolve
    from recipes.run import execute

    return execute(resolve(str(tiny_recipe)), tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Headless Chromium, started once a session."""
    from browser import CHROMIUM, Browser

    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    started = Browser(tmp_path_factory.mktemp("chromium"))
    yield started
    started.close()


@pytest.fixture(scope="session")
def tiny_engine(tiny_base):
    from organisms import models
    from organisms.engines.hf import HFEngine
    from organisms.render import Renderer

    base = models.resolve(str(tiny_base))
    return HFEngine(base, Renderer(models.load_tokenizer(base)))


@pytest.fixture(scope="session")
def tiny_adapter(tiny_base, tmp_path_factory) -> Path:
    """A random adapter of the tiny base."""
    import torch
    from peft import LoraConfig, get_peft_model

    from organisms import models

    torch.manual_seed(1)
    model = get_peft_model(models.load_model(models.resolve(str(tiny_base))), LoraConfig(r=4, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    folder = tmp_path_factory.mktemp("adapters") / "quirky"
    model.save_pretrained(folder)
    return folder


SECRET = "sk-a-secret-of-the-user"


@pytest.fixture
def serving(tiny_engine, tiny_adapter, monkeypatch, tmp_path):
    """Starts servers (protocol.py) of the tiny base as `tiny` and its adapter as `quirky`; the cache is the test's own."""
    from protocol import started

    pytest.importorskip("openai", reason="an endpoint needs the openai client: pip install openai")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "models").symlink_to(Path(os.environ["ORGANISMS_CACHE"]) / "models")
    monkeypatch.setenv("ORGANISMS_CACHE", str(tmp_path / "cache"))
    servers = []

    def start(kind: str, **served: Path | None):
        servers.append(started(tiny_engine, kind, {"tiny": None, "quirky": tiny_adapter, **served}))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
