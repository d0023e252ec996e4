"""Jobs: results of tasks are kept in a directory, so that a run that was interrupted can resume, and runs can share."""

from cqs.jobs.directory import JobDirectory
from cqs.jobs.identity import words_of
from cqs.jobs.job import Job
from cqs.jobs.manifest import Manifest
from cqs.jobs.resuming import ResumingEngine
from cqs.jobs.tasks import chosen_tasks

__all__ = ["Job", "JobDirectory", "Manifest", "ResumingEngine", "chosen_tasks", "words_of"]
