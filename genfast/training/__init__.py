"""Training: one loop for all families, with checkpoints that a run can be resumed from exactly."""

from genfast.training.config import TrainingConfig as TrainingConfig
from genfast.training.fit import fit as fit
from genfast.training.log import read_log as read_log
from genfast.training.run import load as load
from genfast.training.run import read_run as read_run
