"""`gossamer tour [NAMES]`: run the cards, one after the other, and write their page."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from gossamer import files, measure
from gossamer.cli.flags import parse, use_threads
from gossamer.cli.tour.card import ORDER, Outcome, Shown, card
from gossamer.cli.tour.page import page
from gossamer.measure import clock
from gossamer.owned import Record
from gossamer.report.quantity import times

RECORD = Record("tour.json", "gossamer.tour", 1, "tour", (("cards", dict),), "choose another --out")
PAGE, FOUND, LOG = "index.html", "card.json", "log.txt"


@dataclass(frozen=True)
class Tour:
    """Seven systems, each on real data beside its dense baseline: what it gains here, and where it loses."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Some of chase, popsparse, pit, sparsetrain, spartex, lserve, radial; all when none is given."""
    out: Path = Path("runs/tour")
    """Folder of the page; cards that are run again replace their earlier ones there."""
    threads: int | None = None
    """CPU threads; torch's own choice when not given."""
    quick: bool = False
    """Toy sizes: shows that the cards run, says nothing about speed."""


def run(arguments: Sequence[str]) -> None:
    """Run what was asked for, print a line for each card, write the page.

    Raises:
        RuntimeError: a card failed; the others are on the page.
    """
    config = parse(Tour, "gossamer tour", list(arguments))
    names = _names(config.names)
    use_threads(config.threads)
    record = RECORD.find(config.out, "--out ") or {"cards": {}}
    config.out.mkdir(parents=True, exist_ok=True)
    files.check_target(config.out / PAGE)
    cards: dict[str, Any] = record["cards"]
    RECORD.write(config.out, cards=cards)  # first: a folder of a tour that was killed is still one of ours
    begin, failed = clock.now(), {}
    for at, name in enumerate(names):
        shown = _run(name, config, f"[{at + 1}/{len(names)}]")
        if shown.error is not None:
            failed[name] = shown.error
        cards[name] = {"seconds": shown.seconds, "environment": measure.environment(), "quick": config.quick}
        RECORD.write(config.out, cards=cards)
        write(config.out, cards)
    print(f"\n{len(names) - len(failed)} of {len(names)} cards in {(clock.now() - begin) / 60:.1f} minutes")
    print(f"page: {config.out / PAGE}")
    if failed:
        raise RuntimeError("; ".join(f"card {name} failed: {why}" for name, why in failed.items()))


def _names(names: Sequence[str]) -> list[str]:
    """Those asked for, each once, in the order of the page."""
    for name in names:
        card(name)
    return [name for name in ORDER if not names or name in names]


def _run(name: str, config: Tour, place: str) -> Shown:
    folder = config.out / name
    folder.mkdir(exist_ok=True)
    (folder / FOUND).unlink(missing_ok=True)
    begin = clock.now()
    line = _Line(f"{place} {card(name).system:12}")
    command = [sys.executable, "-m", "gossamer.cli.tour.one", name, str(folder), *(["--quick"] if config.quick else [])]
    environment = dict(os.environ)
    if config.threads is not None:
        environment["OMP_NUM_THREADS"] = str(config.threads)
    with (
        open(folder / LOG, "w", encoding="utf-8") as log,
        _process(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process,
    ):
        assert process.stdout is not None
        for said in process.stdout:
            line.now(said.strip(), clock.now() - begin)
    shown = read(config.out, name, clock.now() - begin, process.returncode)
    line.end(_said(shown))
    return shown


@contextlib.contextmanager
def _process(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive us."""
    process = subprocess.Popen(command, **options)
    try:
        yield process
        process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def read(out: Path, name: str, seconds: float, status: int = 0) -> Shown:
    """What a card left in its folder."""
    path = out / name / FOUND
    if not path.is_file():
        log = out / name / LOG
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return Shown(name, card(name), seconds, None, f"its process {how} and left no result; its words are in {log}")
    found = files.parse_json(files.read(path, limit=1 << 22))
    if "error" in found:
        return Shown(name, card(name), seconds, None, found["error"])
    return Shown(name, card(name), seconds, Outcome.of(found), None)


def write(out: Path, cards: dict[str, Any]) -> None:
    """The page of all cards that were ever run here.

    Args:
        cards: of the record: name -> seconds, environment, quick.
    """
    shown = [read(out, name, cards[name]["seconds"]) for name in ORDER if name in cards]
    latest = [cards[each.name] for each in shown]
    with files.replacing(out / PAGE) as file:
        file.write(page(shown, latest).encode())


def _said(shown: Shown) -> str:
    if shown.outcome is None:
        return f"failed after {shown.seconds:.0f} s: {shown.error}"
    gain, loses = shown.outcome.gain, shown.outcome.loses
    control = times(gain.comparison["control"]["ratio"])
    return (
        f"{times(gain.row['ratio'])} as fast as {gain.comparison['baseline']} (itself again {control}), "
        f"{times(loses.row['ratio'])} where it pays least; {shown.seconds:.0f} s"
    )


class _Line:
    """One line of progress: on a terminal it is written over, elsewhere only its end is printed."""

    def __init__(self, head: str) -> None:
        self.head, self.shown = head, sys.stdout.isatty()

    def now(self, words: str, seconds: float) -> None:
        if self.shown:
            print(f"\r\x1b[2K{self.head} {seconds:4.0f} s  {words[:60]}", end="", flush=True)

    def end(self, words: str) -> None:
        print(f"{chr(13)}\x1b[2K{self.head} {words}" if self.shown else f"{self.head} {words}", flush=True)
