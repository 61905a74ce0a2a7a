"""Checkpoints: the state of a training in one file, from which a run that was cut off goes on, equal to the bit."""

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from probkit import store
from probkit.infer.target import Target


class Checkpoint:
    """A file in a folder for one run, named by a digest of what the run depends on: method, key, model and data.

    A run of something else (another fold, another seed) has another file, so one folder serves many. The file stays
    when the run ends; asked once more for the same, the run gives its answer from there. Functions inside a net count
    by their names: two lambdas of one name are the same run.

    Args:
        method: an Ensemble, or a method that has one as its ``training``: its ``checkpoint`` is the folder, made if
            need be; None keeps nothing.
        target: model and data.
        inputs: the key, where the run starts, and what else it depends on.
    """

    def __init__(self, method: Any, target: Target, *inputs: Any) -> None:
        self.path: Path | None = None
        training = getattr(method, "training", method)
        folder = training.checkpoint
        if folder is None:
            return
        without = dataclasses.replace(training, checkpoint=None)
        method = without if training is method else dataclasses.replace(method, training=without)
        digest = hashlib.sha256(repr(method).encode())
        plain = lambda text: re.sub(r" at 0x[0-9a-f]+", "", text).encode()  # addresses differ between processes
        digest.update(plain(str(jax.tree_util.tree_structure((target, inputs)))))
        for leaf in jax.tree_util.tree_leaves((target, inputs)):
            array = _plain(leaf) if eqx.is_array(leaf) else None
            content = plain(repr(leaf)) if array is None else str((array.dtype, array.shape)).encode()
            digest.update(content + (b"" if array is None else array.tobytes()))
        self.path = Path(folder) / f"{digest.hexdigest()[:16]}.npz"
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def resume(self, state: Any) -> Any:
        """The state that was saved, or the one given where there is none.

        Raises:
            ValueError: the file is damaged, or another version of probkit wrote it.
        """
        if self.path is None or not self.path.exists():
            return state
        _, arrays = store.read(self.path)
        leaves, treedef = jax.tree_util.tree_flatten(state)
        if len(arrays) != len(leaves):
            raise ValueError(f"{self.path} holds {len(arrays)} arrays; {len(leaves)} are wanted. Remove it.")
        found = [_like(arrays[f"a{i}"], leaf) for i, leaf in enumerate(leaves)]
        return jax.tree_util.tree_unflatten(treedef, found)

    def save(self, state: Any) -> None:
        """Keep a state; what was kept before is replaced."""
        if self.path is not None:
            leaves = jax.tree_util.tree_leaves(state)
            store.write(self.path, {"format": store.FORMAT}, {f"a{i}": _plain(one) for i, one in enumerate(leaves)})


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _plain(x: Any) -> np.ndarray:
    """An array on the host; a key as its numbers."""
    return np.asarray(jax.random.key_data(x) if _is_key(x) else x)


def _like(array: np.ndarray, leaf: Any) -> Any:
    """An array of a file as the leaf that it stands for."""
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
    return jnp.asarray(array, leaf.dtype)
