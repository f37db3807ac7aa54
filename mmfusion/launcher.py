"""Which of how many processes this one is: what a launcher has set, read in one place.

torchrun, the DeepSpeed launcher and most schedulers of containers set RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR and MASTER_PORT. srun and mpirun set variables of their own, which are read where RANK
is not set. A variable that is empty is not set.
"""

import os
import re
import signal
import socket
import subprocess
import time
from typing import NamedTuple

from mmfusion.errors import UserError

TASKS = "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"
SLURM = "SLURM_PROCID", TASKS, "SLURM_LOCALID"
# Those of MPI's launchers come before Slurm's: below an mpirun inside a job, Slurm's count its own
# helpers. PMI's are set by some of them, and by srun itself where it serves MPI (`--mpi=pmi2`).
KINDS = (
    ("RANK", ("WORLD_SIZE",), "LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",), "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("MV2_COMM_WORLD_RANK", ("MV2_COMM_WORLD_SIZE",), "MV2_COMM_WORLD_LOCAL_RANK"),
    ("JSM_NAMESPACE_RANK", ("JSM_NAMESPACE_SIZE",), "JSM_NAMESPACE_LOCAL_RANK"),
    SLURM,
    ("PMI_RANK", ("PMI_SIZE",), "MPI_LOCALRANKID"),
)
PORT = 29500  # torchrun's
SLURM_PORTS = 10_000, 20_000  # from, and how many: below those that a system gives out itself
GRACE = 30.0  # seconds in which ranks end by themselves once one has failed


class Place(NamedTuple):
    """A process's number, of how many, and its number on its host where that is known."""

    rank: int = 0
    world: int = 1
    local: int | None = None
    slurm: bool = False

    def gpu(self, count: int) -> int:
        """This process's GPU of `count` on its host; processes beyond that share them."""
        return (self.rank if self.local is None else self.local) % count


def place() -> Place:
    """What the launcher says; without one, the only process."""
    kind = next((k for k in KINDS if _given(k[0]) and (k is not SLURM or _by_srun())), None)
    if kind is None:
        if (_number("WORLD_SIZE") or 1) > 1:
            told = "set both, or unset it to start without a launcher"
            raise UserError(f"WORLD_SIZE is set, but RANK is not: {told}")
        return Place()
    first, sizes, local = kind
    size = next(filter(_given, sizes), sizes[0])
    rank, world = _number(first) or 0, _number(size)
    world = 1 if world is None else world
    if rank >= world:
        raise UserError(
            f"{first}={rank} is not below {size}={world}: ranks count from 0; use a launcher, or "
            "set both"
        )
    return Place(rank, world, _number(local), kind is SLURM)


def join(gpus: int = 0) -> Place:
    """Set what torch and DeepSpeed read, so that all processes meet; returns this one's place.

    Of the `gpus` that this process sees each process takes one of its own.
    """
    found = place()
    tasks = next((f"{name}={_given(name)}" for name in TASKS if (_number(name) or 0) > 1), None)
    others = any(_given(kind[0]) for kind in KINDS if kind is not SLURM)
    if tasks and not _in_step() and not others:
        raise UserError(
            f"{tasks}, but this process is not of a step that srun has started, and would train "
            "alone; start it as `srun mmfusion train ...`, or set RANK=0 if it is meant to be alone"
        )
    # With one GPU each process may see its own alone, whatever its number on the host.
    if found.local is not None and found.local >= gpus > 1:
        raise UserError(
            f"LOCAL_RANK={found.local}, but this host has {gpus} GPUs: start one process a GPU"
        )
    address, port = _meeting(found)
    if found.world == 1:  # torch would look there for the store of torchrun
        os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    os.environ.update(
        RANK=str(found.rank),
        WORLD_SIZE=str(found.world),
        LOCAL_RANK=str(found.gpu(gpus) if gpus else found.local or 0),
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
    )
    return found


def _given(name: str) -> str:
    return os.environ.get(name, "").strip()


def _number(name: str, most: int = 2**31) -> int | None:
    text = _given(name)
    if not text:
        return None
    if not re.fullmatch(r"[0-9]+", text) or int(text) > most:
        raise UserError(f"{name}={text}: expected a number from 0; correct or unset it")
    return int(text)


def _in_step() -> bool:
    """In a Slurm job's shell the tasks are counted, but only srun starts them, as a step."""
    return bool(_given("SLURM_STEP_ID") or _given("SLURM_STEPID"))


def _by_srun() -> bool:
    """Whether Slurm's tasks are the processes themselves, and not the helpers of an mpirun."""
    tasks = next(filter(None, map(_given, TASKS)), "")
    return _in_step() and (_given("PMI_SIZE") or tasks) == tasks


def _meeting(found: Place) -> tuple[str, int]:
    """Address and port of rank 0."""
    address, port = _given("MASTER_ADDR"), _number("MASTER_PORT", 65535)
    if found.world == 1:  # nobody to meet, and the port may be another job's
        return "127.0.0.1", _free_port()
    if found.slurm:
        start, count = SLURM_PORTS
        job, step = (_number(n, 2**63) or 0 for n in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        address, port = address or _slurm_host(), port or start + (job * 7 + step) % count
    if not address:
        raise UserError(
            f"MASTER_ADDR is not set, but this is rank {found.rank} of {found.world}: use torchrun "
            f"or the like, or give rank 0's host: mpirun -x MASTER_ADDR=HOST -x MASTER_PORT={PORT}"
        )
    return address, port or PORT


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def endings() -> list[signal.Signals]:
    """The signals that end a run: the last comes of a terminal that closes, but not under nohup."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if ignored else [signal.SIGHUP])]


def start(command: list[str], ranks: int) -> int:
    """Run a command as so many ranks on this host; 0, or the exit code of one that failed.

    They share out the cores, unless OMP_NUM_THREADS says how many threads each has. SIGTERM and
    SIGHUP are handed on; Ctrl-C reaches them from the terminal. Once one has failed the others have
    `GRACE`.
    """
    threads = str(max(1, (os.cpu_count() or 1) // ranks))
    common = {"OMP_NUM_THREADS": threads, **os.environ, "WORLD_SIZE": str(ranks)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    processes = [subprocess.Popen(command, env=common | place) for place in places]

    def hand_on(number: int, _frame: object) -> None:
        for process in processes if number != signal.SIGINT else ():
            process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in endings()}
    end = float("inf")
    try:
        while any(process.poll() is None for process in processes):
            if end == float("inf") and any(process.poll() for process in processes):
                end = time.monotonic() + GRACE
            if time.monotonic() > end:
                for process in processes:
                    process.kill()
            time.sleep(0.05)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    codes = [process.wait() for process in processes]
    codes.sort(reverse=True)  # one that failed says more than one that was killed for it
    return next((code if code > 0 else 128 - code for code in codes if code), 0)


def _slurm_host() -> str:
    """The host of a step's first task; "" where Slurm does not say."""
    if (_given("SLURM_STEP_NUM_NODES") or _given("SLURM_NNODES")) == "1":
        return "127.0.0.1"
    return first_host(_given("SLURM_STEP_NODELIST") or _given("SLURM_JOB_NODELIST"))


def first_host(hosts: str) -> str:
    """The first of Slurm's list of hosts: node07 of `node[07-09,12],other`."""
    found = re.match(r"(?:[^,\[\]]|\[[^\]]*\])+", hosts)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", found[0]) if found else ""
