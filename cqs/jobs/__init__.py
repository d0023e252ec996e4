"""Jobs: results of tasks are kept in a directory, so that a run can be broken off and taken up again, or shared out."""

from cqs.jobs.directory import JobDirectory
from cqs.jobs.job import Job, chosen_tasks
from cqs.jobs.resuming import ResumingEngine

__all__ = ["Job", "JobDirectory", "ResumingEngine", "chosen_tasks"]
