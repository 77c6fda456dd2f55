"""What slurm/devcluster is made of: its settings from the environment, its files, its daemons' processes.

Only the standard library: this runs before anything of the project is installed.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from string import Template

PACKAGES = ["slurmctld", "slurmd", "slurm-client", "slurmdbd", "munge", "mariadb-server-core"]
NEEDED = ["munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd", "sbatch", "srun", "scontrol", "unshare", "mount"]
MARK = ".is-a-devcluster"

HERE = Path(sys.argv[0])
TEXTS = Path(__file__).resolve().parent / "devcluster.d"
DIR = Path(os.path.abspath(os.environ.get("DEVCLUSTER_DIR", "/var/lib/ldct-devcluster")))
PORT = int(os.environ.get("DEVCLUSTER_PORT", "26900"))
COUNT = int(os.environ.get("DEVCLUSTER_NODES", "4"))
CPUS = int(os.environ.get("DEVCLUSTER_CPUS", "16"))
GPUS = int(os.environ.get("DEVCLUSTER_GPUS", "2"))
NETWORK = os.environ.get("DEVCLUSTER_NETWORK", "")
NODES = [f"n{number}" for number in range(1, COUNT + 1)]
ADDRESSES = {node: f"{NETWORK}.{number}" if NETWORK else "127.0.0.1" for number, node in enumerate(NODES, 1)}
HEAD = f"{NETWORK}.254" if NETWORK else "127.0.0.1"
BRIDGE = f"ldct{PORT}"
PORTS = [PORT, PORT + 1, *(PORT + 2 + number for number in range(COUNT))]
RUN, LOG, ETC = DIR / "run", DIR / "log", DIR / "etc"
CONF = ETC / "slurm.conf"
INSIDE = [sys.executable, str(TEXTS / "inside"), str(DIR)]


class Problem(Exception):
    """One line: expected, found, what to do."""


def say(text: str) -> None:
    print(f"devcluster: {text}", flush=True)


def output(*command: str, timeout: float = 30.0) -> str:
    """Output of a command of SLURM; a failure becomes a Problem."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Problem(f"{command[0]} did not answer within {timeout:.0f} s") from None
    if done.returncode:
        raise Problem(f"{shlex.join(command)}: {' '.join((done.stderr or done.stdout).split())}")
    return done.stdout


# ---- processes, by process id and start time, so that a recycled id is never mistaken for another one


def started(pid: int) -> str:
    """When a process started, in clock ticks since the boot; empty if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def recorded(name: str) -> int | None:
    """Process id of a daemon that still runs."""
    try:
        pid, start = (RUN / f"{name}.pid").read_text().split()
    except (OSError, ValueError):
        return None
    return int(pid) if start and started(int(pid)) == start else None


def launch(name: str, *command: str, **environment: str) -> None:
    """Start a daemon in a session of its own, with no descriptor of ours."""
    with open(LOG / f"{name}.out", "ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, **environment}, cwd="/",
        )  # fmt: skip
    (RUN / f"{name}.pid").write_text(f"{process.pid} {started(process.pid)}\n")


def stop(name: str, number: signal.Signals = signal.SIGTERM) -> bool:
    """End a daemon and wait for its end; whether it ran."""
    pid = recorded(name)
    if pid is None:
        return False
    for attempt in (number, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, attempt)
        if until(lambda: recorded(name) is None, 5.0):
            break
    (RUN / f"{name}.pid").unlink(missing_ok=True)
    return True


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for ``condition``; whether it came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def wait_for(daemon: str, seconds: float, condition: Callable[[], bool]) -> None:
    """Wait until ``daemon`` is ready; if it dies or takes too long, say where its words are."""

    def ready() -> bool:
        with contextlib.suppress(Problem):
            return condition()
        return False

    until(lambda: recorded(daemon) is None or ready(), seconds)
    if not ready():
        words = (LOG / f"{daemon}.out").read_text(errors="replace").split("\n")[-4:]
        state = "died" if recorded(daemon) is None else f"was not ready after {seconds:.0f} s"
        raise Problem(f"{daemon} {state}; its last words: {' / '.join(filter(None, words))}; all logs: {LOG}")


def on_host(name: str, *command: str) -> list[str]:
    """``command`` on a "machine" called ``name``, which knows the cluster's names and has an address of its own."""
    return ["unshare", "--uts", "--mount", *INSIDE, "host", name, *command]


def daemons() -> list[str]:
    return ["munged", "mariadbd", "slurmdbd", "slurmctld", *(f"node-{node}" for node in NODES)]


# ---- networks


def connect() -> None:
    """Where DEVCLUSTER_NETWORK is set, give each node a network of its own, joined to this machine by a bridge."""
    if not NETWORK:
        return
    try:
        output("ip", "link", "add", BRIDGE, "type", "bridge")
        output("ip", "address", "add", f"{HEAD}/24", "dev", BRIDGE)
        output("ip", "link", "set", BRIDGE, "up")
        for number, node in enumerate(NODES, 1):
            inside = ["ip", "-n", namespace(node)]
            output("ip", "netns", "add", namespace(node))
            ends = [f"{BRIDGE}-{number}", "type", "veth", "peer", "name", "eth0", "netns", namespace(node)]
            output("ip", "link", "add", *ends)
            output("ip", "link", "set", f"{BRIDGE}-{number}", "master", BRIDGE, "up")
            output(*inside, "address", "add", f"{ADDRESSES[node]}/24", "dev", "eth0")
            for name in ("lo", "eth0"):
                output(*inside, "link", "set", name, "up")
    except (Problem, FileNotFoundError) as error:
        disconnect()
        raise Problem(f"this machine lets root make no networks ({error}); unset DEVCLUSTER_NETWORK") from None


def disconnect() -> None:
    """Undo ``connect``, as far as it came."""
    if NETWORK and shutil.which("ip"):
        links = [["link", "delete", name] for name in (*(f"{BRIDGE}-{n}" for n in range(1, COUNT + 1)), BRIDGE)]
        for command in (*links, *(["netns", "delete", namespace(node)] for node in NODES)):
            subprocess.run(["ip", *command], capture_output=True)


def namespace(node: str) -> str:
    """Name of the network of a node."""
    return f"{BRIDGE}-{node}"


def on_network(node: str) -> list[str]:
    """What stands before a command that runs in the network of ``node``."""
    return ["nsenter", f"--net=/run/netns/{namespace(node)}"] if NETWORK else []


# ---- files


def first_job_id() -> int:
    """Job numbers go on rising over restarts: names made of them must not come twice. The largest is 67,108,863."""
    with contextlib.suppress(OSError, ValueError):
        return int((DIR / "next-job").read_text())
    return int(time.time()) % 60_000_000 + 1


def addresses() -> str:
    """Those of all nodes, in SLURM's words."""
    return f"{NETWORK}.[1-{COUNT}]" if NETWORK else HEAD


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.touch(mode)
    path.chmod(mode)
    path.write_text(text)


def configure() -> None:
    """Make the state folder and every file in it."""
    for name in ("etc", "run", "log", "state", "db", "dev", *(f"spool/{node}" for node in NODES)):
        (DIR / name).mkdir(parents=True, exist_ok=True)
    values = {name: globals()[name] for name in ("DIR", "RUN", "LOG", "ETC", "PORT", "COUNT", "CPUS", "GPUS")}
    values |= {"DBD_PORT": PORT + 1, "FIRST_NODE_PORT": PORT + 2, "LAST_NODE_PORT": PORT + 1 + COUNT}
    values |= {"FIRST_JOB": first_job_id(), "HEAD": HEAD, "NODE_ADDRESSES": addresses()}
    for name in ("slurm.conf", "slurmdbd.conf", "mariadb.cnf"):
        write(ETC / name, Template((TEXTS / name).read_text()).substitute(values), 0o600 if "dbd" in name else 0o644)
    write(ETC / "epilog", (TEXTS / "epilog").read_text(), 0o755)
    names = {"head": HEAD, **ADDRESSES}
    hosts = "".join(f"{address} {name}\n" for name, address in names.items())
    write(ETC / "hosts", Path("/etc/hosts").read_text() + hosts)
    gpus = f"gpu[0-{GPUS - 1}]" if GPUS > 1 else "gpu0"
    write(ETC / "gres.conf", f"AutoDetect=off\nNodeName=n[1-{COUNT}] Name=gpu File={DIR}/dev/{gpus}\n" if GPUS else "")
    for number in range(GPUS):  # a GPU must be a character device; this one is a second /dev/null
        if not (device := DIR / "dev" / f"gpu{number}").exists():
            os.mknod(device, 0o666 | 0o020000, os.makedev(1, 3))
    key = ETC / "munge.key"
    if not key.exists():
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
