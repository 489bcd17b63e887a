"""The end of a training: its averaged weights as a sealed teacher."""

from typing import Any

from nst_data.cards import cards
from nst_data.cards.curves import write_curves
from nst_data.cards.described import Described
from nst_data.store.counts import TeacherCounts
from nst_data.store.metrics import Metrics
from nst_data.store.store import Staging
from nst_train.networks.models import count_parameters, save_teacher
from nst_train.settings import TrainSettings
from nst_train.training.loop import Training


def seal(staging: Staging, settings: TrainSettings, training: Training, machine: dict[str, Any], reviewed: int = 0) -> None:
    """Write the averaged weights (those of the best validation, if there is one) with their description, and seal the teacher."""
    averaged, schedule, validation = training.step.averaged.module, training.step.schedule, training.validation
    best = validation.best if validation else None
    if validation and best:
        averaged.load_state_dict(best.weights)
        place = {"step": best.step, "source": validation.source.location, "fingerprint": validation.source.fingerprint}
        Metrics.model_validate({"validation": best.scores | place}).write(staging.build)
    class_names = training.class_names
    files = save_teacher(averaged, staging.build, class_names, settings)
    counts = TeacherCounts(
        parameters=count_parameters(averaged),
        steps=schedule.steps,
        best_step=best.step if best else None,
        labeled=len(training.labeled),
        unreadable=len(training.unreadable),
        unreadable_validation=training.unreadable_validation,
        classes_without_images=training.classes_without_images,
        reviewed=reviewed,
        pseudo_labeled=len(training.pseudo.rows) if training.pseudo else 0,
        entries=len(training.pseudo) if training.pseudo else 0,
    )
    write_curves(staging.build, staging.ref, best.step / schedule.steps_per_epoch if best else None)
    machine = machine | {"channels_last": training.step.settings.channels_last}
    manifest = staging.build_manifest(files, class_names, counts, machine)
    cards.write_model_card(Described(staging.build, staging.target, manifest))
    staging.seal(manifest)
