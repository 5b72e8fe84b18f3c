"""Fills the code store on Apache Beam: a local runner, Dataflow, Flink or another one that its options name.

The workers need the audio files and the store under the same paths as here (a network file system), and
mvjax installed. `encode.write` then reads all codes from the store and writes the records. Importing this
module needs the extra `beam`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mvjax.data.speech import encode, encoder

try:
    import apache_beam as beam
    from apache_beam.metrics import metric
    from apache_beam.options import pipeline_options
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "encoding on Beam needs apache-beam: pip install 'mvjax[beam]'"
    ) from missing


def fill(
    tasks: Iterable[encoder.EncodeTask], settings: encoder.EncodeSettings, *, options: Sequence[str]
) -> int:
    """Encodes all tasks that are not in the store; returns how many these were.

    Audio is best given as paths, since samples travel through Beam. `options` are Beam's, such as
    ["--runner=DirectRunner", "--direct_num_workers=4"]. Raises RuntimeError if the pipeline fails.
    """
    chunks = [encode.without_images(chunk) for chunk in encoder.batched(tasks, encode.CHUNK)]
    pipeline = beam.Pipeline(options=pipeline_options.PipelineOptions(list(options)))
    _ = (
        pipeline
        | "chunks" >> beam.Create(chunks)
        | "spread" >> beam.Reshuffle()
        | "encode" >> beam.ParDo(Encode(settings))
    )
    result = pipeline.run()
    state = result.wait_until_finish()
    if str(state) != "DONE":
        raise RuntimeError(f"encode on Beam: expected state DONE, got {state}; see its log")
    counters = result.metrics().query(metric.MetricsFilter().with_name("fresh"))
    return sum(counter.committed for counter in counters["counters"])


class Encode(beam.DoFn):
    """Encodes chunks of tasks and yields their sizes; one encoder per worker."""

    def __init__(self, settings: encoder.EncodeSettings) -> None:
        self._settings = settings
        self._fresh = metric.Metrics.counter("mvjax", "fresh")

    def setup(self) -> None:
        """Opens the codec."""
        self._encoder = encoder.Encoder(self._settings)

    def process(self, chunk: Sequence[encoder.EncodeTask]) -> Iterator[int]:
        """Encodes a chunk into the store."""
        self._fresh.inc(sum(done.fresh for done in self._encoder(chunk)))
        yield len(chunk)
