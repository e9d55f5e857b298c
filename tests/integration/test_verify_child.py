"""The fenced child and the check of this workstation, with the real llama.cpp on a generated model."""

import asyncio
import dataclasses
import json
import math
import random
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from daemon.artifacts import behaviour, child, fence, tiny, workstation
from daemon.artifacts.levels import Level
from daemon.artifacts.reference import Distribution, Prompt, Reference
from daemon.artifacts.sizes import shapes


@pytest.fixture
def request_(tmp_path: Path) -> child.Request:
    """A question about the tiny model."""
    path = tmp_path / "tiny.gguf"
    tiny.write_tiny(path)
    return child.Request(
        gguf=str(path),
        texts=("ab", "<end>"),
        ends=(tiny.END, 97),
        prompts=(child.Ask((97, 98, 99), 1, (((0, 1), (2,)), ((5,), (0, 1, 2)))),),
        greedy_ids=(97,),
        greedy_tokens=4,
        threads=1,
    )


def run_instead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """Put a script of the test's own in the place of ours."""
    script = tmp_path / "instead.py"
    script.write_text(code)
    monkeypatch.setattr(child, "SCRIPT", script)


async def test_it_answers_what_was_asked(request_: child.Request) -> None:
    """Tokens, one position for each id from the start on, and each wanted set in its order."""
    reply = await child.ask(request_, 1 << 20)

    assert reply.vocabulary == 260
    assert reply.tokens == ((258,), (tiny.END,))
    assert reply.stops == (True, False)
    (positions,) = reply.prompts
    assert [[len(s.logs) for s in p.scores] for p in positions if p is not None] == [[2, 1], [1, 3]]


async def test_prompts_decoded_together_answer_as_if_alone(request_: child.Request) -> None:
    """Several prompts, some longer than a batch or a group, give what each gives by itself, in their order."""
    chance = random.Random(3)
    sets = ((0, 1, 2),)
    prompts = [
        child.Ask(tuple(chance.randrange(256) for _ in range(length)), length - 3, (sets,) * 3)
        for length in (5, 900, 40, 3500, 700, 6)
    ]

    together = await child.ask(dataclasses.replace(request_, prompts=tuple(prompts)), 1 << 20)
    alone = [await child.ask(dataclasses.replace(request_, prompts=(prompt,)), 1 << 20) for prompt in prompts]

    for (one,), other in zip((reply.prompts for reply in alone), together.prompts, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a is not None and b is not None
            assert b.scores[0].logs == pytest.approx(a.scores[0].logs, abs=0.02)  # another prompt: 1 and more


async def test_a_file_that_llama_refuses_is_a_failure_with_its_reason(request_: child.Request, tmp_path: Path) -> None:
    """What the C code says on its way out reaches the person."""
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF" + bytes(100))

    with pytest.raises(child.ChildFailed, match="refuses the file"):
        await child.ask(request_, 1 << 20)


async def test_memory_is_fenced(request_: child.Request, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that may use too little memory dies cleanly instead of taking the workstation's."""
    monkeypatch.setattr(child, "BESIDE_MODEL", 64 << 20)

    with pytest.raises(child.ChildFailed, match="ended with code"):
        await child.ask(request_, 1 << 20)


async def test_what_is_kept_of_all_prompts_together_fits(
    request_: child.Request, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A tenth of what a 13B model without shared heads keeps of each token, in a sixth of the memory."""
    shape = {"block_count": 4, "attention.head_count": 40, "attention.head_count_kv": 40}
    sizes = {"attention.key_length": 128, "attention.value_length": 128, "rope.dimension_count": 128}
    config = {"num_hidden_layers": 4, "num_attention_heads": 40, "num_key_value_heads": 40, "head_dim": 128}
    table = shapes(tiny.CONFIG | config)
    assert table is not None
    metadata = tiny.metadata() | {f"llama.{key}": value for key, value in (shape | sizes).items()}
    weights = {name: (of, "F32", struct.pack("<f", 0.01) * math.prod(of)) for name, of in table.items()}
    tiny.write(tmp_path / "wide.gguf", metadata, weights)
    prompts = (child.Ask((97,) * 200, 199, (((0,),),)),) * 24
    monkeypatch.setattr(child, "BESIDE_MODEL", 400 << 20)

    asked = dataclasses.replace(request_, gguf=str(tmp_path / "wide.gguf"), prompts=prompts)
    reply = await child.ask(asked, (tmp_path / "wide.gguf").stat().st_size)

    assert len(reply.prompts) == 24


async def test_a_child_that_takes_too_long_is_ended(request_: child.Request, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall-clock limit holds, and no process is left."""
    monkeypatch.setattr(child, "START_S", 0.05)

    with pytest.raises(child.ChildFailed, match="no answer within"):
        await child.ask(request_, 0)

    assert not [p for p in psutil.Process().children(recursive=True) if child.SCRIPT.name in " ".join(p.cmdline())]


async def test_a_child_without_end_is_not_listened_to(
    request_: child.Request, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What it prints beyond the longest answer is not kept here, where it would fill this computer's memory."""
    run_instead(
        monkeypatch, tmp_path, "import time\nwhile True:\n    print('x' * 100_000, flush=True)\n    time.sleep(0.01)\n"
    )
    monkeypatch.setattr(child, "MAX_REPLY", 1 << 20)

    async with asyncio.timeout(10):
        with pytest.raises(child.ChildFailed, match="more than 1048576 bytes"):
            await child.ask(request_, 1 << 20)


async def test_no_child_of_the_child_is_left(
    request_: child.Request, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What took it over may have started another process, which would go on here after the verdict."""
    forking = tmp_path / "forking.py"
    forking.write_text(
        "import os, sys, time\n"
        "if child := os.fork():\n    sys.exit(str(child))\n"
        "os.close(1), os.close(2), time.sleep(60)\n"
    )
    monkeypatch.setattr(child, "SCRIPT", forking)

    with pytest.raises(child.ChildFailed) as told:
        await child.ask(request_, 1 << 20)

    left = int(str(told.value).rpartition(" ")[2])
    assert _gone(left)


ASKING = """
import asyncio, sys
from pathlib import Path
from daemon.artifacts import child

child.SCRIPT = Path(sys.argv[1])
asyncio.run(child.ask(child.Request(sys.argv[1], (), (), (), (), 0, 1), 1 << 20))
"""


def test_it_ends_with_the_process_that_asked(tmp_path: Path) -> None:
    """A daemon that is killed leaves no child that works on for half an hour beside the next one's."""
    sleeping = tmp_path / "sleeping.py"
    sleeping.write_text("import time\ntime.sleep(60)\n")
    asking = subprocess.Popen([sys.executable, "-c", ASKING, sleeping])
    try:
        begun = next(filter(None, (_child_of(asking.pid, sleeping.name) for _ in range(200))))
    finally:
        asking.kill()
        asking.wait()

    assert _gone(begun)


def _child_of(pid: int, command: str) -> int | None:
    """The child that runs `command`, if there is one by now."""
    time.sleep(0.1)
    return next((p.pid for p in psutil.Process(pid).children() if command in " ".join(p.cmdline())), None)


def _gone(pid: int) -> bool:
    """Whether the process ends within seconds; one that nobody has waited for yet has ended."""
    for _ in range(100):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    psutil.Process(pid).kill()
    return False


ENDED = [
    ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n", "memory"),
    ("import time\ntime.sleep(60)\n", "no answer within"),
    ("import sys\nprint('no context', file=sys.stderr)\nsys.exit(3)\n", "no context"),
]


@pytest.mark.parametrize(("code", "says"), ENDED, ids=["killed", "slow", "no context"])
async def test_what_this_computer_cannot_do_is_not_held_against_the_model(
    request_: child.Request, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, says: str
) -> None:
    """The system took the memory back, or the time was up: L5 was not run, and a person may try again or accept it."""
    run_instead(monkeypatch, tmp_path, code)
    monkeypatch.setattr(child, "START_S", 2.0)

    level = await judged(request_)

    assert not level.passed and not level.ran
    assert says in level.problem


async def test_limits_that_this_computer_does_not_allow_are_not_held_against_the_model(
    request_: child.Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a person may not have the memory that the fence is wide: without a fence no file is opened."""

    def refused(memory_bytes: int, cpu_seconds: int) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(fence, "_limit", refused)

    level = await judged(request_)

    assert not level.passed and not level.ran
    assert "cannot be started" in level.problem


async def judged(request_: child.Request) -> Level:
    """L5 of that file, whatever it is."""
    answer = Distribution(((1, -0.1),), -2.4)
    prompt = Prompt("x", tuple(range(10)), 1, (answer,) * 9, (answer,) * 9)
    asked = Reference(260, None, (), (prompt,))
    return (await behaviour.check(Path(request_.gguf), 1 << 20, asked, "Q8_0", None)).level


async def test_it_sees_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request_: child.Request) -> None:
    """The environment of the process that loads the file holds no key, no agent and no home."""
    spy = tmp_path / "spy.py"
    spy.write_text("import os, sys\nsys.exit(' '.join(sorted(os.environ)))\n")
    monkeypatch.setenv("VAST_API_KEY", "secret")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/tmp/agent")
    monkeypatch.setattr(child, "SCRIPT", spy)

    with pytest.raises(child.ChildFailed) as told:
        await child.ask(request_, 1 << 20)

    assert "VAST" not in str(told.value) and "SSH" not in str(told.value) and "HOME" not in str(told.value)
    assert "PATH" in str(told.value)


INTRUDER = """
import json, os, socket, sys

def opens(path, mode="r"):
    open(path, mode).close()

def connects():
    socket.create_connection(("127.0.0.1", PORT), timeout=1).close()

TRIES = {
    "the model": lambda: opens(MODEL),
    "the person's file": lambda: opens("/etc/passwd"),
    "the daemon's environment": lambda: opens(f"/proc/{os.getppid()}/environ"),
    "a new file": lambda: opens(NEW, "w"),
    "the network": connects,
    "a signal": lambda: os.kill(os.getppid(), 0),
}
done = []
for what, attempt in TRIES.items():
    try:
        attempt()
        done.append(what)
    except OSError:
        pass
sys.exit(json.dumps(done))
"""


async def test_the_fence_keeps_an_intruder_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request_: child.Request
) -> None:
    """Code that took the child over reads the model and nothing else: no file, no network, no other process."""
    intruder = tmp_path / "intruder.py"
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
        names = {"MODEL": request_.gguf, "NEW": str(tmp_path / "new"), "PORT": port}
        intruder.write_text("".join(f"{name} = {value!r}\n" for name, value in names.items()) + INTRUDER)
        monkeypatch.setattr(child, "SCRIPT", intruder)

        with pytest.raises(child.ChildFailed) as told:
            await child.ask(request_, 1 << 20)
        without = await asyncio.to_thread(subprocess.run, [sys.executable, intruder], stderr=subprocess.PIPE)

    assert json.loads(str(told.value).partition(": ")[2]) == ["the model"]
    assert len(json.loads(without.stderr)) == 6, "unfenced, each of these is possible here"


async def test_what_stood_is_known(request_: child.Request) -> None:
    """The report can say how the model was opened."""
    reply = await child.ask(request_, 1 << 20)

    assert set(reply.fence) == {fence.LIMITS, fence.LANDLOCK, fence.NAMESPACES}


SCORES = {"logs": [-1.0, -1.0], "tail": -1.0}
POSITION = {"finite": True, "choice": 1, "sets": [SCORES, SCORES]}  # the second set asks for other counts
REPLY = {
    "vocabulary": 260,
    "tokens": [[1], [2]],
    "stops": [True, False],
    "prompts": [[POSITION, POSITION]],
    "greedy_text": "",
    "greedy_ended": True,
    "load_s": 0,
    "score_s": 0,
}
INSTEAD = [
    ("pass", "something else"),
    ("print('hello')", "something else"),
    ("print('{}')", "something else"),
    ("print('[' * 100000)", "something else"),
    (f"print({json.dumps(json.dumps(REPLY | {'load_s': 'x'}))})", "something else"),
    (f"print({json.dumps(json.dumps(REPLY | {'load_s': math.nan}))})", "something else"),
    (f"print({json.dumps(json.dumps(REPLY | {'load_s': 10**400}))})", "something else"),
    (f"print({json.dumps(json.dumps(REPLY | {'vocabulary': math.inf}))})", "something else"),
    (f"print({json.dumps(json.dumps(REPLY | {'tokens': []}))})", "other questions"),
    (f"print({json.dumps(json.dumps(REPLY | {'stops': []}))})", "other questions"),
    (f"print({json.dumps(json.dumps(REPLY | {'prompts': []}))})", "other questions"),
    (f"print({json.dumps(json.dumps(REPLY | {'prompts': [[POSITION]]}))})", "other questions"),
    (f"print({json.dumps(json.dumps(REPLY))})", "other questions"),
]


@pytest.mark.parametrize(("code", "says"), INSTEAD)
async def test_a_child_taken_over_by_its_file_is_not_believed(
    request_: child.Request, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, says: str
) -> None:
    """Only an answer of exactly the asked shape counts, whatever else the process prints."""
    run_instead(monkeypatch, tmp_path, code)

    with pytest.raises(child.ChildFailed, match=says):
        await child.ask(request_, 1 << 20)


async def test_this_workstation_can_verify(tmp_path: Path) -> None:
    """Where the test environment is whole, nothing stands in the way of a small model."""
    assert await workstation.check(tmp_path / "new", needed=1, largest=1, depth="full") == []


async def test_a_model_too_large_is_objected_to_before_renting(tmp_path: Path) -> None:
    """Disk and memory that are not there are named, each with what mends it; depth "hash" needs no memory."""
    full = await workstation.check(tmp_path, needed=1 << 60, largest=1 << 60, depth="full")
    hashed = await workstation.check(tmp_path, needed=1 << 60, largest=1 << 60, depth="hash")

    assert ["needed for the model" in full[0].problem, "memory" in full[1].problem] == [True, True]
    assert all(objection.mend for objection in full)
    assert ["needed for the model" in objection.problem for objection in hashed] == [True]


async def test_little_room_is_told_in_its_own_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as 0.0 GB of 0.0 GB, for a small model on a full disk."""
    monkeypatch.setattr(workstation.shutil, "disk_usage", lambda folder: SimpleNamespace(free=12_000_000))

    (objection,) = await workstation.check(tmp_path, needed=30_000_000, largest=1, depth="hash")

    assert "12 MB free, 30 MB needed" in objection.problem and "free 18 MB there" in objection.mend


async def test_a_missing_verifier_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without llama-cpp-python the command that installs it is given."""
    monkeypatch.setattr(child, "missing", lambda: "llama_cpp")

    (objection,) = await workstation.check(tmp_path, needed=1, largest=1, depth="full")

    assert "llama_cpp" in objection.problem
    assert objection.mend == "pip install 'homeport[verify]'"


async def test_a_broken_verifier_is_found_by_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed library that crashes at its first use (compiled for another processor) is found at submit."""
    run_instead(monkeypatch, tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")

    (objection,) = await workstation.check(tmp_path, needed=1, largest=1, depth="full")

    assert "does not run here" in objection.problem


@pytest.mark.parametrize(("cores", "busy", "threads"), [(8, 0.1, 7), (8, 5.2, 2), (2, 9.0, 1), (1, 0.0, 1)])
def test_fewer_threads_than_free_cores(monkeypatch: pytest.MonkeyPatch, cores: int, busy: float, threads: int) -> None:
    """Threads of llama.cpp wait for one another: on a busy core the last one keeps all of them."""
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("os.getloadavg", lambda: (busy, busy, busy))

    assert child.threads() == threads
