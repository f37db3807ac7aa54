"""The launcher's variables: what they mean, and what is said of those that mean nothing."""

import os
import signal
import socket
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import rendezvous

from mmfusion import launcher
from mmfusion.errors import UserError
from mmfusion.launcher import Place

NAMES = [name for first, sizes, local in launcher.KINDS for name in (first, *sizes, local)]
OTHERS = ["MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_ID", "SLURM_STEPID", "SLURM_JOB_ID"]
OTHERS += ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_STEP_NUM_NODES", "SLURM_NNODES"]


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, *OTHERS):
        monkeypatch.setenv(name, "")  # so that what `join` sets goes again
        monkeypatch.delenv(name)


def having(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    for word in said.split():
        monkeypatch.setenv(*word.split("=", 1))


STEP = "SLURM_STEP_ID=0 SLURM_PROCID=3 SLURM_STEP_NUM_TASKS=4 SLURM_NTASKS=8 SLURM_LOCALID=1"


@pytest.mark.parametrize(
    ("said", "place"),
    [
        ("", Place(0, 1)),
        ("RANK= WORLD_SIZE= LOCAL_RANK=", Place(0, 1)),
        ("RANK=0", Place(0, 1)),
        ("WORLD_SIZE=1", Place(0, 1)),
        ("RANK=2 WORLD_SIZE=5", Place(2, 5)),
        ("RANK=2 WORLD_SIZE=5 LOCAL_RANK=1", Place(2, 5, 1)),
        (f"RANK=0 WORLD_SIZE=1 {STEP}", Place(0, 1)),
        (f"RANK= {STEP}", Place(3, 4, 1, slurm=True)),
        ("SLURM_STEPID=2 SLURM_PROCID=1 SLURM_NTASKS=2", Place(1, 2, None, slurm=True)),
        ("SLURM_PROCID=0 SLURM_NTASKS=6 SLURM_LOCALID=0", Place(0, 1)),  # the job's shell
        # mpirun inside a job: Slurm counts its helpers, one a host
        (
            "OMPI_COMM_WORLD_RANK=5 OMPI_COMM_WORLD_SIZE=6 OMPI_COMM_WORLD_LOCAL_RANK=2 " + STEP,
            Place(5, 6, 2),
        ),
        ("PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1", Place(1, 2, 1)),
        (f"PMI_RANK=5 PMI_SIZE=6 MPI_LOCALRANKID=2 {STEP}", Place(5, 6, 2)),
        (f"PMI_RANK=3 PMI_SIZE=4 {STEP}", Place(3, 4, 1, slurm=True)),  # srun --mpi=pmi2
        (
            "MV2_COMM_WORLD_RANK=1 MV2_COMM_WORLD_SIZE=4 MV2_COMM_WORLD_LOCAL_RANK=1",
            Place(1, 4, 1),
        ),
        ("JSM_NAMESPACE_RANK=0 JSM_NAMESPACE_SIZE=2", Place(0, 2)),
    ],
)
def test_a_process_knows_its_place(
    said: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    having(monkeypatch, said)
    assert launcher.place() == place


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("RANK=2", "WORLD_SIZE"),
        ("WORLD_SIZE=2", "RANK"),
        ("RANK=2 WORLD_SIZE=2", "RANK=2"),
        ("RANK=one WORLD_SIZE=2", "RANK=one"),
        ("RANK=-1 WORLD_SIZE=2", "RANK=-1"),
        ("RANK=0 WORLD_SIZE=0", "WORLD_SIZE=0"),
        ("RANK=0 WORLD_SIZE=2.0", r"WORLD_SIZE=2\.0"),
        ("RANK=0 WORLD_SIZE=1 LOCAL_RANK=x", "LOCAL_RANK=x"),
        ("OMPI_COMM_WORLD_RANK=4 OMPI_COMM_WORLD_SIZE=4", "OMPI_COMM_WORLD_RANK=4"),
        ("SLURM_STEP_ID=0 SLURM_PROCID=4 SLURM_NTASKS=4", "SLURM_PROCID=4"),
        # those that ranks cannot meet with
        ("RANK=1 WORLD_SIZE=2 LOCAL_RANK=1", "MASTER_ADDR"),
        ("RANK=0 WORLD_SIZE=1 MASTER_PORT=many", "MASTER_PORT=many"),
        ("RANK=0 WORLD_SIZE=1 MASTER_PORT=70000", "MASTER_PORT=70000"),
        ("RANK=2 WORLD_SIZE=8 LOCAL_RANK=2 MASTER_ADDR=a", "LOCAL_RANK=2"),
        ("OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2", "MASTER_ADDR"),
        ("SLURM_PROCID=0 SLURM_NTASKS=3 SLURM_LOCALID=0", "srun"),
        ("SLURM_STEP_ID=0 SLURM_PROCID=1 SLURM_NTASKS=2", "MASTER_ADDR"),
    ],
)
def test_what_makes_no_sense_is_named(
    said: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    having(monkeypatch, said)
    with pytest.raises(UserError, match=named):
        launcher.join(gpus=2)


NODES = "SLURM_STEP_NODELIST=gpu-[007-009,012],other SLURM_JOB_ID=123456789"


@pytest.mark.parametrize(
    ("said", "gpus", "wanted"),
    [
        ("RANK=0 WORLD_SIZE=1", 0, {"LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}),
        ("RANK=0 MASTER_ADDR=elsewhere", 0, {"WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}),
        # one that hosts a meeting point for its processes
        ("RANK=0 WORLD_SIZE=1 MASTER_ADDR=h MASTER_PORT=77", 0, {"MASTER_ADDR": "127.0.0.1"}),
        ("RANK=5 WORLD_SIZE=8 MASTER_ADDR=h", 4, {"LOCAL_RANK": "1", "MASTER_PORT": "29500"}),
        ("RANK=5 WORLD_SIZE=8 LOCAL_RANK=5 MASTER_ADDR=h", 1, {"LOCAL_RANK": "0"}),
        (f"{STEP} {NODES}", 2, {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "gpu-007"}),
        (f"{STEP} {NODES} SLURM_STEP_NUM_NODES=1", 2, {"MASTER_ADDR": "127.0.0.1"}),
        (f"{STEP} {NODES} MASTER_ADDR=h MASTER_PORT=7", 2, {"MASTER_ADDR": "h"}),
    ],
)
def test_all_that_torch_reads_is_set(
    said: str, gpus: int, wanted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    having(monkeypatch, said)
    launcher.join(gpus)
    assert wanted.items() <= os.environ.items()
    with socket.socket() as free:
        if os.environ["MASTER_ADDR"] == "127.0.0.1":
            free.bind(("127.0.0.1", int(os.environ["MASTER_PORT"])))


def test_alone_under_torchrun_it_is_not_waited_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch would look for torchrun's store where there is none."""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    having(monkeypatch, "RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=7")
    launcher.join()
    store, rank, world = next(rendezvous("env://", timeout=timedelta(seconds=2)))
    assert (rank, world, store.num_keys() > 0) == (0, 1, True)


def test_tasks_of_a_step_choose_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = []
    next_job = "SLURM_STEP_ID=0 SLURM_JOB_ID=123456790"
    for said in ("SLURM_PROCID=0", "SLURM_PROCID=1", "SLURM_STEP_ID=1", next_job):
        having(monkeypatch, f"{STEP} {NODES} MASTER_PORT= RANK= WORLD_SIZE= {said}")
        launcher.join()
        ports.append(int(os.environ["MASTER_PORT"]))
    assert ports[0] == ports[1]
    assert len({*ports}) == 3
    assert all(10_000 <= port < 32_768 for port in ports)


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node[01-03,7]", "node01"),
        ("node7", "node7"),
        ("a,b[2-3]", "a"),
        ("n[5,9],m1", "n5"),
        ("r[1-2]c[03-10]-ib,x", "r1c03-ib"),
        ("", ""),
    ],
)
def test_first_of_slurms_hosts(hosts: str, first: str) -> None:
    assert launcher.first_host(hosts) == first


# Ranks that we start ourselves


def ranks_of(script: str, ranks: int = 2) -> int:
    return launcher.start([sys.executable, "-c", script], ranks)


def test_ranks_know_their_place_and_share_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"""if True:
        import os
        names = "WORLD_SIZE MASTER_ADDR OMP_NUM_THREADS MASTER_PORT LOCAL_RANK"
        with open("{tmp_path}/" + os.environ["RANK"], "w") as file:
            file.write(" ".join(os.environ[name] for name in names.split()))
    """
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert ranks_of(script) == 0
    first, second = ((tmp_path / rank).read_text().split() for rank in "01")
    assert first[:3] == second[:3] == ["2", "127.0.0.1", "3"]
    assert first[3] == second[3]
    assert (first[4], second[4]) == ("0", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert ranks_of(script, ranks=1) == 0
    assert (tmp_path / "0").read_text().split()[2] == "5"


def test_one_that_fails_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "GRACE", 0.2)
    began = time.monotonic()
    script = "import os, time; os.environ['RANK'] == '1' and exit(3); time.sleep(600)"
    assert ranks_of(script) == 3
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_all_ranks(tmp_path: Path, number: signal.Signals) -> None:
    script = f"""if True:
        import os, signal, time
        signal.signal({int(number)}, lambda *_: exit({128 + number}))
        open("{tmp_path}/" + os.environ["RANK"], "w").close()
        time.sleep(600)
    """

    def send() -> None:
        while len(os.listdir(tmp_path)) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    before = signal.signal(number, signal.SIG_DFL)  # or it is ignored, as under nohup
    threading.Thread(target=send).start()
    assert ranks_of(script) == 128 + number
    assert signal.signal(number, before) is signal.SIG_DFL
