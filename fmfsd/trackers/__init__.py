"""Shows a run's records to programs made for that. None of them can end the run, or hold it up."""

from fmfsd.trackers.base import Record as Record
from fmfsd.trackers.build import build_trackers as build_trackers
from fmfsd.trackers.feed import Trackers as Trackers
