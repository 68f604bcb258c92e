"""The published ExHuBERT checkpoint, or one fine-tuned with the published code, to our model folder."""

from __future__ import annotations

import copy
import os
import re
from functools import partial
from pathlib import Path

from exhubert.configuration_exhubert import SIX_CLASSES, ExHuBERTConfig
from exhubert.convert.checkpoint import (
    MASK_VECTOR,
    Checkpoint,
    check_same_function,
    is_at_start,
    on_meta,
    write_weights,
)
from exhubert.convert.hubert import read_hubert_config
from exhubert.model_folder.save import save_model_folder
from exhubert.modeling_exhubert import ExHuBERTForSequenceClassification
from exhubert.utils.files import whole_folder


def convert_published(
    source: str | os.PathLike[str], destination: str | os.PathLike[str], revision: str | None = None
) -> Path:
    """Converts a checkpoint of the published code: layers in pairs, each ending in a linear layer `gate_bb_linear`.

    The linear layers of the originals are dropped where all of them are exactly the identity, as they are at
    expansion and as freezing leaves them; else they are kept (`gate_original_layers`). Dropping them is proved to
    change no bit of the logits. The folder is written beside `destination` and renamed when complete.

    Args:
        source: Hub id or folder of the checkpoint.
        destination: the model folder; must not exist, or be empty.
        revision: of the Hub repo.

    Raises:
        OSError: if the source is neither a folder nor to be had from the Hub.
        ValueError: if it is no such checkpoint (naming the first weight that does not fit), or the destination is
            taken.
    """
    with whole_folder(destination) as unfinished:
        checkpoint = Checkpoint(source, revision)
        hubert_config = read_hubert_config(checkpoint)
        if hubert_config.num_hidden_layers % 2:
            raise ValueError(
                f"{source} is not a checkpoint of the published ExHuBERT: num_hidden_layers is "
                f"{hubert_config.num_hidden_layers}; originals and their copies make an even number"
            )
        hubert_config.num_hidden_layers //= 2
        # The code forced num_labels to 6 in the configuration, whatever head was put on later.
        classifier = checkpoint.like.get("classifier.weight")
        num_labels = len(SIX_CLASSES) if classifier is None else len(classifier)
        names = {index: hubert_config.id2label.get(index, f"LABEL_{index}") for index in range(num_labels)}
        if num_labels == len(SIX_CLASSES) and all(name == f"LABEL_{index}" for index, name in names.items()):
            names = dict(enumerate(SIX_CLASSES))
        # It ran every model as pre-norm, whatever the configuration said.
        config = ExHuBERTConfig.from_hubert_config(
            hubert_config, num_copies=1, gate_original_layers=True, id2label=names, do_stable_layer_norm=True
        )
        gated = on_meta(ExHuBERTForSequenceClassification, config)
        for name in (*gated.state_dict(), *checkpoint.left_out):
            if name not in checkpoint.like and name != MASK_VECTOR:
                stored = re.sub(r"\.(identity|zero)_linear\.", ".gate_bb_linear.", name)
                verb = "has" if name in checkpoint.left_out else "lacks"
                raise ValueError(f"{source} is not a checkpoint of the published ExHuBERT: it {verb} {stored}")
        checkpoint.fit(gated)
        config.dtype = checkpoint.dtype

        changed = [name for name in checkpoint.like if "identity_linear." in name and not is_at_start(checkpoint, name)]
        config = copy.deepcopy(config)
        config.gate_original_layers = bool(changed)
        model = on_meta(ExHuBERTForSequenceClassification, config)
        print(f"{source}: {config.num_hidden_layers} encoder layers, {model.num_parameters():,} parameters")
        if changed:
            print(f"linear layers of the originals: kept, as {checkpoint.stored[changed[0]]} is not the identity's")
        else:
            print("linear layers of the originals: each exactly the identity, dropped")
        like = {name: checkpoint.like[name] for name in model.state_dict()}
        write = partial(write_weights, like=like, read=checkpoint.read)
        save_model_folder(model, unfinished, checkpoint.window_seconds, write_weights=write, source=checkpoint.source)
        check_same_function(
            "the source's with every linear layer", (gated, checkpoint.read), (model, Checkpoint(unfinished).read)
        )
    print(f"written to {os.path.realpath(destination)}")
    return Path(destination)
