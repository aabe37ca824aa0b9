"""Experiment trackers (TensorBoard, W&B) for a run's metrics. A tracker can neither end nor delay the run."""

from fmfsd.trackers.build import build_trackers as build_trackers
from fmfsd.trackers.feed import Trackers as Trackers
from fmfsd.trackers.metric_tags import Record as Record
