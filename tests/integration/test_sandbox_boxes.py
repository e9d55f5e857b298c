"""The sandbox's boxes over real SSH: one directory that is a machine, and processes that obey its power switch."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import httpx
import pytest
from sandboxes import SandboxProcess, alive, until

from daemon.sandbox.catalogue import MACHINES
from daemon.sandbox.routes import RESULT_AFTER_S

DETACHED = (
    "setsid sh -c 'echo $$ > pid; exec sleep 1000' </dev/null >/dev/null 2>&1 & while ! [ -s pid ]; do :; done; cat pid"
)


@pytest.fixture
async def market(tmp_path: Path) -> AsyncIterator[SandboxProcess]:
    sandbox = SandboxProcess(tmp_path / "sandbox", "--image", "box=/usr/bin/python3", "--no-rate-limits")
    yield sandbox
    await sandbox.end()


async def test_commands_and_sftp_see_the_same_directory(market: SandboxProcess) -> None:
    """exec starts in the box's directory, SFTP too, and relative and real paths agree between them."""
    instance = await market.rent()
    async with await market.connect(instance) as box, box.start_sftp_client() as sftp:
        async with sftp.open("homeport.txt", "wb") as file:
            await file.write(b"through sftp")
        result = await box.run('cat homeport.txt; pwd; echo "$HOME"; echo oops >&2; exit 7')
        where = await sftp.realpath(".")

    home = str(market.home(instance))
    assert result.stdout == f"through sftp{home}\n{home}\n"
    assert (result.stderr, result.exit_status) == ("oops\n", 7)
    assert where == home


async def test_a_command_sees_a_clean_environment(market: SandboxProcess) -> None:
    """Only the container's own variables are visible; the create call's env reaches onstart alone."""
    instance = await market.rent(env={"SECRET": "s3", "-p 8080:8080": "1"}, onstart='echo "secret=$SECRET in $PWD"')
    async with await market.connect(instance) as box:
        env = dict(line.split("=", 1) for line in str((await box.run("env")).stdout).splitlines())

    assert env.keys() - {"PWD", "SHLVL", "_"} == {
        "HOME", "PATH", "LANG", "USER", "SHELL", "CONTAINER_ID", "CONTAINER_API_KEY", "VAST_CONTAINERLABEL", "VAST_URL",
        "HOMEPORT_BOX",
    }  # fmt: skip
    assert env["CONTAINER_ID"] == str(instance)
    assert await container_log(market, instance) == f"secret=s3 in {market.home(instance)}"


async def container_log(market: SandboxProcess, instance: int) -> str:
    """The container's log by the API, once onstart has printed: its URL answers a moment later, and without a key."""
    asked = time.monotonic()

    async def text() -> str:
        reply = await market.http.put(f"/api/v0/instances/request_logs/{instance}/", json={"tail": "5"})
        url = reply.json()["result_url"]

        async def ready() -> httpx.Response | None:
            got = await market.http.get(url)
            return got if got.status_code == 200 else None

        got = await until(ready)
        return got.text.strip() if got else ""

    printed = await until(text)
    assert time.monotonic() - asked >= RESULT_AFTER_S
    return printed


async def test_the_image_python_is_the_interpreter_asked_for(market: SandboxProcess) -> None:
    """bin/python in the box runs the interpreter the image names."""
    instance = await market.rent()
    async with await market.connect(instance) as box:
        result = await box.run("bin/python -c 'import sys; print(sys.executable)'")

    assert result.stdout == "/usr/bin/python3\n"


async def test_only_attached_keys_and_root_get_in(market: SandboxProcess) -> None:
    """A stranger's key and another user are refused."""
    instance = await market.rent()
    async with await market.connect(instance):
        pass
    row = await market.show(instance)
    assert row is not None
    port = int(row["ports"]["22/tcp"][0]["HostPort"])

    with pytest.raises(asyncssh.PermissionDenied):
        await market.login(port, username="nobody")
    market.key = asyncssh.generate_private_key("ssh-ed25519")
    with pytest.raises(asyncssh.PermissionDenied):
        await market.login(port)


async def test_the_banner_greets_before_the_login(market: SandboxProcess) -> None:
    """The market's banner comes as sshd's, outside of any command's output."""
    instance = await market.rent()
    async with await market.connect(instance):
        row = await market.show(instance)
    assert row is not None
    greetings: list[str] = []

    class Client(asyncssh.SSHClient):
        def auth_banner_received(self, msg: str, lang: str) -> None:
            greetings.append(msg)

    async with asyncssh.connect(
        "127.0.0.1", int(row["ssh_port"]), username="root", client_keys=[market.key], known_hosts=None, config=None,
        agent_path=None, client_factory=Client,
    ) as box:  # fmt: skip
        assert (await box.run("true")).stderr == ""
    assert greetings
    assert "Welcome to vast.ai" in greetings[0]


async def test_the_proxy_reaches_the_same_box(market: SandboxProcess) -> None:
    """ssh_host:ssh_port is a second way to the same sshd, with the same host key."""
    instance = await market.rent()
    async with await market.connect(instance) as direct:
        row = await market.show(instance)
        assert row is not None
        async with await market.login(int(row["ssh_port"])) as proxy:
            assert (await proxy.run("echo $CONTAINER_ID")).stdout == f"{instance}\n"
            assert proxy.get_server_host_key() == direct.get_server_host_key()


async def test_a_host_without_open_ports_has_its_proxy(market: SandboxProcess) -> None:
    """No port is mapped there, whatever was asked for: the proxy is the only way in."""
    instance = await market.rent(10701)
    await market.reaches(instance, "running")

    async def by_proxy() -> bool:
        row = await market.show(instance)
        assert row is not None and row["ports"] is None
        try:
            async with await market.login(int(row["ssh_port"])) as box:
                return (await box.run("echo $CONTAINER_ID")).stdout == f"{instance}\n"
        except (OSError, asyncssh.Error):  # not up yet
            return False

    await until(by_proxy)


async def test_a_detached_process_survives_its_connection(market: SandboxProcess) -> None:
    """What was started with setsid runs on after the connection is gone; destroy ends it and deletes the directory."""
    instance = await market.rent()
    async with await market.connect(instance) as box:
        pid = int(str((await box.run(DETACHED)).stdout))
    assert alive(pid)

    await market.destroy(instance)
    await market.gone(instance)
    assert not alive(pid)
    assert not market.home(instance).exists()


async def test_a_command_survives_a_cut(market: SandboxProcess) -> None:
    """Like OpenSSH, sshd leaves a running command alone when its connection dies."""
    instance = await market.rent()
    box = await market.connect(instance)
    running = await box.create_process("echo $$; sleep 0.3; touch finished; sleep 1000")
    pid = int(await running.stdout.readline())
    box.abort()
    await box.wait_closed()

    async def finished() -> bool:
        return (market.home(instance) / "finished").exists()

    await until(finished)
    assert alive(pid)


async def test_output_arrives_whole_and_stdin_too(market: SandboxProcess) -> None:
    """Megabytes through a pipe in both directions lose nothing, and the exit status follows the last byte."""
    size = 8_000_000
    instance = await market.rent()
    async with await market.connect(instance) as box:
        result = await box.run(f"head -c {size} /dev/zero; wc -c >&2; exit 5", input=bytes(size), encoding=None)

    assert (len(result.stdout or b""), bytes(result.stderr or b"").strip(), result.exit_status) == (
        size, str(size).encode(), 5,
    )  # fmt: skip


async def test_a_signal_reaches_the_command(market: SandboxProcess) -> None:
    """A command ended by a signal is reported as such."""
    instance = await market.rent()
    async with await market.connect(instance) as box:
        running = await box.create_process("exec sleep 1000")
        running.send_signal("TERM")
        result = await running.wait()

    assert result.exit_signal is not None
    assert result.exit_signal[0] == "TERM"


@pytest.mark.parametrize("verb", ["stop", "reboot", "fault"])
async def test_power_kills_processes_and_keeps_the_disk(market: SandboxProcess, verb: str) -> None:
    """Stop and reboot end every process, keep disk and host key, and run onstart again at the next start."""
    instance = await market.rent(onstart="echo started >> starts")
    async with await market.connect(instance) as box:
        pid = int(str((await box.run(DETACHED)).stdout))
        key = box.get_server_host_key()
    if verb == "stop":
        await market.put(instance, state="stopped")
        await market.reaches(instance, "exited")
        assert not alive(pid)
        await market.put(instance, state="running")
    elif verb == "reboot":
        await market.http.put(f"/api/v0/instances/reboot/{instance}/", json={})
    else:
        await market.fault("reboot", params={"instance": instance})

    async def dead() -> bool:
        return not alive(pid)

    await until(dead)
    async with await market.connect(instance) as box:
        assert box.get_server_host_key() == key

        async def starts() -> bool:
            return (await box.run("cat starts")).stdout == "started\nstarted\n"

        await until(starts)  # sshd does not wait for it


async def test_recycle_wipes_the_disk(market: SandboxProcess) -> None:
    """Recycling makes a new container: another host key, none of the old files."""
    instance = await market.rent()
    async with await market.connect(instance) as box:
        await box.run("touch precious")
        key = box.get_server_host_key()
    await market.http.put(f"/api/v0/instances/recycle/{instance}/", json={})

    async with await market.connect(instance) as box:
        assert box.get_server_host_key() != key
        assert (await box.run("ls")).stdout == "bin\n"


async def test_traffic_is_counted_both_ways(market: SandboxProcess) -> None:
    """The ledger counts at least the bytes of the files, and not much more, and bills them."""
    size = 4_000_000
    instance = await market.rent()
    async with await market.connect(instance) as box, box.start_sftp_client() as sftp:
        async with sftp.open("up", "wb") as file:
            await file.write(bytes(size))
        await box.run(f"head -c {2 * size} /dev/zero", encoding=None)

    async def counted() -> bool:
        account = await market.ledger(instance)
        return bool(account["bytes_in"] >= size and account["bytes_out"] >= 2 * size)

    await until(counted)
    account = await market.ledger(instance)
    assert account["bytes_in"] < 1.1 * size
    assert account["bytes_out"] < 1.1 * 2 * size
    (charge,) = (await market.ask("/api/v0/charges/"))["results"]
    items = {item["type"]: item["amount"] for item in charge["items"]}
    machine = MACHINES[101]
    assert items["bwd"] == pytest.approx(account["bytes_in"] / 1e9 * machine.inet_down_cost, abs=1e-6)
    assert items["bwu"] == pytest.approx(account["bytes_out"] / 1e9 * machine.inet_up_cost, abs=1e-6)


@pytest.mark.parametrize("verb", ["stop", "destroy"])
async def test_the_last_bytes_are_billed(market: SandboxProcess, verb: str) -> None:
    """What passed just before the power went is in the ledger, to the byte that the box itself has counted."""
    size = 4_000_000
    instance = await market.rent()
    async with await market.connect(instance) as box:
        await box.run(f"head -c {size} /dev/zero", encoding=None)
        if verb == "stop":
            await market.put(instance, state="stopped")
        else:
            await market.destroy(instance)
        await box.wait_closed()
    await (market.reaches(instance, "exited") if verb == "stop" else market.gone(instance))

    counted = json.loads((market.directory / "boxes" / str(instance) / "traffic.json").read_text())
    account = await market.ledger(instance)
    assert counted["bytes_out"] >= size
    assert (account["bytes_in"], account["bytes_out"]) == (counted["bytes_in"], counted["bytes_out"])


async def test_execute_runs_only_what_the_market_allows(market: SandboxProcess) -> None:
    """ls, rm and du run on the box's disk without SSH; anything else is refused."""
    instance = await market.rent()
    async with await market.connect(instance) as box:
        await box.run("echo 1 > evidence")

    async def execute(command: str) -> dict[str, str]:
        reply = await market.http.put(f"/api/v0/instances/command/{instance}/", json={"command": command})
        return dict(reply.json())

    assert (await execute("cat evidence"))["error"] == "invalid_args"
    url = (await execute("ls evidence"))["result_url"]

    async def text() -> str:
        return (await market.http.get(url)).text

    assert await until(text) == "evidence\n"


async def test_a_box_can_stop_itself(market: SandboxProcess) -> None:
    """The key and URL in the environment are enough to stop this one instance from inside."""
    instance = await market.rent()
    stop = (
        "import json, os, urllib.request as u; u.urlopen(u.Request(os.environ['VAST_URL'] + '/api/v0/instances/'"
        " + os.environ['CONTAINER_ID'] + '/', json.dumps({'state': 'stopped'}).encode(), {'Authorization': 'Bearer '"
        " + os.environ['CONTAINER_API_KEY']}, method='PUT'))"
    )
    box = await market.connect(instance)
    running = await box.create_process(f'bin/python -c "{stop}"')

    await market.reaches(instance, "exited")
    await asyncio.wait_for(running.wait_closed(), 60)
    box.close()
    await box.wait_closed()
