"""Other programs for many labels, each in a process of its own: napkinXC, omikuji and PECOS, by their own settings.

None of them is a dependency. They are looked for in the Python that `GOSSAMER_RIVALS` names, or else in this one:
PECOS 1.2.8 needs NumPy 1 and an old SciPy, which torch's Python does not have. What is absent is said in its row.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gossamer.xmc.data import Csr

VARIABLE = "GOSSAMER_RIVALS"
PROGRAMS = ("napkinXC PLT", "omikuji Parabel", "PECOS XR-Linear")

_COMMON = """
import json, resource, sys, time, os
import numpy as np, scipy.sparse as sp
folder, K = sys.argv[1], 5
def read(name, values=True):
    f = np.load(f"{folder}/{name}.npz")
    data = f["values"] if values else np.ones(len(f["indices"]), np.float32)
    return sp.csr_matrix((data, f["indices"], f["offsets"]), shape=tuple(f["shape"]))
X, Y, T = read("x"), read("y", False), read("t")
def full(ids):
    return np.array([(list(row) + [-1] * K)[:K] for row in ids], np.int64)
def done(ids, seconds):
    size = sum(os.path.getsize(os.path.join(a, c)) for a, _, b in os.walk(folder + "/model") for c in b)
    np.save(f"{folder}/ids.npy", full(ids))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "bytes": size, "peak": peak}))
"""

_PROGRAMS = {
    "napkinXC PLT": """
from napkinxc.models import PLT
sets = [Y[i].indices.tolist() for i in range(Y.shape[0])]
begin = time.process_time()
model = PLT(folder + "/model", verbose=False)
model.fit(X, sets)
seconds = time.process_time() - begin
done(model.predict(T, top_k=K), seconds)
""",
    "omikuji Parabel": """
import omikuji
with open(folder + "/train.txt", "w") as file:
    file.write(f"{X.shape[0]} {X.shape[1]} {Y.shape[1]}\\n")
    for i in range(X.shape[0]):
        row = X[i]
        words = " ".join(f"{j}:{v:.6f}" for j, v in zip(row.indices, row.data))
        file.write(",".join(map(str, Y[i].indices)) + " " + words + "\\n")
begin = time.process_time()
model = omikuji.Model.train_on_data(folder + "/train.txt", omikuji.Model.default_hyper_param())
seconds = time.process_time() - begin
model.save(folder + "/model")
rows = (T[i] for i in range(T.shape[0]))
done([[label for label, _ in model.predict(list(zip(r.indices.tolist(), r.data.tolist())), top_k=K)] for r in rows],
     seconds)
""",
    "PECOS XR-Linear": """
from pecos.xmc import Indexer, LabelEmbeddingFactory
from pecos.xmc.xlinear import XLinearModel
Z = Y.astype(np.float32)
begin = time.process_time()
clusters = Indexer.gen(LabelEmbeddingFactory.create(Z, X, method="pifa"))
model = XLinearModel.train(X, Z, C=clusters)
seconds = time.process_time() - begin
model.save(folder + "/model")
found = model.predict(T, only_topk=K, beam_size=10)
rows = (found[i] for i in range(found.shape[0]))
done([r.indices[np.argsort(-r.data, kind="stable")].tolist() for r in rows], seconds)
""",
}


@dataclass(frozen=True)
class Found:
    """What a program predicts: int64[rows, 5], -1 where there is none; CPU seconds of its training; bytes."""

    ids: Tensor
    seconds: float
    bytes: int
    peak: int


def run(program: str, x: Csr, y: Csr, test: Csr) -> Found | str:
    """Train on x and y, predict `test`; or why that could not be done."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, each in (("x", x), ("y", y), ("t", test)):
            values = np.zeros(0, np.float32) if each.values is None else each.values.numpy()
            indices = each.indices.numpy().astype(np.int32)
            np.savez(folder / name, offsets=each.offsets.numpy(), indices=indices, values=values, shape=each.shape)
        python = os.environ.get(VARIABLE, sys.executable)
        words = [python, "-c", _COMMON + _PROGRAMS[program], str(folder)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        except OSError as error:
            return f"{VARIABLE} names {python!r}: {error.strerror}"
        if done.returncode:
            return (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        return Found(torch.from_numpy(np.load(folder / "ids.npy")), **json.loads(done.stdout.strip().splitlines()[-1]))
