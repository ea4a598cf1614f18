"""The process behind the page: a project's files, the lock of its corrections, and a server on loopback."""

import logging
from pathlib import Path

from masksmith.core.errors import InputError
from masksmith.core.locks import folder_lock
from masksmith.core.progress import logger
from masksmith.data.cache import is_built
from masksmith.deploy.listening import bind, import_fastapi
from masksmith.project.corrections import Corrections
from masksmith.project.folder import Project
from masksmith.steps.review.app import make_app
from masksmith.steps.review.ranking import Ranking
from masksmith.steps.review.views import Views

LOOPBACK = "127.0.0.1"
_GRACE_S = 5


def review_project(root: Path, *, run: str | None = None, port: int = 8766) -> None:
    """Serve the page until Ctrl-C or SIGTERM; see pipeline.review.

    Raises:
        InputError: No project, no such run, corrections that were edited and make no sense, a review of the project
            that is open already, a port in use, or the extra ``serve`` is missing.
    """
    import_fastapi()
    import uvicorn

    project = Project.open(root)
    if run is not None:
        project.run(run)
    _decode(project)
    listening = bind(LOOPBACK, port)
    with listening, folder_lock(project.corrections_dir), folder_lock(project.annotations_dir):
        patches = {
            "train": Corrections(project.corrections_dir),
            "test": Corrections(project.annotations_dir),
        }
        ranking = Ranking(project, run)
        views = Views(project, lambda: ranking.predicted, patches)
        at = listening.getsockname()[1]
        app = make_app(views, ranking, hosts=frozenset({LOOPBACK, "localhost"}))
        config = uvicorn.Config(
            app,
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=_GRACE_S,
        )
        logger.info("http://%s:%d/ shows %s; Ctrl-C ends it", LOOPBACK, at, project.root)
        ranking.start()
        try:
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            ranking.stop()


def _decode(project: Project) -> None:
    """Decode the data where that is not done; a training that is under way has done it, or does it now."""
    if is_built(project.catalog, project.cache_dir):
        return
    try:
        with folder_lock(project.root):
            project.cache  # noqa: B018  (is built)
    except InputError as error:
        raise InputError(f"review: the data is not decoded yet; {error}") from error
