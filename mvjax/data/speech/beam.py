"""Fills the code store on Apache Beam: a local runner, Dataflow, Flink or another one that its options name.

The workers need the audio files and the store under the same paths as here (a network file system), and
mvjax installed. The dialogues go through a manifest beside the store, of which the pipeline names ranges: so
its graph is as small for a million as for one. `encode.write` then reads all codes from the store and writes
the records. Importing this module needs the extra `beam`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pickle
import shutil
import struct
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mvjax.data.speech import encode, encoder

try:
    import apache_beam as beam
    from apache_beam.metrics import metric
    from apache_beam.options import pipeline_options
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "encoding on Beam needs apache-beam: pip install 'mvjax[beam]'"
    ) from missing

_PLACE = struct.Struct("<QQ")  # where a chunk begins in the manifest, and its bytes


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Chunks of tasks in a file, one pickled after the other, and their places in another."""

    folder: Path
    chunks: int = 0

    def write(self, tasks: Iterable[encoder.EncodeTask]) -> Manifest:
        """Writes tasks in chunks; returns the manifest that has them."""
        count = 0
        with self._tasks.open("xb") as content, self._places.open("xb") as places:
            for chunk in encoder.batched(tasks, encode.CHUNK):
                packed = pickle.dumps(encode.only_audio(chunk), pickle.HIGHEST_PROTOCOL)
                places.write(_PLACE.pack(content.tell(), len(packed)))
                content.write(packed)
                count += 1
        return Manifest(self.folder, count)

    def read(self, number: int) -> list[encoder.EncodeTask]:
        """Returns a chunk."""
        with self._tasks.open("rb") as content, self._places.open("rb") as places:
            places.seek(number * _PLACE.size)
            start, size = _PLACE.unpack(places.read(_PLACE.size))
            content.seek(start)
            return pickle.loads(content.read(size))

    @property
    def _tasks(self) -> Path:
        return self.folder / "tasks"

    @property
    def _places(self) -> Path:
        return self.folder / "places"


def fill(
    tasks: Iterable[encoder.EncodeTask],
    settings: encoder.EncodeSettings,
    *,
    options: Sequence[str],
    verbose: bool = False,
) -> int:
    """Encodes all tasks that are not in the store; returns how many these were.

    Audio is best given as paths, since samples are written into the manifest. `options` are Beam's, such as
    ["--runner=DirectRunner", "--direct_num_workers=4"]. Beam and its workers log warnings, or, if `verbose`,
    also what they do. Raises RuntimeError if the pipeline fails.
    """
    if not verbose:
        logging.getLogger("apache_beam").setLevel(logging.WARNING)
        options = ["--default_sdk_harness_log_level=WARNING", *options]
    settings = dataclasses.replace(settings, store=settings.store.absolute())
    with _manifest(tasks, settings.store) as manifest:
        result = pipeline(manifest, settings, options).run()
        state = result.wait_until_finish()
    if str(state) != "DONE":
        raise RuntimeError(f"encode on Beam: expected state DONE, got {state}; see its log")
    counters = result.metrics().query(metric.MetricsFilter().with_name("fresh"))
    return sum(counter.committed for counter in counters["counters"])


def pipeline(
    manifest: Manifest, settings: encoder.EncodeSettings, options: Sequence[str]
) -> beam.Pipeline:
    """Returns the pipeline that encodes the chunks of a manifest."""
    made = beam.Pipeline(options=pipeline_options.PipelineOptions(list(options)))
    _ = (
        made
        | "how many" >> beam.Create([manifest.chunks])
        | "chunks" >> beam.FlatMap(lambda count: range(count))
        | "spread" >> beam.Reshuffle()
        | "encode" >> beam.ParDo(Encode(settings, manifest))
    )
    return made


class Encode(beam.DoFn):
    """Encodes chunks of a manifest, given their numbers, and yields their sizes; one encoder per worker."""

    def __init__(self, settings: encoder.EncodeSettings, manifest: Manifest) -> None:
        self._settings, self._manifest = settings, manifest
        self._fresh = metric.Metrics.counter("mvjax", "fresh")

    def setup(self) -> None:
        """Opens the codec."""
        self._encoder = encoder.Encoder(self._settings)

    def process(self, number: int) -> Iterator[int]:
        """Encodes a chunk into the store."""
        chunk = self._manifest.read(number)
        self._fresh.inc(sum(done.fresh for done in self._encoder(chunk)))
        yield len(chunk)


@contextlib.contextmanager
def _manifest(tasks: Iterable[encoder.EncodeTask], store: Path) -> Iterator[Manifest]:
    """A manifest beside the codes, for as long as it is needed."""
    folder = store / f"beam-{uuid.uuid4().hex[:12]}"
    folder.mkdir(parents=True)  # workers may be other users: not as `tempfile` makes it
    try:
        yield Manifest(folder).write(tasks)
    finally:
        shutil.rmtree(folder)
