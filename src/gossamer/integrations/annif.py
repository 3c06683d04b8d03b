"""A backend of Annif, the subject indexing tool of libraries: train a classifier on a corpus, suggest subjects.

Annif finds its backends in a table of its own, which knows nothing of other packages. This module run as a program is
Annif's command with one more entry in that table:

    # projects.cfg
    [gossamer-en]
    name=Gossamer
    language=en
    backend=gossamer
    vocab=yso
    fan_in=64
    epochs=10

    python -m gossamer.integrations.annif train gossamer-en corpus.tsv
    python -m gossamer.integrations.annif suggest gossamer-en < text.txt

A project can set every field of `gossamer.xmc.Recipe`, and encoder ("bow", "minilm" or a folder), width and max_length.
The model knows the subjects that the corpus has, by their URI, and no others: what a vocabulary excludes takes no room.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from gossamer import extras
from gossamer.xmc import Classifier, Recipe, load

NAME, MODEL = "gossamer", "gossamer-model"
ENCODER: dict[str, dict[str, type]] = {"bow": {"width": int}, "": {"max_length": int, "pooling": str}}
"""Settings of an encoder that a project can have; the last are those of Hugging Face's."""


def register() -> None:
    """Let Annif know the backend "gossamer", in this process.

    Raises:
        ImportError: annif is not installed.
    """
    extras.needed("annif", "the backend needs Annif", "annif")
    import annif.backend

    annif.backend._backend_fns[NAME] = backend


def backend() -> Any:
    """The class that Annif makes a project's backend of."""
    from annif.backend.backend import AnnifBackend
    from annif.exception import ConfigurationException, NotInitializedException, NotSupportedException
    from annif.suggestion import SubjectSuggestion, SuggestionBatch

    class GossamerBackend(AnnifBackend):
        name = NAME
        classifier: Classifier | None = None

        @property
        def folder(self) -> Path:
            return Path(self.datadir) / MODEL

        def initialize(self, parallel: bool = False) -> None:
            if self.classifier is None:
                try:
                    self.classifier = load(self.folder)
                except FileNotFoundError as error:
                    raise NotInitializedException(str(error), backend_id=self.backend_id) from error

        def _train(self, corpus: Any, params: dict[str, Any], jobs: int = 0) -> None:
            if corpus == "cached":
                raise NotSupportedException("gossamer keeps no training data to reuse", backend_id=self.backend_id)
            texts: list[str] = []
            uris: list[list[str]] = []
            subjects = self.project.subjects
            for document in corpus.documents:
                found = [subjects[subject].uri for subject in document.subject_set]
                if found and document.text.strip():
                    texts.append(document.text)
                    uris.append(found)
            if not texts:
                raise NotSupportedException(
                    "gossamer needs documents that have text and subjects", backend_id=self.backend_id
                )
            names = sorted({uri for row in uris for uri in row})
            number = {uri: at for at, uri in enumerate(names)}
            try:
                classifier = classifier_of(params)
                self.info(f"training on {len(texts)} documents with {len(names)} subjects")
                with threads(jobs):
                    classifier.fit(
                        texts, [[number[uri] for uri in row] for row in uris], labels=len(names),
                        on_epoch=lambda fit: self.info("epoch {epoch}: loss {loss:.4g}".format(**fit.curve[-1])),
                    )  # fmt: skip
            except (TypeError, ValueError) as error:
                raise ConfigurationException(str(error), backend_id=self.backend_id) from error
            classifier.names = names
            classifier.save(self.folder)
            self.classifier = classifier

        def _suggest_batch(self, documents: list[Any], params: dict[str, Any]) -> Any:
            assert self.classifier is not None and self.classifier.names is not None
            by_uri, names = self.project.subjects.by_uri, self.classifier.names
            found = self.classifier.predict_topk([doc.text for doc in documents], k=int(params["limit"]))
            rows = []
            for document, scores, ids in zip(documents, found[0].sigmoid().tolist(), found[1].tolist(), strict=True):
                pairs = zip(scores, ids, strict=True) if document.text.strip() else ()
                known = [(by_uri(names[at], warnings=False), score) for score, at in pairs if at >= 0]
                rows.append([SubjectSuggestion(subject, score) for subject, score in known if subject is not None])
            return SuggestionBatch.from_sequence(rows, self.project.subjects)

    return GossamerBackend


def classifier_of(params: dict[str, Any]) -> Classifier:
    """The classifier that a project's parameters ask for; they are words, as in its configuration.

    Raises:
        ValueError: naming the parameter, its value and what was expected.

    >>> classifier_of({"fan_in": "32", "lr": "0.01", "language": "en"}).recipe.fan_in
    32
    """
    encoder = str(params.get("encoder", "bow"))
    known = ENCODER.get(encoder, ENCODER[""])
    kinds: dict[str, type] = {
        each.name: float if each.default is None else type(each.default) for each in fields(Recipe)
    }
    recipe = {name: _as(kind, name, params[name]) for name, kind in kinds.items() if name in params}
    settings = {name: _as(kind, name, params[name]) for name, kind in known.items() if name in params}
    return Classifier(encoder, encoder_settings=settings, recipe=Recipe(**recipe))


def _as(kind: type, name: str, value: Any) -> Any:
    try:
        return kind(value)
    except ValueError:
        expected = {int: "a whole number", float: "a number"}[kind]
        raise ValueError(f"{name} is {value!r}; expected {expected}") from None


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, torch uses so many threads; 0: as many as it did."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main() -> None:
    """Annif's command line."""
    register()
    from annif.cli import cli

    cli()


if __name__ == "__main__":
    main()
