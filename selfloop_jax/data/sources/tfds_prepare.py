"""TFDS data sets on disk, prepared without TensorFlow, by one process, all or nothing.

TFDS writes into a folder `incomplete.*` and renames it when all is there, so what has a data set's
name is complete. What a killed preparation leaves is removed by the next one.
"""

import contextlib
import fcntl
import functools
import http.client
import io
import logging
import os
import shutil
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selfloop_jax.config import DataConfig
from selfloop_jax.data.sources import archives, layouts
from selfloop_jax.data.sources.base import Missing
from selfloop_jax.errors import RunError, UsageError
from selfloop_jax.runtime.log import say

# What a server may take to answer, and at a time to send on; how often a download is tried again.
SECONDS_TO_ANSWER = 10


RETRIES = 1


# Examples that are decoded at a time.
CHUNK = 500


def official(builder_class: Any, section: DataConfig, prepare: bool) -> Any:
    """A builder of `tfds_builders`, prepared from the files that section `data` names.

    Raises UsageError on files that are not the official ones or those of the table, `Missing` where
    nothing is prepared and `prepare` is false, RunError where no server answers, a download failed
    or the prepared copy is damaged.
    """
    from selfloop_jax.data.sources.tfds_builders import FromTable

    published = builder_class.PUBLISHED
    table = archives.table(section.tfds.checksums, published.archives)
    # Read once, for the check before anything is created and for the builder after it.
    columns = functools.cache(lambda: layouts.read(section.archive_dir, published, table))

    def make() -> Any:
        given = columns if section.archive_dir else None
        variant = FromTable(name=table.name, table=table, columns=given)
        return builder_class(
            data_dir=section.tfds.dir or None, config=variant, file_format="array_record"
        )

    def check() -> None:
        if section.archive_dir:
            columns()
        else:
            _ask(table.archives[0].url, published.layouts)

    def write(builder: Any) -> None:
        with _scratch(builder) as downloads:
            download_and_prepare(builder, downloads=downloads)

    place = root(section) / builder_class.name / table.name
    builder = prepared(make, place, check, write if prepare else None)
    # The folder's name does not prove what the copy was made from; the stored digests do.
    if builder.info.metadata.get("archives") != table.digests:
        raise RunError(
            f"{builder.data_path}: damaged: not made from the expected archives: delete it"
        )
    return builder


def root(section: DataConfig) -> Path:
    """The folder of prepared data sets that section `data` names."""
    import tensorflow_datasets as tfds

    return Path(os.path.expanduser(section.tfds.dir or tfds.core.constants.DATA_DIR))


def prepared(
    make: Callable[[], Any],
    place: Path,
    check: Callable[[], None],
    write: Callable[[Any], None] | None,
) -> Any:
    """The builder that `make` gives, prepared by `write` where it is not yet.

    Its copies are below `place`. `check` raises what is wrong before anything is created. Other
    processes wait. Raises `Missing` where it is not prepared and there is no `write`; RunError
    where the data folder cannot be written, or what is below `place` is damaged.
    """
    builder, done = _made(make, place)
    if done:
        return builder
    folder = Path(builder.data_dir_root)
    if write is None:
        raise Missing(
            "data.tfds.dir",
            f"data.tfds.dir = {folder}: {builder.info.full_name} is not prepared there",
        )
    # Before the lock, which creates the folder.
    check()
    try:
        with _lock(folder, builder.name), quiet():
            # Another process may have prepared it while this one waited.
            if not builder.is_prepared():
                say(f"preparing {builder.info.full_name} in {folder}")
                write(builder)
            # Read from the disk again, as the next run will read it.
            builder, done = _made(make, place)
    except OSError as error:
        raise RunError(
            f"data.tfds.dir = {folder}: {builder.info.full_name} not prepared: {error}"
        ) from error
    if not done:
        raise RunError(f"{builder.data_path}: damaged: it is not a prepared data set: delete it")
    return builder


def _made(make: Callable[[], Any], place: Path) -> tuple[Any, bool]:
    """The builder, and whether its data set is prepared; it reads what is below `place`."""
    import tensorflow_datasets as tfds

    try:
        with quiet():
            builder = make()
            return builder, builder.is_prepared()
    except (ImportError, UsageError, RunError, tfds.core.DatasetNotFoundError):
        raise
    except PermissionError as error:
        raise UsageError(
            f"data.tfds.dir: {error.filename or place}: {error.strerror}; must be a readable folder"
        ) from error
    except Exception as error:  # Protobuf, JSON and TFDS each have their own for damaged files.
        raise RunError(f"{place}: damaged: {brief(error)}: delete it") from error


def download_and_prepare(
    builder: Any, archive_dir: str = "", downloads: Path | None = None
) -> None:
    """TFDS's preparation as array_record; archives in `archive_dir` are not downloaded.

    Raises RunError where it fails, ImportError where it takes a package that is not here.
    """
    import tensorflow_datasets as tfds

    tfds.display_progress_bar(enable=sys.stderr.isatty())
    folder = Path(os.path.expanduser(archive_dir)) if archive_dir else None
    # TFDS would otherwise look for a prepared copy in its own bucket first.
    manual = tfds.download.DownloadConfig(manual_dir=folder, try_download_gcs=False)
    try:
        with _impatient():
            builder.download_and_prepare(download_dir=downloads, download_config=manual)
    except (ImportError, UsageError, RunError):
        raise
    except Exception as error:  # Any data set's own code, and C++ that writes.
        raise RunError(
            f"data.tfds.dir = {builder.data_dir_root}: {builder.name} not prepared: {brief(error)}"
        ) from error


def examples(
    builder: Any, split: str, decoders: dict[str, Any] | None = None
) -> Iterator[tuple[int, list]]:
    """Decoded examples of a split in their stored order, in chunks: (first, examples).

    Raises UsageError where reading takes TensorFlow, RunError on damaged files.
    """
    return _chunks(builder, split, lambda example: example, decoders=decoders)


def stored_examples(builder: Any, split: str) -> Iterator[tuple[int, list]]:
    """As `examples`, but each as the features of a protocol buffer `tf.train.Example`.

    TFDS's own decoding takes ten times as long, which for small images is seconds.
    """
    from tensorflow_datasets.core import decode
    from tensorflow_datasets.proto import tf_example_pb2

    def features(record: bytes) -> Any:
        return tf_example_pb2.Example.FromString(record).features.feature

    return _chunks(builder, split, features, deserialize_method=decode.DeserializeMethod.RAW_BYTES)


def _chunks(
    builder: Any, split: str, parse: Callable[[Any], Any], **how: Any
) -> Iterator[tuple[int, list]]:
    try:
        with quiet():
            source = builder.as_data_source(split, **how)
        for first in range(0, len(source), CHUNK):
            with quiet():
                chunk = source.__getitems__(list(range(first, min(first + CHUNK, len(source)))))
            yield first, [parse(example) for example in chunk]
    except NotImplementedError as error:
        raise UsageError(
            f"data.tfds.dir = {builder.data_path}: prepared as {builder.info.file_format.value}, "
            "which only TensorFlow reads; must be prepared as array_record"
        ) from error
    except ImportError as error:
        raise needs_tensorflow(builder.name, error) from error
    except Exception as error:  # The reader raises whatever its C++ side says.
        raise RunError(f"{builder.data_path}: damaged: {brief(error)}: delete it") from error


def needs_tensorflow(name: str, error: ImportError) -> UsageError:
    """The error of a data set whose preparation or decoding needs a package that is missing."""
    return UsageError(
        f"data.source = tfds:{name}: {brief(error)}; must be a data set already prepared as "
        "array_record, or one that TFDS prepares without TensorFlow"
    )


def brief(error: Exception) -> str:
    """The first and the last line of an error's message.

    TFDS says first where it was, and last what went wrong.
    """
    lines = [line.strip().rstrip(".:")[:200] for line in str(error).splitlines() if line.strip()]
    return " ... ".join(dict.fromkeys([lines[0], lines[-1]])) if lines else type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences what TFDS prints, and its and urllib3's logs; errors come as exceptions."""
    loggers = [logging.getLogger(name) for name in ("absl", "urllib3")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Ends downloads soon where a server does not send.

    TFDS tries for minutes and has no setting for it, so that its constant and the default of
    requests are changed for the time being.
    """
    import requests
    from tensorflow_datasets.core.download import downloader

    retries = downloader.MAX_RETRIES
    request = requests.Session.request
    downloader.MAX_RETRIES = RETRIES
    session: Any = requests.Session  # a class whose method is replaced
    session.request = functools.partialmethod(request, timeout=SECONDS_TO_ANSWER)
    try:
        yield
    finally:
        downloader.MAX_RETRIES = retries
        session.request = request


@contextlib.contextmanager
def _lock(root: Path, name: str) -> Iterator[None]:
    """One preparation of a data set at a time; the kernel frees the lock of a dead process."""
    root.mkdir(parents=True, exist_ok=True)
    with open(root / f".{name}.lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _scratch(builder: Any) -> Iterator[Path]:
    """A folder for downloads, removed afterwards; to be used under the lock.

    What a killed preparation left is removed first.
    """
    folder = Path(builder.data_dir_root) / f".{builder.name}.downloads"
    # Nobody else writes there: the caller holds the lock.
    for leftover in (folder, *Path(builder.data_path).parent.glob("incomplete.*")):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ask(url: str, needed: str) -> None:
    """One try at a server, RunError where none answers: TFDS itself would try for minutes."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=SECONDS_TO_ANSWER).close()
    except urllib.error.HTTPError as error:
        # It answers; whether it has the file is for TFDS to say.
        error.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, ssl.SSLError):
            return  # It answers, too; which certificates to trust is up to TFDS, which has its own.
        raise RunError(
            f"{url}: no answer ({brief(error)}); data.archive_dir can name a folder that has "
            f"{needed}"
        ) from error
