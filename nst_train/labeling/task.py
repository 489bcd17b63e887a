"""What a labeling is asked to do, whatever its rows. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from nst_data.progress import Progress
from nst_data.sources import Source
from nst_data.store.store import Store
from nst_train.settings import LabelRunSettings, LabelSettings
from nst_train.teacher_names import TeacherName


@dataclass
class LabelTask:
    """Who labels, and how: `teacher_names` are the teachers' names, `calibration` is labeled images to fit the temperature on."""

    store: Store
    teacher_names: Sequence[TeacherName]
    settings: LabelSettings
    run: LabelRunSettings
    progress: Progress
    calibration: Source | None = None
