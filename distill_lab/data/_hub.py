"""A data set on the Hugging Face hub, streamed: downloads only what is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from distill_lab.data._row_types import Row
from distill_lab.errors import UserError
from distill_lab.formatting import one_line
from distill_lab.types import Fields, JsonObject

if TYPE_CHECKING:
    from datasets import IterableDataset

HUB_TIMEOUT_S = 10.0
"""Timeout in seconds for asking the hub whether it has a data set."""


class Hub:
    """A data set on the hub, by its id and, if it has several, the name of a configuration."""

    def __init__(self, id: str, name: str | None) -> None:
        self.id, self.name = id, name
        self._datasets: dict[str, IterableDataset] = {}

    def num_rows(self, split: str) -> int:
        """How many rows there are; see Source."""
        number = num_examples(self._dataset(split), split)
        if number is None:
            raise UserError(
                f"{self.id}: the hub does not report the length of {split}; use row numbers: {split}[:1000]"
            )
        return number

    def rows(self, split: str, start: int, stop: int | None) -> Iterator[Row]:
        """The rows of a slice; see Source."""
        dataset = self._dataset(split)
        try:
            yield from stream(dataset, start, stop)
        except _hub_failures() as error:
            raise UserError(
                f"{self.id}: the download failed ({one_line(error)}); run the same command again"
            ) from error

    def _dataset(self, split: str) -> IterableDataset:
        if split not in self._datasets:
            self._check()
            import datasets

            try:
                self._datasets[split] = datasets.load_dataset(self.id, self.name, split=split, streaming=True)
            except _hub_failures() as error:
                remedy = f"give a configuration after a colon ({self.id}:main), a split before the bracket (test[:100])"
                raise UserError(f"{self.id}: cannot be opened ({one_line(error)}); {remedy}") from error
        return self._datasets[split]

    def _check(self) -> None:
        """Ask the hub once, briefly, because `datasets` silently retries for half a minute or more."""
        from huggingface_hub import dataset_info

        # HTTPError from the hub client, because the client switched to another HTTP library between versions.
        from huggingface_hub.errors import (
            GatedRepoError,
            HTTPError,  # pyright: ignore[reportPrivateImportUsage]
            RepositoryNotFoundError,
        )

        reason = "no such file here and no such data set on the hub; check the name, or run `hf auth login`"
        try:
            dataset_info(self.id, timeout=HUB_TIMEOUT_S)
        except GatedRepoError:
            raise UserError(f"{self.id}: gated; accept its terms on its hub page, then run `hf auth login`") from None
        except RepositoryNotFoundError:
            raise UserError(f"{self.id}: {reason}") from None
        except (HTTPError, OSError) as error:
            raise UserError(
                f"{self.id}: no such file here, and the hub does not answer ({one_line(error)}); check the network, or "
                f"download the file elsewhere (hf download --repo-type dataset {self.id}) and give its path"
            ) from error


def num_examples(dataset: IterableDataset, split: str) -> int | None:
    """The length of a split from a streamed data set's card; None if the card does not state it."""
    splits = dataset.info.splits
    return splits[split].num_examples if splits and split in splits else None


def stream(dataset: IterableDataset, start: int, stop: int | None) -> Iterator[Row]:
    """The rows of a `datasets.IterableDataset`; with its features, values are those of a Parquet file with them."""
    from distill_lab.data._arrow import Converter

    part = dataset.skip(start) if start else dataset
    part = part if stop is None else part.take(max(stop - start, 0))
    converter = Converter(dataset.features.arrow_schema) if dataset.features else None
    for index, fields in enumerate(part, start=start):
        yield Row(index, None, converter.row(fields) if converter else _without_padding(dict(fields)))


def _without_padding(fields: Fields) -> JsonObject:
    """Rows of JSON files come through a table, too, so that nested objects are filled up with nulls."""
    return {name: _strip(value) for name, value in fields.items()}


def _strip(value: object) -> object:
    if isinstance(value, dict):
        return {name: _strip(item) for name, item in value.items() if item is not None}
    return [_strip(item) for item in value] if isinstance(value, list) else value


def _hub_failures() -> tuple[type[Exception], ...]:
    import pyarrow
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    return (HTTPError, OSError, ValueError, RuntimeError, DatasetsError, pyarrow.ArrowException)
