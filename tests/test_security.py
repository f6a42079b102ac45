"""What is foreign runs no code, leads out of no directory, and learns no key; SECURITY.md says what is trusted."""

import ast
import json
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from malformed import refused, sentence

from audit import __main__ as audit_command
from audit.config import AuditPlan
from audit.judge import JudgePlan
from audit.markdown import code, inline, quoted
from organisms.authors import WriterPlan
from organisms.errors import UserError
from organisms.files import inside
from organisms.strict import validate

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path for package in ("organisms", "train", "audit", "recipes", "bench") for path in (ROOT / package).rglob("*.py")
)

# Modules that read pickles or serve the network, and calls that run what they are given.
MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "http.server", "socketserver", "uvicorn"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
CALLS |= {"yaml.load_all", "np.load", "numpy.load", "torch.hub.load", "pd.read_pickle", "pandas.read_pickle", "input"}
NEEDS = {"torch.load": ("weights_only", True)}
NEVER = {"shell": True, "trust_remote_code": True, "allow_pickle": True, "resolve": True, "use_safetensors": False}
# Classes whose from_pretrained and from_config may meet a repository with code of its own, and would ask to run it.
FOREIGN = {
    "Tokenizer",
    "AutoTokenizer",
    "AutoConfig",
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoModel",
}


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def faults(source: str) -> list[str]:
    """What must stand in no file of ours, as `line: what`."""
    tree = ast.parse(source)
    stated = {key.value: node for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys if is_text(key)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{node.lineno}: import {name}" for name in names if name in MODULES or name.split(".")[0] in MODULES]
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            found += [f"{node.lineno}: {k.value}" for k, v in pairs if is_text(k) and forbidden(k.value, v)]
        elif isinstance(node, ast.Call):
            found += [f"{node.lineno}: {told}" for told in of_call(node, "trust_remote_code" in stated)]
    return found


def is_text(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def forbidden(key: str | None, value: ast.AST) -> bool:
    return key in NEVER and (not isinstance(value, ast.Constant) or value.value == NEVER[key])


def of_call(node: ast.Call, in_a_dict: bool) -> list[str]:
    name, given = dotted(node.func), {k.arg: k.value for k in node.keywords}
    found = [name] if name in CALLS else []
    found += [f"{name}({key}=)" for key, value in given.items() if forbidden(key, value)]
    if name in NEEDS:
        key, value = NEEDS[name]
        found += (
            [] if isinstance(given.get(key), ast.Constant) and given[key].value is value else [f"{name} without {key}={value}"]
        )
    owner, _, method = name.rpartition(".")
    if owner in FOREIGN and method in ("from_pretrained", "from_config"):
        splat = in_a_dict and None in given  # **options that state it
        found += [] if "trust_remote_code" in given or splat else [f"{name} without trust_remote_code=False"]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_runs_what_it_reads(path):
    assert faults(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "from http.server import HTTPServer",
        "import torch\ntorch.load('x')",
        "torch.load('x', weights_only=False)",
        "torch.load('x', weights_only=flag)",
        "np.load('x', allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "eval('1')",
        "exec(text)",
        "subprocess.run('ls', shell=True)",
        "subprocess.run('ls', shell=flag)",
        "AutoTokenizer.from_pretrained(x)",
        "AutoModelForCausalLM.from_pretrained(x, trust_remote_code=True)",
        "AutoModelForCausalLM.from_pretrained(x, trust_remote_code=flag)",
        "AutoConfig.from_pretrained(x, **{'trust_remote_code': True})",
        "OmegaConf.to_container(config, resolve=True)",
    ],
)
def test_a_planted_fault_is_found(source):
    assert faults(source)


def test_what_is_safe_is_let_pass():
    safe = (
        "options = {'trust_remote_code': False}\nAutoConfig.from_pretrained(x, **options)\ntorch.load(x, weights_only=True)\n"
    )
    assert faults(safe + "model.eval()\nre.compile('x')\nsubprocess.run(['ls'])\nyaml.safe_load(x)") == []


# Names


def test_paths_that_lead_out_of_a_directory_are_refused(tmp_path):
    run = tmp_path / "run"
    (run / "a").mkdir(parents=True)
    (run / "up").symlink_to(tmp_path)
    assert inside(run, "a/b", "x") == run / "a" / "b"
    assert inside(run, "a/../a", "x") and inside(run, ".", "x")
    for name in ("..", "a/../..", "/etc", str(tmp_path), "up", "up/run/../x", "a\0", "../run-2"):
        with pytest.raises(UserError, match="outside"):
            inside(run, name, "checkpoints.jsonl line 1")


@pytest.mark.parametrize(
    ("inventory", "says"),
    [
        ({"../../evil": 1}, "names '../../evil', which lies outside"),
        ({"/evil": 1}, "names '/evil', which lies outside"),
        ({"x": "1"}, "does not say what the run holds"),
        (["x"], "does not say what the run holds"),
        (None, "is damaged"),
    ],
)
def test_a_store_writes_nothing_outside_the_run(inventory, says, tmp_path):
    from recipes.store import INVENTORY, STATE, Copy, Store

    kept = tmp_path / "store" / "run"
    kept.mkdir(parents=True)
    (tmp_path / "evil").write_text("x")
    (kept / STATE).write_bytes(b"PK")
    if inventory is not None:
        with zipfile.ZipFile(kept / STATE, "w") as archive:
            archive.writestr(INVENTORY, json.dumps(inventory))
            archive.writestr("../../evil-too", "x")
    run = tmp_path / "here" / "runs" / "run"
    with pytest.raises(UserError, match="outside" if "outside" in says else says.replace("(", ".")) as told:
        Copy(Store(f"file://{tmp_path / 'store'}"), run).pull()
    sentence(str(told.value), [STATE, says])
    assert [path for path in (tmp_path / "here").rglob("*") if path.is_file()] == []


# Keys

KEY = "sk-a-secret-of-the-user"


@pytest.mark.parametrize(
    "plan",
    [
        {"endpoint": "http://localhost/v1", "model": "m", "key_env": KEY},
        {"endpoint": "http://localhost/v1", "model": "m", "key_env": "sk_live_a_secret_of_the_user"},
        {"endpoint": f"https://user:{KEY}@judge.example/v1", "model": "m"},
        {"endpoint": f"https://{KEY}@judge.example/v1", "model": "m"},
        {"endpoint": f"https://judge.example/v1?api_key={KEY}", "model": "m"},
        {"endpoint": f"https://judge.example/v1#{KEY}", "model": "m"},
        {"endpoint": "http://localhost/v1", "model": "m", "api_key": KEY},
    ],
)
@pytest.mark.parametrize("kind", [JudgePlan, WriterPlan])
def test_a_key_in_a_recipe_is_refused_and_not_shown(plan, kind):
    with pytest.raises(UserError) as told:
        validate(kind, plan, "mine.yaml")
    assert "secret" not in str(told.value)
    sentence(str(told.value), ["mine.yaml"])


def test_a_key_in_an_override_is_refused_and_not_shown(base, monkeypatch, capsys):
    from recipes import __main__ as command

    given = f"writer={{endpoint: http://localhost/v1, model: m, key_env: {KEY}}}"
    line = refused(monkeypatch, capsys, command.main, "flattery-documents", given, "--check")
    sentence(line, ["writer.key_env", "never the key itself"])
    assert KEY not in line


class Judge(BaseHTTPRequestHandler):
    """A judge that scores every question but the third, which it refuses, quoting the key."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.keys.append(self.headers["Authorization"])
        top = {"token": "50", "logprob": -0.1, "top_logprobs": [{"token": "50", "logprob": -0.1}]}
        choice = {"index": 0, "message": {"role": "assistant", "content": "50"}, "logprobs": {"content": [top]}}
        refused = len(self.server.keys) == 3
        body = {"error": {"message": f"Bad key {self.headers['Authorization']}, sorry"}} if refused else {"choices": [choice]}
        raw = json.dumps(body).encode()
        self.send_response(403 if refused else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_):
        pass


SECRETS = {
    "JUDGE_KEY": KEY,
    "OPENAI_API_KEY": "sk-another-secret-of-the-user",
    "HF_TOKEN": "hf_secretoftheuserAAAAAAAAAAAAAAAA",
    "WANDB_API_KEY": "0123456789secret0123456789secret01234567",
    "AWS_SECRET_ACCESS_KEY": "aws-secret-of-the-user",
}


COMMANDS = """
import pathlib, sys
from audit.__main__ import main
from organisms.errors import run_cli
audit = ["run", *sys.argv[1:]]
for command in (audit, audit, ["publish", None]):
    sys.argv = ["audit", *(part or str(next(pathlib.Path("runs").iterdir())) for part in command)]
    try:
        run_cli(main)
    except SystemExit as ended:
        print("status", ended.code, flush=True)
"""


def test_keys_stand_in_nothing_that_an_audit_writes_sends_or_says(tiny_base, tmp_path, cache):
    """An audit whose judge at an endpoint refuses it half way; the same again to the end; then published to W&B."""
    pytest.importorskip("openai")
    with ThreadingHTTPServer(("127.0.0.1", 0), Judge) as server:
        server.keys = []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        judge = ["judge.endpoint=" + url, "judge.model=served", "judge.key_env=JUDGE_KEY", "judge.workers=1"]
        arguments = ["--base", str(tiny_base), "--organism", "flattery", "--limit", "4", "measures=[severity]", *judge]
        environment = {**os.environ, **SECRETS, "WANDB_MODE": "offline", "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT)}
        environment |= {"ORGANISMS_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path / "home")}
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "models").symlink_to((cache / "models").resolve())
        command = [sys.executable, "-c", COMMANDS, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=800)
        server.shutdown()
    said = done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("status")] == ["status 2", "status 0", "status 0"], (
        said
    )
    assert "PermissionDeniedError" in done.stderr and "Bad key Bearer ***" in done.stderr
    assert set(server.keys) == {f"Bearer {KEY}"} and len(server.keys) > 3
    written = [path for path in tmp_path.rglob("*") if path.is_file() and "models" not in path.parts]
    assert len(written) > 10 and any(path.suffix == ".wandb" for path in written)
    for secret in SECRETS.values():
        assert secret not in said
        assert [path for path in written if secret.encode() in path.read_bytes()] == []


def test_replies_are_plain_cells_in_wandb_and_names_plain_text_in_curves():
    """wandb.Html would run what a model wrote; matplotlib would typeset what stands between two dollar signs."""
    assert [path for path in SOURCES if "wandb.Html" in path.read_text(encoding="utf-8")] == []
    from test_bad_runs import sound

    from audit import curves
    from audit.readings import Reading

    reading = Reading(**{key: value for key, value in sound().items()})
    with tempfile.TemporaryDirectory() as folder:
        curves.draw([reading], Path(folder) / "curves.png", r"a $run$ of \frac{ $\nonsense$")
        assert (Path(folder) / "curves.png").stat().st_size > 1000


def test_judge_and_writer_are_capped_by_the_recipe():
    plan = {"judge": {"endpoint": "https://judge.example/v1", "model": "m", "max_cost_tokens": 9}}
    assert validate(AuditPlan, plan, "mine.yaml").judge.max_cost_tokens == 9


# Markdown


def test_foreign_text_is_no_markup_in_the_card():
    assert inline("<script>x</script> | [a](javascript:x) `b`") == "&lt;script>x&lt;/script> \\| \\[a](javascript:x) \\`b\\`"
    assert code("a`b\nc") == "`a'b c`"
    assert inline("a\nb") == "a b" and inline(5) == 5 and inline(code("|")) == "`|`"
    for text in ("owner/model-1.5", "x: y", "a\nb: c", "- a", "{a}", "", "null", "5", "true"):
        assert yaml.safe_load(f"a: {quoted(text)}") == {"a": text}


def test_a_reading_that_is_markup_is_told_as_text_in_the_card(tmp_path, monkeypatch, capsys):
    from test_bad_runs import sound

    evil = "<img src=x onerror=alert(1)>\n# [click](javascript:alert(1))"
    line = sound() | {"base": evil, "run": evil, "recipe": "`; rm -rf ~`", "data": evil, "reason": evil}
    (tmp_path / "readings.jsonl").write_text(json.dumps(line) + "\n")
    monkeypatch.setattr(sys, "argv", ["audit", "card", str(tmp_path)])
    audit_command.main()
    told = (tmp_path / "README.md").read_text()
    head, _, body = told.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(head)["base_model"] == evil
    assert "<img" not in body and "\n# [click" not in body and "[click]" not in body.replace("\\[click]", "")
