"""Train a network on labeled images, and on pseudo-labeled ones if an edition is given.

    python examples/train_a_teacher.py STORE NAME LABELED [EDITION]

LABELED is a folder with a subfolder for each class. EDITION is one that balance_labels.py made, such as flowers@gen-1.1: its images are
read where they were labeled. Stopped and run again, it resumes from the last checkpoint.
"""

import sys

from nst_data import Store, open_source
from nst_train import Noise, RunSettings, TrainSettings, train

if len(sys.argv) not in (4, 5):
    sys.exit(__doc__)
store, name, labeled, *edition = sys.argv[1:]
settings = TrainSettings(
    model="test_resnet",  # any name of timm.list_models()
    image_size=32,
    epochs=20,
    batch_size=16,
    optimizer="adamw",
    learning_rate=0.02,
    ratio=3,  # pseudo-labeled images for each labeled one
    noise=Noise(magnitude=9, dropout=0.2, stochastic_depth=0.1),
)
run = RunSettings(workers=0, checkpoint_minutes=1)
teacher = train(Store(store), name, open_source(labeled, labeled=True), settings, pseudo=edition[0] if edition else None, run=run)
print(f"{teacher.ref}: {teacher.manifest.counts.steps} steps, its weights are in {teacher.folder}")
